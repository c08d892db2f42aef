"""Floating-point operations of a step, and how many a device can do: for MFU and for estimates.

Counted as in PaLM's appendix B: 2 for each weight of a matrix product and row, twice that for a backward pass; what
checkpointing computes again is not counted. A frozen LLM needs half a backward pass: the gradient of its inputs.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Device(NamedTuple):
    """What a rank runs on, by the vendor's data sheet.

    Attributes:
        name: a part of what the driver calls it.
        peak: dense bfloat16 operations a second.
        memory: bytes.
    """

    name: str
    peak: float
    memory: float


LONG_ENOUGH = 0.05  # seconds of a matrix product that shows a device at its best; on CPUs bfloat16 may be very slow
LARGEST = 8192  # side of the largest
DEVICES = (
    Device("H200", 989e12, 141e9),
    Device("H100 PCIe", 756e12, 80e9),
    Device("H100", 989e12, 80e9),
    Device("A100", 312e12, 80e9),
    Device("L40S", 362e12, 48e9),
    Device("RTX 4090", 165e12, 24e9),
    Device("A40", 150e12, 48e9),
    Device("V100", 125e12, 32e9),
)


def forward_flops(config: Any, lengths: Sequence[int], targets: int) -> float:
    """Of the LLM's forward pass over packed conversations.

    Args:
        config: of a Llama-family LLM.
        lengths: positions of each conversation.
        targets: positions whose logits are computed.
    """
    hidden, width = config.hidden_size, config.num_attention_heads * head_dim(config)
    kept = config.num_key_value_heads * head_dim(config)
    layer = hidden * (2 * width + 2 * kept) + 3 * hidden * config.intermediate_size
    attention = 2 * width * sum(n * n for n in lengths)  # scores and mixture, the causal half of each
    products = sum(lengths) * layer
    return float(config.num_hidden_layers * (2 * products + attention) + 2 * targets * hidden * config.vocab_size)


def head_dim(config: Any) -> int:
    """Of a Llama-family LLM."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def step_flops(forward: float, trains_llm: bool) -> float:
    """Of forward and backward: with the LLM frozen (or adapted), its weights' gradients are not computed."""
    return forward * (3 if trains_llm else 2)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """What a device does at best, operations a second: from its data sheet, else as a matrix product shows."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known in DEVICES:
            if known.name in name and dtype == torch.bfloat16:
                return known.peak
    best, side, seconds = 0.0, 256, 0.0
    while seconds < LONG_ENOUGH and side <= LARGEST:
        a = torch.ones(side, side, device=device, dtype=dtype)
        for _ in range(3):
            began = time.perf_counter()
            (a @ a)[0, 0].item()
            seconds = time.perf_counter() - began
            best = max(best, 2 * side**3 / seconds)
        side *= 2
    return best
