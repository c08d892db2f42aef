"""Attention over packed rows: each conversation attends to its own earlier positions and to nothing else.

flash-attn's variable-length kernel serves where it imports and the tensors fit it. Elsewhere the conversations are set
side by side, padded at their ends, and go through torch's causal attention, which needs no mask: what stands at the end
is never attended to by what comes before it. Both give the same numbers up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None

NAME = "packed"  # of this attention in a Hugging Face configuration


@dataclass(frozen=True)
class Packing:
    """Where conversations begin and end in a packed row of S positions: B of them, the longest of L.

    Attributes:
        bounds: int32 [B + 1], from 0 to S.
        padded_from: int64 [B * L]: the position that stands at each place of the padded form (0 in the padding).
        packed_from: int64 [S]: the place in the padded form of each position.
        longest: L.
    """

    bounds: torch.Tensor
    padded_from: torch.Tensor
    packed_from: torch.Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Packing":
        """The packing of conversations of these lengths."""
        longest = max(lengths)
        places = np.concatenate([np.arange(n) + i * longest for i, n in enumerate(lengths)])
        padded = np.zeros(len(lengths) * longest, np.int64)
        padded[places] = np.arange(len(places))
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        return cls(torch.from_numpy(bounds), torch.from_numpy(padded), torch.from_numpy(places), longest)

    def to(self, device: torch.device, non_blocking: bool = False) -> "Packing":
        """A copy on a device."""
        moved = {
            n: getattr(self, n).to(device, non_blocking=non_blocking) for n in ("bounds", "padded_from", "packed_from")
        }
        return replace(self, **moved)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one packed row, in the form of Hugging Face's attention functions.

    Args:
        module: the attention layer; unused.
        query: [1, heads, S, head_dim].
        key: [1, key_value_heads, S, head_dim].
        value: as `key`.
        attention_mask: unused; `packing` says it all.
        packing: where conversations begin and end.
        scaling: of the scores.

    Returns:
        [1, S, heads, head_dim], and no weights.
    """
    if flash_attn_varlen_func is not None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return flash_attention(query, key, value, packing, scaling), None
    return padded_attention(query, key, value, packing, scaling), None


def padded_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scaling: float | None
) -> torch.Tensor:
    """The path of torch's own attention."""
    shape = (len(packing.bounds) - 1, packing.longest)

    def side_by_side(x: torch.Tensor) -> torch.Tensor:
        return x[0].transpose(0, 1).index_select(0, packing.padded_from).view(*shape, *x.shape[1::2]).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(
        side_by_side(query), side_by_side(key), side_by_side(value), is_causal=True, scale=scaling, enable_gqa=True
    )
    return mixed.transpose(1, 2).flatten(0, 1).index_select(0, packing.packed_from).unsqueeze(0)


def flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scaling: float | None
) -> torch.Tensor:
    """The path of flash-attn's variable-length kernel."""
    mixed: torch.Tensor = flash_attn_varlen_func(
        *(x[0].transpose(0, 1) for x in (query, key, value)),
        packing.bounds,
        packing.bounds,
        packing.longest,
        packing.longest,
        softmax_scale=scaling,
        causal=True,
    )
    return mixed[None]


AttentionInterface.register(NAME, packed_attention)
