"""What runs forward, backward and the optimizer's step of one rank; one process of plain torch."""

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
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what repeatable bits need, before cuBLAS is first used


class Fragment(NamedTuple):
    """What a rank keeps of a trained parameter: elements from `start` on, of the parameter laid out flat.

    Attributes:
        name: of the parameter.
        start: its first element.
        weight: float32 [n], a view.
        moments: AdamW's exp_avg and exp_avg_sq, float32 [n], views; writing to them changes the optimizer.
    """

    name: str
    start: int
    weight: torch.Tensor
    moments: dict[str, torch.Tensor]


class Engine(ABC):
    """Runs forward, backward and the optimizer's step of one rank.

    Attributes:
        rank: of this process.
        ranks: W.
        device: where the model lies.
        optimizer: its groups take the learning rate.
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
        """Add the gradient of one pass, as its share of a step with `tokens` response tokens; return its loss sum.

        Every rank makes the same number of passes in a step; `last` says that this one ends it.
        """

    @abstractmethod
    def step(self) -> float:
        """Clip, step, clear; return the gradient's norm before clipping."""

    @abstractmethod
    def total(self, *values: float) -> list[float]:
        """The sums of numbers over all ranks."""

    @abstractmethod
    def largest(self, value: int) -> int:
        """The largest of a number over all ranks."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, in their order."""

    @abstractmethod
    def gathered(self, tensors: list[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        """Inside, the tensors are whole on every rank."""

    @abstractmethod
    def fragments(self) -> Iterator[Fragment]:
        """What this rank keeps of each trained parameter, once the optimizer has its moments."""

    @abstractmethod
    def start_moments(self, steps: int) -> None:
        """Give the optimizer moments of zero, as after `steps` steps, for `fragments` to be filled."""

    @torch.no_grad()
    def judge(self, batch: Batch) -> torch.Tensor:
        """Loss and hit of each response token, float32 [2, M]. Every rank takes part."""
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
        """The kernel that computes attention here, torch's version, and the device."""
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
        bfloat16: compute in bfloat16 what is kept in float32.
        clip: largest norm of the gradient.
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
    """Ask CUDA for kernels that give the same bits in every run; the fastest backward pass of attention does not."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.enable_cudnn_sdp(False)  # varlen_attn may take cuDNN's, which makes no such promise
