"""The weights of a model on the CPU, gathered from the ranks' parts, with adapters merged."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from trainer.model import AudioVisualLM
from trainer.trainable import ADAPTER


class Weights(NamedTuple):
    """The weights of a model on the CPU, named as in the files of a checkpoint.

    Attributes:
        llm: with adapters merged into the weights that they adapt.
        projectors: float32.
        adapter: the low-rank adapters alone, float32, with peft's names; empty if there are none.
    """

    llm: dict[str, torch.Tensor]
    projectors: dict[str, torch.Tensor]
    adapter: dict[str, torch.Tensor]


def gather_weights(
    model: AudioVisualLM,
    dtype: torch.dtype,
    gathered: Callable[[list[torch.Tensor]], AbstractContextManager[None]] = lambda _: nullcontext(),
    keep: bool = True,
) -> Weights:
    """Copy a model's weights to the CPU, one tensor at a time, and merge its adapters into them.

    Args:
        model: whose weights they are.
        dtype: of the LLM's weights; those of the projectors are float32.
        gathered: makes a context within which given tensors are whole, as `Engine.gathered` does; the default is for
            a model that is not sharded over ranks.
        keep: whether this rank returns the weights; all ranks must call, or gathering hangs.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.projectors.named_buffers("projectors"))}
    lora = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    scalings = {name: module.scaling[ADAPTER] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    weights = Weights({}, {}, {})
    for name, tensor in tensors.items():
        if name in lora:
            continue
        layer = name.removesuffix(".base_layer.weight")
        pair = {x: lora[f"{layer}.lora_{x}.{ADAPTER}.weight"] for x in "BA"} if layer in scalings else {}
        with gathered([tensor, *pair.values()]):
            if not keep:
                continue
            whole = tensor.detach().float()
            if pair:
                factors = {x: _copy(factor, torch.float32) for x, factor in pair.items()}
                whole = whole + scalings[layer] * (factors["B"].to(whole.device) @ factors["A"].to(whole.device))
                at = layer.replace("llm", "base_model.model", 1)
                weights.adapter.update({f"{at}.lora_{x}.weight": factor for x, factor in factors.items()})
            part, _, rest = name.replace(".base_layer.", ".").partition(".")
            if part == "projectors":
                weights.projectors[rest] = _copy(whole, torch.float32)
            else:
                weights.llm[rest] = _copy(whole, dtype)
    return weights


def _copy(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()
