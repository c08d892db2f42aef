"""Memory of a run: the bytes that a rank's device and host hold.

The model is built without weights, and a full pass runs on tensors without data (torch's FakeTensorMode) while every
byte that would be alive is counted. What DeepSpeed keeps beside the model is counted as its code (0.19,
`runtime/zero/stage_1_and_2.py` and `stage3.py`) allocates it.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from trainer.attention import NAME as PACKED
from trainer.attention import PLANNED
from trainer.batch import Batch
from trainer.model import AudioVisualLM
from trainer.settings import TrainConfig
from trainer.trainable import choose_trained, precision

# DeepSpeed's defaults, in elements (runtime/zero/config.py)
BUCKET = 500_000_000  # gradients reduced at once
LIVE = 1_000_000_000  # weights that ZeRO-3 keeps gathered
SUB_GROUP = 1_000_000_000  # weights that ZeRO-3 updates at once

MASTER = 4  # bytes of the float32 original of a trained weight
MOMENTS = 8  # bytes of its two moments in AdamW


def build_shape(config: TrainConfig, shape: Any, widths: Mapping[str, int]) -> AudioVisualLM:
    """The model of a run on the meta device: dtypes and trained parameters as in the run, but no weights.

    Args:
        config: of the run.
        shape: configuration of the LLM.
        widths: the width D of each feature.
    """
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            shape, dtype=precision(config), attn_implementation=PACKED
        )
        model = AudioVisualLM(llm, widths)
        choose_trained(config.model_copy(update={"compile": False}), model)
    return model


@dataclass(frozen=True)
class Parameters:
    """How many weights a model has.

    Attributes:
        projectors: in the linear projectors.
        llm: in the LLM, adapters included.
        adapters: in the adapters that were added to the LLM.
        trained: in projectors and LLM, those that are trained.
        bytes: of all weights and buffers, as one process of plain torch keeps them.
    """

    projectors: int
    llm: int
    adapters: int
    trained: int
    bytes: int

    @property
    def all(self) -> int:
        """All weights of the model."""
        return self.projectors + self.llm

    @classmethod
    def of(cls, model: AudioVisualLM) -> "Parameters":
        """Count a model's weights."""
        return cls(
            projectors=sum(p.numel() for p in model.projectors.parameters()),
            llm=sum(p.numel() for p in model.llm.parameters()),
            adapters=sum(p.numel() for name, p in model.llm.named_parameters() if ".lora_" in name),
            trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
            bytes=sum(t.nbytes for t in (*model.parameters(), *model.buffers())),
        )


class Alive(TorchDispatchMode):
    """Counts the bytes of live tensors, except those given to it.

    Attributes:
        now: bytes alive now.
        peak: the most bytes alive at once.
    """

    def __init__(self, given: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        for tensor in given:
            self._known[tensor.untyped_storage()] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the tensors it makes."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor) or tensor.device.type == "meta":
                continue
            storage = tensor.untyped_storage()
            if storage not in self._known:
                size = self._known[storage] = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, size)
        return made

    def _free(self, size: int) -> None:
        self.now -= size


