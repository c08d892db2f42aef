"""One process of plain torch, or several under torchrun with DeepSpeed ZeRO: the same steps, the same losses."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from store import UserError
from trainer.attention import kernel_of
from trainer.batch import Batch
from trainer.flops import head_dim
from trainer.model import AudioVisualLM
from trainer.settings import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what repeatable bits need, before cuBLAS is first used
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found nothing better


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

    def backward(self, batch: Batch, tokens: int, last: bool) -> torch.Tensor:
        """See `Engine`."""
        with self._autocast():
            loss: torch.Tensor = self.model(batch)
        (loss / tokens).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def step(self) -> float:
        """See `Engine`."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def total(self, *values: float) -> list[float]:
        """See `Engine`."""
        return list(values)

    def largest(self, value: int) -> int:
        """See `Engine`."""
        return value

    def gathered(self, tensors: list[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        """See `Engine`."""
        return contextlib.nullcontext()

    def fragments(self) -> Iterator[Fragment]:
        """See `Engine`."""
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                moments = {kind: self.optimizer.state[p][kind].view(-1) for kind in MOMENTS}
                yield Fragment(name, 0, p.data.view(-1), moments)

    def start_moments(self, steps: int) -> None:
        """See `Engine`."""
        for p in self._parameters:
            self.optimizer.state[p] = _moments(p.data, steps)


class ZeroEngine(Engine):
    """One rank of several, with DeepSpeed ZeRO."""

    def __init__(self, model: AudioVisualLM, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        import deepspeed

        super().__init__(model)  # what DeepSpeed computes in bfloat16 is kept so
        assert config.zero is not None
        self.rank, self.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._deepspeed = deepspeed
        self._stage = config.zero.stage
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        else:  # only inference uses it; it compiles for a minute, and a kill meanwhile leaves a lock on which runs hang
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo")
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(config, self.ranks)
        )
        self.device = self._engine.device

    def backward(self, batch: Batch, tokens: int, last: bool) -> torch.Tensor:
        """See `Engine`."""
        self._engine.set_gradient_accumulation_boundary(last)
        loss: torch.Tensor = self._engine(batch)
        self._engine.backward(loss * (self.ranks / tokens))  # DeepSpeed takes the mean over ranks
        return loss.detach()

    def step(self) -> float:
        """See `Engine`."""
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def total(self, *values: float) -> list[float]:
        """See `Engine`."""
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def largest(self, value: int) -> int:
        """See `Engine`."""
        found = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found.item())

    def gathered(self, tensors: list[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        """See `Engine`."""
        if not any(hasattr(tensor, "ds_id") for tensor in tensors):
            return contextlib.nullcontext()
        whole: contextlib.AbstractContextManager[None] = self._deepspeed.zero.GatheredParameters(tensors)
        return whole

    def fragments(self) -> Iterator[Fragment]:
        """See `Engine`."""
        parameters: list[tuple[str, Any]] = list(self.model.named_parameters())  # DeepSpeed adds attributes to them
        state = self._engine.optimizer.optimizer.state
        for name, p in parameters:
            if not p.requires_grad:
                continue
            group, offset, start, size = self._place(p)
            if size:
                flat = self._flats[group]
                moments = {kind: state[flat][kind].narrow(0, offset, size) for kind in MOMENTS}
                yield Fragment(name, start, flat.data.narrow(0, offset, size), moments)

    @property
    def _flats(self) -> list[torch.Tensor]:
        """The flat float32 tensors that the optimizer sees on this rank."""
        zero = self._engine.optimizer
        flats: list[torch.Tensor] = (
            zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        )
        return flats

    def _place(self, parameter: Any) -> tuple[int, int, int, int]:
        """Which flat tensor holds this rank's part of a parameter, where in it, its first element, and its size."""
        if self._stage == 3:
            zero = self._engine.optimizer
            group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            start = parameter.ds_tensor.numel() * self.rank
            return group, offset, start, max(0, min(size, parameter.ds_numel - start))  # what follows is padding
        kept = parameter._hp_mapping
        if kept is None:
            return 0, 0, 0, 0
        place = kept.hp_fragment_address
        return kept.param_group_index, place.start, kept.lp_fragment_address.start, place.numel

    def start_moments(self, steps: int) -> None:
        """See `Engine`."""
        for flat in self._flats:
            self._engine.optimizer.optimizer.state[flat] = _moments(flat.data, steps)

    def close(self) -> None:
        """See `Engine`."""
        self._engine.destroy()
        self._deepspeed.comm.destroy_process_group()


def _moments(weight: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    """The state of torch's fused AdamW for a parameter."""
    step = torch.tensor(float(steps), dtype=torch.float32, device=weight.device)
    return {"step": step, **{kind: torch.zeros_like(weight) for kind in MOMENTS}}


def deepspeed_config(config: TrainConfig, ranks: int) -> dict[str, Any]:
    """DeepSpeed's own configuration of a run."""
    assert config.zero is not None
    zero: dict[str, Any] = {"stage": config.zero.stage, "overlap_comm": torch.cuda.is_available()}
    if config.zero.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": ranks,  # counted in passes; how many a step takes is said at each
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip or 0.0,
        "bf16": {"enabled": config.precision == "bfloat16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def world_size() -> int:
    """The number of ranks that torchrun or the deepspeed launcher started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the first rank, before an engine is built."""
    return os.environ.get("RANK", "0") == "0"


def uses_deepspeed(config: TrainConfig) -> bool:
    """Whether `zero` is set and a launcher started this process."""
    return config.zero is not None and "RANK" in os.environ


def check_world(config: TrainConfig, ranks: int | None = None) -> None:
    """Refuse what cannot be shared out evenly over `ranks`, or those that were started.

    Raises:
        UserError: several ranks without ZeRO, or a global batch that the ranks do not divide.
    """
    ranks = ranks or world_size()
    if ranks > 1 and config.zero is None:
        raise UserError(f"field 'zero': {ranks} processes share the steps; set zero.stage to 1, 2 or 3")
    if config.global_batch % ranks:
        raise UserError(f"field 'global_batch': {config.global_batch} is not divisible by {ranks} ranks")


def compute_repeatably() -> None:
    """Ask CUDA for kernels that give the same bits in every run; the fastest backward pass of attention does not."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.enable_cudnn_sdp(False)  # varlen_attn may take cuDNN's, which makes no such promise


def build_engine(model: AudioVisualLM, optimizer: torch.optim.Optimizer, config: TrainConfig) -> Engine:
    """DeepSpeed where `zero` is set and a launcher started this process, else plain torch."""
    if config.deterministic and torch.cuda.is_available():
        compute_repeatably()
    if uses_deepspeed(config):
        return ZeroEngine(model, optimizer, config)
    return PlainEngine(model, optimizer, config.precision == "bfloat16", config.clip)
