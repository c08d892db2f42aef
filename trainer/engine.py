"""Engines run one rank's forward, backward and optimizer step: their interface, and one process of plain torch."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from typing_extensions import override

from trainer.attention import kernel_of
from trainer.batch import Batch
from trainer.flops import head_dim
from trainer.model import AudioVisualLM

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for reproducible bits; set before cuBLAS is first used


class Fragment(NamedTuple):
    """The part of a trained parameter that a rank keeps: elements from `start` on, of the parameter flattened.

    Attributes:
        name: of the parameter.
        start: index of the part's first element.
        weight: float32 [n], a view.
        moments: AdamW's exp_avg and exp_avg_sq, float32 [n], views; writing to them changes the optimizer.
    """

    name: str
    start: int
    weight: torch.Tensor
    moments: dict[str, torch.Tensor]


class Engine(ABC):
    """Runs the forward pass, backward pass and optimizer step of one rank.

    Attributes:
        rank: of this process.
        ranks: W.
        device: where the model lies.
        optimizer: its parameter groups hold the learning rate.
    """

    rank = 0
    ranks = 1
    device: torch.device
    optimizer: Any

    def __init__(self, model: AudioVisualLM, bfloat16: bool = False) -> None:
        self.model = model
        self._bfloat16 = bfloat16

    @abstractmethod
    def backward(self, batch: Batch, tokens: int, last: bool) -> torch.Tensor:
        """Add one pass's share of the gradient of a step; return the pass's summed loss.

        Every rank makes the same number of passes in a step; `last` marks the step's last one. The step has `tokens`
        response tokens, on all ranks together.
        """

    @abstractmethod
    def step(self) -> float:
        """Clip the gradient, update the weights, clear the gradient; return its norm before clipping."""

    @abstractmethod
    def total(self, *values: float) -> list[float]:
        """The sum of each value over all ranks."""

    @abstractmethod
    def largest(self, value: int) -> int:
        """The largest value over all ranks."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, in rank order."""

    @abstractmethod
    def gathered(self, tensors: list[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        """A context in which the tensors are whole on every rank."""

    @abstractmethod
    def fragments(self) -> Iterator[Fragment]:
        """The part of each trained parameter that this rank keeps; the optimizer must have its moments."""

    @abstractmethod
    def start_moments(self, steps: int) -> None:
        """Give the optimizer zero moments, as after `steps` steps, to be filled through `fragments`."""

    @torch.no_grad()
    def judge(self, batch: Batch) -> torch.Tensor:
        """Loss of each response token, and 1 where it is the most likely, float32 [2, M]. All ranks must take part."""
        training = self.model.training
        self.model.eval()
        try:
            with self._autocast():
                judged: torch.Tensor = self.model(batch, each=True)
            return judged
        finally:
            self.model.train(training)

    @property
    def attention(self) -> str:
        """The attention kernel used here, torch's version, and the device."""
        dtype = torch.bfloat16 if self._bfloat16 else next(self.model.llm.parameters()).dtype
        kernel = kernel_of(self.device, dtype, head_dim(self.model.llm.config))
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return f"{kernel} (torch {torch.__version__}, {device})"

    def close(self) -> None:  # noqa: B027
        """Leave the process group, if there is one."""

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16)


class PlainEngine(Engine):
    """One process without DeepSpeed; without an optimizer it can only judge.

    Args:
        model: moved to the device.
        optimizer: of its trained parameters.
        bfloat16: compute in bfloat16 (autocast); trained weights stay float32.
        clip: bound on the norm of the gradient.
    """

    def __init__(
        self,
        model: AudioVisualLM,
        optimizer: torch.optim.Optimizer | None = None,
        bfloat16: bool = False,
        clip: float | None = None,
    ) -> None:
        super().__init__(model, bfloat16)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)
        self.optimizer = optimizer
        self._clip = clip
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]] if optimizer else []

    @override
    def backward(self, batch: Batch, tokens: int, last: bool) -> torch.Tensor:
        with self._autocast():
            loss: torch.Tensor = self.model(batch)
        (loss / tokens).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @override
    def step(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    @override
    def total(self, *values: float) -> list[float]:
        return list(values)

    @override
    def largest(self, value: int) -> int:
        return value

    @override
    def gather(self, value: Any) -> list[Any]:
        return [value]

    @override
    def gathered(self, tensors: list[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @override
    def fragments(self) -> Iterator[Fragment]:
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                moments = {kind: self.optimizer.state[p][kind].view(-1) for kind in MOMENTS}
                yield Fragment(name, 0, p.data.view(-1), moments)

    @override
    def start_moments(self, steps: int) -> None:
        for p in self._parameters:
            self.optimizer.state[p] = new_moments(p.data, steps)


def new_moments(weight: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    """The state of torch's fused AdamW for a parameter."""
    step = torch.tensor(float(steps), dtype=torch.float32, device=weight.device)
    return {"step": step, **{kind: torch.zeros_like(weight) for kind in MOMENTS}}


def compute_repeatably() -> None:
    """Make CUDA use kernels that give the same bits in every run; the fastest backward pass of attention does not."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.enable_cudnn_sdp(False)  # varlen_attn may take cuDNN's kernel, which does not promise that
