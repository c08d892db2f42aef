"""One process of plain torch, or several under torchrun with DeepSpeed ZeRO: the same steps, the same losses."""

import contextlib
import os
from abc import ABC, abstractmethod
from typing import Any

import torch

from store import UserError
from trainer.batch import Batch
from trainer.model import AudioVisualLM
from trainer.settings import TrainConfig


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

    @abstractmethod
    def backward(self, batch: Batch, tokens: int) -> float:
        """Add the gradient of one pass, as its share of a step with `tokens` response tokens; return its loss sum."""

    @abstractmethod
    def step(self) -> float:
        """Clip, step, clear; return the gradient's norm before clipping."""

    @abstractmethod
    def total(self, value: float) -> float:
        """The sum of a number over all ranks."""

    @abstractmethod
    def gathered(self, tensors: list[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        """Inside, the tensors are whole on every rank."""

    def close(self) -> None:  # noqa: B027
        """Leave the process group, if there is one."""


class PlainEngine(Engine):
    """One process without DeepSpeed."""

    def __init__(self, model: AudioVisualLM, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self.device)
        self.optimizer = optimizer
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._config = config

    def backward(self, batch: Batch, tokens: int) -> float:
        """See `Engine`."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._config.precision == "bfloat16"):
            loss: torch.Tensor = self._model(batch)
        (loss / tokens).backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def step(self) -> float:
        """See `Engine`."""
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._config.clip or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm.item()

    def total(self, value: float) -> float:
        """See `Engine`."""
        return value

    def gathered(self, tensors: list[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        """See `Engine`."""
        return contextlib.nullcontext()


class ZeroEngine(Engine):
    """One rank of several, with DeepSpeed ZeRO."""

    def __init__(self, model: AudioVisualLM, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        import deepspeed

        self.rank, self.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._deepspeed = deepspeed
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo")
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(config, self.ranks)
        )
        self.device = self._engine.device
        self._scale = self.ranks * config.accumulation  # DeepSpeed takes means over ranks and passes

    def backward(self, batch: Batch, tokens: int) -> float:
        """See `Engine`."""
        loss = self._engine(batch)
        self._engine.backward(loss * (self._scale / tokens))
        self._engine.step()
        return float(loss.item())

    def step(self) -> float:
        """See `Engine`; DeepSpeed itself steps after the last pass."""
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def total(self, value: float) -> float:
        """See `Engine`."""
        summed = torch.tensor([value], dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(summed)
        return float(summed.item())

    def gathered(self, tensors: list[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        """See `Engine`."""
        if not hasattr(tensors[0], "ds_id"):
            return contextlib.nullcontext()
        whole: contextlib.AbstractContextManager[None] = self._deepspeed.zero.GatheredParameters(tensors)
        return whole

    def close(self) -> None:
        """See `Engine`."""
        self._engine.destroy()
        torch.distributed.destroy_process_group()


def deepspeed_config(config: TrainConfig, ranks: int) -> dict[str, Any]:
    """DeepSpeed's own configuration of a run."""
    assert config.zero is not None
    zero: dict[str, Any] = {"stage": config.zero.stage, "overlap_comm": torch.cuda.is_available()}
    if config.zero.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": ranks * config.accumulation,  # counted in packed rows: one a pass and rank
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_clipping": config.clip or 0.0,
        "bf16": {"enabled": config.precision == "bfloat16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def world_size() -> int:
    """The number of ranks that torchrun or the deepspeed launcher started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_world(config: TrainConfig) -> None:
    """Refuse what cannot be shared out evenly.

    Raises:
        UserError: several ranks without ZeRO, or a global batch that ranks and accumulation do not divide.
    """
    ranks = world_size()
    if ranks > 1 and config.zero is None:
        raise UserError(f"field 'zero': {ranks} processes were started; set zero.stage to 1, 2 or 3")
    if config.global_batch % (ranks * config.accumulation):
        raise UserError(
            f"field 'global_batch': {config.global_batch} is not divisible by "
            f"{ranks} ranks x accumulation {config.accumulation}"
        )


def build_engine(model: AudioVisualLM, optimizer: torch.optim.Optimizer, config: TrainConfig) -> Engine:
    """DeepSpeed where `zero` is set and a launcher started this process, else plain torch."""
    if config.zero is not None and "RANK" in os.environ:
        return ZeroEngine(model, optimizer, config)
    return PlainEngine(model, optimizer, config)
