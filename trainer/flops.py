"""Floating-point operations of a step, and a device's peak rate: for MFU and for estimates.

Counted as in PaLM's appendix B: 2 for each weight of a matrix product and position, twice that for a backward pass;
recomputation by checkpointing is not counted. A frozen LLM needs half a backward pass: the gradient of its inputs.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch


class Device(NamedTuple):
    """The hardware of a rank, by the vendor's data sheet.

    Attributes:
        name: a part of the driver's name for it.
        peak: dense bfloat16 operations per second.
        memory: bytes.
    """

    name: str
    peak: float
    memory: float


LONG_ENOUGH = 0.05  # seconds that a matrix product must take to show the peak; on CPUs bfloat16 may be very slow
LARGEST = 8192  # side of the largest such product
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
    """Operations of the LLM's forward pass over packed conversations.

    Args:
        config: of a Llama-family LLM.
        lengths: positions of each conversation.
        targets: positions whose logits are computed.
    """
    hidden, width = config.hidden_size, config.num_attention_heads * head_dim(config)
    key_width = config.num_key_value_heads * head_dim(config)
    layer = hidden * (2 * width + 2 * key_width) + 3 * hidden * config.intermediate_size
    attention = 2 * width * sum(n * n for n in lengths)  # scores and weighted sums, the causal half of each
    products = sum(lengths) * layer
    return float(config.num_hidden_layers * (2 * products + attention) + 2 * targets * hidden * config.vocab_size)


def head_dim(config: Any) -> int:
    """The width of an attention head of a Llama-family LLM."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def step_flops(forward: float, trains_llm: bool) -> float:
    """Operations of forward and backward; weight gradients of a frozen (or adapted) LLM are not computed."""
    return forward * (3 if trains_llm else 2)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16; a CPU without instructions for it converts each number, far slower."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """The peak rate of a device, in operations per second: from its data sheet, else measured with matrix products."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known in DEVICES:
            if known.name in name and dtype == torch.bfloat16:
                return known.peak
    best, side, seconds = 0.0, 256, 0.0
    while seconds < LONG_ENOUGH and side <= LARGEST:
        a = torch.ones(side, side, device=device, dtype=dtype)
        for _ in range(3):
            started = time.perf_counter()
            (a @ a)[0, 0].item()
            seconds = time.perf_counter() - started
            best = max(best, 2 * side**3 / seconds)
        side *= 2
    return best
