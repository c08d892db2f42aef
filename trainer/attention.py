"""Attention over packed rows: each conversation attends to its own earlier positions and to nothing else.

flash-attn's variable-length kernel serves where it imports and the tensors fit it. Elsewhere each conversation goes
through torch's causal attention by itself: so nothing is padded, and none is charged for a longer one's square. On CPUs
torch's kernel takes long for gradients in bfloat16, so there all but very long conversations go through plain products
of matrices.
All give the same numbers up to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
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
KERNEL = "packed_by_kernel"  # the same as a GPU runs it, whatever the tensors lie on: for estimates of memory
PRODUCTS = 2048  # positions up to which products of matrices serve on CPUs: the weights they keep grow as a square
BLOCK = 256  # queries in one product: few enough to leave out much of what lies behind them, enough for a fast one


@dataclass(frozen=True)
class Packing:
    """Where conversations begin and end in a packed row of S positions: B of them.

    Attributes:
        lengths: positions of each, B numbers.
        bounds: int32 [B + 1], from 0 to S; for kernels.
    """

    lengths: tuple[int, ...]
    bounds: torch.Tensor

    @classmethod
    def of(cls, lengths: Sequence[int]) -> "Packing":
        """The packing of conversations of these lengths."""
        return cls(tuple(lengths), torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)))

    def to(self, device: torch.device, non_blocking: bool = False) -> "Packing":
        """A copy on a device."""
        return replace(self, bounds=self.bounds.to(device, non_blocking=non_blocking))


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    by_kernel: bool = False,
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
        by_kernel: never by products of matrices.

    Returns:
        [1, S, heads, head_dim], and no weights.
    """
    if flash_attn_varlen_func is not None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return flash_attention(query, key, value, packing, scaling), None
    return torch_attention(query, key, value, packing, scaling, by_kernel), None


def torch_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    packing: Packing,
    scaling: float | None,
    by_kernel: bool = False,
) -> torch.Tensor:
    """The path of torch's own attention; `by_kernel` alone, or by products of matrices where they are faster."""
    queries, keys, values = (torch.split(x, list(packing.lengths), 2) for x in (query, key, value))
    by_products = not by_kernel and query.device.type == "cpu" and query.dtype == torch.bfloat16
    mixed = [
        product_attention(q, k, v, scaling)
        if by_products and q.shape[2] <= PRODUCTS
        else F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        for q, k, v in zip(queries, keys, values, strict=True)
    ]
    return torch.cat([x.transpose(1, 2) for x in mixed], 1)


def product_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Causal attention of one conversation, written out: the query heads of a key head are rows of one product.

    Queries go in blocks, each against the keys up to its own end: what lies behind those is not computed.

    Args:
        query: [1, heads, L, head_dim].
        key: [1, key_value_heads, L, head_dim].
        value: as `key`.
        scaling: of the scores.

    Returns:
        [1, heads, L, head_dim].
    """
    _, heads, length, width = query.shape
    groups = key.shape[1]
    scale = width**-0.5 if scaling is None else scaling
    mixed = []
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        rows = query[:, :, start:end].reshape(groups, -1, width)
        later = query.new_full((end - start, end), -torch.inf).triu(start + 1)
        mask = later.repeat(heads // groups, 1).expand(groups, -1, -1)
        scores = torch.baddbmm(mask, rows, key[0, :, :end].transpose(1, 2), alpha=scale)
        mixed.append(torch.bmm(scores.softmax(-1), value[0, :, :end]).reshape(1, heads, -1, width))
    return torch.cat(mixed, 2)


def flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scaling: float | None
) -> torch.Tensor:
    """The path of flash-attn's variable-length kernel."""
    mixed: torch.Tensor = flash_attn_varlen_func(
        *(x[0].transpose(0, 1) for x in (query, key, value)),
        packing.bounds,
        packing.bounds,
        max(packing.lengths),
        max(packing.lengths),
        softmax_scale=scaling,
        causal=True,
    )
    return mixed[None]


# Lengths differ in every pass: compiled, each would be a program of its own.
for name, function in ((NAME, packed_attention), (KERNEL, partial(packed_attention, by_kernel=True))):
    AttentionInterface.register(name, torch.compiler.disable(function))  # type: ignore[no-untyped-call]
