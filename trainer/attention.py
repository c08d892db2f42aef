"""Attention over packed rows: each conversation attends to its own earlier positions and to nothing else.

On CUDA one call serves all conversations: flash-attn's variable-length kernel if that package is installed, else
torch's own; for dtypes and GPUs that neither supports (float32, before Ampere), torch's memory-efficient kernel. On
CPUs each conversation goes through torch's causal attention by itself, which is the reference for all others. torch's
CPU kernel has a slow backward pass in bfloat16, so there all but very long conversations are computed by plain matrix
products. All give the same numbers up to rounding; `kernel_of` chooses the one that a run uses.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from store import UserError

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None

NAME = "packed"  # this attention's name in a Hugging Face configuration
PLANNED = "packed_planned"  # the same on tensors without data: for memory estimates of a GPU
PRODUCTS = 2048  # most positions for matrix products on CPUs: the weights they keep grow quadratically
IGNORED = ("use_cache", "position_ids", "cache_position", "output_attentions", "output_router_logits")  # change nothing
BLOCK = 256  # queries in one product: few enough to skip most later keys, enough for a fast product
GROUPED = "enable_gqa" in inspect.signature(varlen_attn).parameters  # torch 2.11 lacks grouped heads


@dataclass(frozen=True)
class Packing:
    """Where each of B conversations begins and ends in a packed row of S positions.

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


def has_flash_attn() -> bool:
    """Whether the package flash-attn is installed."""
    return flash_attn_varlen_func is not None


def flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scaling: float | None
) -> torch.Tensor:
    """flash-attn's variable-length kernel; float16 and bfloat16. Arguments and result as of `torch_attention`."""
    mixed: torch.Tensor = flash_attn_varlen_func(
        *(x[0].transpose(0, 1) for x in (query, key, value)),
        packing.bounds,
        packing.bounds,
        max(packing.lengths),
        max(packing.lengths),
        softmax_scale=scaling,
        causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    return mixed[None]


def varlen_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scaling: float | None
) -> torch.Tensor:
    """torch's own variable-length kernel; float16 and bfloat16. Arguments and result as of `torch_attention`."""
    if not GROUPED:
        key, value = _repeated(key, query), _repeated(value, query)
    longest = max(packing.lengths)
    grouped: Any = {"enable_gqa": True} if GROUPED else {}
    mixed = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        packing.bounds,
        packing.bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0),
        **grouped,
    )
    assert isinstance(mixed, torch.Tensor)
    return mixed[None]


def efficient_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scaling: float | None
) -> torch.Tensor:
    """torch's memory-efficient kernel, called as its nested tensors do; any dtype. Otherwise as `torch_attention`."""
    longest, causal_from_top_left = max(packing.lengths), 1
    mixed: torch.Tensor = torch.ops.aten._efficient_attention_forward(
        *(x.transpose(1, 2) for x in (query, _repeated(key, query), _repeated(value, query))),
        None,
        packing.bounds,
        packing.bounds,
        longest,
        longest,
        0.0,
        causal_from_top_left,
        compute_log_sumexp=True,
        scale=scaling,
    )[0]
    return mixed


def torch_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scaling: float | None
) -> torch.Tensor:
    """Each conversation by itself: torch's own attention, or matrix products where they are faster.

    Args:
        query: [1, heads, S, head_dim].
        key: [1, key_value_heads, S, head_dim].
        value: as `key`.
        packing: where conversations begin and end.
        scaling: of the scores; None for head_dim ** -0.5.

    Returns:
        [1, S, heads, head_dim].
    """
    queries, keys, values = (torch.split(x, list(packing.lengths), 2) for x in (query, key, value))
    by_products = query.device.type == "cpu" and query.dtype == torch.bfloat16
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
    """Causal attention of one conversation as matrix products; query heads that share a key head are rows of one.

    Each block of queries attends to the keys up to its last query; later keys are never computed.

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


def _repeated(keys: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Key (or value) heads, repeated so that each query head has one."""
    times = query.shape[1] // keys.shape[1]
    return keys.repeat_interleave(times, 1) if times > 1 else keys


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Packing, float | None], torch.Tensor]
KERNELS: dict[str, Attend] = {
    "flash-attn": flash_attention,
    "varlen_attn": varlen_attention,
    "memory-efficient": efficient_attention,
    "by conversation": torch_attention,
}


@cache
def kernel_of(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The name in `KERNELS` of the kernel used on a device; on any GPU it is one call for all conversations."""
    if device.type != "cuda":
        return "by conversation"
    if dtype not in (torch.float16, torch.bfloat16) or head_dim % 8 or head_dim > 256:
        return "memory-efficient"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "memory-efficient"
    return "flash-attn" if has_flash_attn() else "varlen_attn"


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one packed row, with the signature of Hugging Face's attention functions.

    Args:
        module: the attention layer; unused.
        query: [1, heads, S, head_dim].
        key: [1, key_value_heads, S, head_dim].
        value: as `key`.
        attention_mask: unused; `packing` takes its place.
        packing: where conversations begin and end.
        scaling: of the scores.
        sliding_window: positions that a query sees; must cover the longest conversation.
        dropout: of the weights; must be 0.
        others: each must be in `IGNORED`, or None.

    Returns:
        [1, S, heads, head_dim], and None for the weights.

    Raises:
        UserError: the LLM asks for something that packed rows do not have.
    """
    if packing is None:
        raise UserError("its layers do not hand on where conversations begin and end")
    _check_asked(max(packing.lengths), sliding_window, dropout, others)
    attend = KERNELS[kernel_of(query.device, query.dtype, query.shape[-1])]
    return attend(query, key, value, packing, scaling), None


def _check_asked(longest: int, sliding_window: int | None, dropout: float, others: dict[str, Any]) -> None:
    """Refuse arguments that packed attention does not support: to ignore one would train a different model."""
    if sliding_window is not None and sliding_window < longest:
        raise UserError(f"its attention sees {sliding_window} positions; accepted: max_tokens up to {sliding_window}")
    if dropout:
        raise UserError(f"attention_dropout {dropout}; accepted: 0")
    for name, value in others.items():
        if value is not None and name not in IGNORED and not (name == "is_causal" and value is True):
            raise UserError(f"its attention asks for {name}, which packed rows do not have")


def planned_attention(
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
    """`packed_attention` on tensors without data, with the kernel that a GPU would run; in float32 by conversation.

    There a GPU would run the memory-efficient kernel, which torch 2.11 fails to plan.
    """
    half = query.dtype in (torch.float16, torch.bfloat16)
    attend = varlen_attention if half else torch_attention
    return attend(query, key, value, packing, scaling), None


# Excluded from torch.compile: lengths differ in every pass, so each pass would be compiled anew.
for name, function in ((NAME, packed_attention), (PLANNED, planned_attention)):
    AttentionInterface.register(name, torch.compiler.disable(function))  # type: ignore[no-untyped-call]