def pass_bytes(model: AudioVisualLM, batch: Batch, autocast: bool) -> int:
    """Peak bytes that the forward and backward of one pass hold, beside weights and their gradients.

    Args:
        model: its gradients are dropped as soon as they are computed.
        batch: a pass, on the model's device.
        autocast: compute in bfloat16; trained weights stay float32.
    """
    trained: list[Any] = [p for p in model.parameters() if p.requires_grad]
    handles = [p.register_post_accumulate_grad_hook(_drop) for p in trained]
    with (
        Alive([*model.parameters(), *model.buffers()]) as alive,
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        loss: torch.Tensor = model(batch)
    with alive:
        loss.backward()  # type: ignore[no-untyped-call]
    for handle in handles:
        handle.remove()
    peak: int = alive.peak
    return peak


def _drop(parameter: torch.Tensor) -> None:
    parameter.grad = None


def pass_without_data(
    config: TrainConfig, shape: Any, widths: Mapping[str, int], batch: Batch, sharded: bool, on_gpu: bool
) -> int:
    """`pass_bytes` of a model without weights, on tensors without data.

    Args:
        config: of the run.
        shape: configuration of the LLM.
        widths: the width D of each feature.
        batch: a pass.
        sharded: DeepSpeed runs it, so all weights have the precision of the arithmetic.
        on_gpu: attention in bfloat16 is torch's variable-length kernel, which keeps the same tensors as flash-attn's;
            in float32 it goes by conversation (`planned_attention`).
    """
    model = build_shape(config, shape, widths)
    model.llm.set_attn_implementation(PLANNED if on_gpu else PACKED)
    if sharded:
        model.to(precision(config))
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        return pass_bytes(model, batch, config.precision == "bfloat16" and not sharded)


Bytes = tuple[float, float, float]


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank holds.

    Attributes:
        device: by purpose, as the rank starts, in a pass, and in the optimizer step.
        starting: of the host, as the rank starts.
        training: of the host, in training.
    """

    device: dict[str, Bytes]
    starting: float
    training: float

    @property
    def totals(self) -> list[float]:
        """All bytes on the device: as the rank starts, in a pass, and in the optimizer step."""
        return [sum(column) for column in zip(*self.device.values(), strict=True)]


def plain_memory(config: TrainConfig, parameters: Parameters, activations: float, inputs: float) -> Memory:
    """The memory of one process of plain torch: trained weights, gradients and moments are float32.

    Args:
        config: of the run.
        parameters: of the model.
        activations: bytes of a pass.
        inputs: bytes of a step's batch; the next step's is in memory too.
    """
    weights, moments, gradients = parameters.bytes, MOMENTS * parameters.trained, 4 * parameters.trained
    device: dict[str, Bytes] = {
        "weights": (weights, weights, weights),
        "moments": (0, moments, moments),
        "gradients": (0, gradients, gradients),
        "activations": (0, activations, 0),
        "batches": (0, 2 * inputs, 2 * inputs),
    }
    return Memory(device, weights, _copied(config, parameters.trained))


def _copied(config: TrainConfig, trained: float) -> float:
    """Bytes of the copy of a rank's trained weights and moments that is made for saving."""
    return (MASTER + MOMENTS) * trained if config.save_every else 0


def zero_memory(
    config: TrainConfig, parameters: Parameters, activations: float, inputs: float, ranks: int, passes: int
) -> Memory:
    """The memory of one rank of several with DeepSpeed.

    Args:
        config: of the run, with `zero`.
        parameters: of the model.
        activations: bytes of a pass.
        inputs: bytes of this rank's batch of a step; the next step's is in memory too.
        ranks: W.
        passes: of a step; gradients accumulate over them.
    """
    assert config.zero is not None
    stage, size = config.zero.stage, precision(config).itemsize
    whole, own = size * parameters.all, parameters.trained / ranks  # own: trained weights of this rank's part
    bucket, reduced = size * BUCKET, size * min(BUCKET, parameters.trained)  # gradients are flattened to be reduced
    optimizer, shard = (MASTER + MOMENTS) * own, size * own  # shard: gradients of this rank's part
    host = size * parameters.llm + 4 * parameters.projectors, _copied(config, own)
    weights: Bytes
    if stage == 3:
        gathered = size * min(parameters.all, LIVE) if ranks > 1 else 0
        # the whole model goes to the device and is sharded there
        weights = (whole, whole / ranks + gathered, whole / ranks)
        gradients = [shard, shard + (size + 4) * min(own, SUB_GROUP)]
        buckets = (0, bucket + reduced, bucket)
    else:
        summed = (size * parameters.trained if stage == 1 else shard) if passes > 1 else 0
        weights = (whole, whole, whole)
        gradients = [shard + summed, shard + (size + 4) * own]
        buckets = (0, 2 * bucket + reduced, 0)  # the second one for overlapped communication
    if config.zero.offload:
        kept = shard * (stage == 3 or passes > 1) + shard * (stage < 3)  # gradients, and a copy of the weights
        host = host[0], host[1] + optimizer + 4 * own + kept
        optimizer = 0
        gradients = [size * parameters.trained if stage == 1 and passes > 1 else 0, 0]
    device: dict[str, Bytes] = {
        "weights": weights,
        "originals and moments": (0, optimizer, optimizer),
        "gradients": (0, gradients[0], gradients[1]),
        "buckets": buckets,
        "activations": (0, activations, 0),
        "batches": (0, 2 * inputs, 2 * inputs),
    }
    return Memory(device, *host)
