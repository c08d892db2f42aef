"""Several processes with DeepSpeed ZeRO: the same steps and the same losses as one process of plain torch.

This module alone imports DeepSpeed and reads its private fields.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from typing_extensions import override

from trainer.batch import Batch
from trainer.engine import MOMENTS, Engine, Fragment, PlainEngine, compute_repeatably, new_moments
from trainer.launch import uses_deepspeed
from trainer.model import AudioVisualLM
from trainer.settings import TrainConfig

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns that it found no accelerator


class ZeroEngine(Engine):
    """One rank of several, with DeepSpeed ZeRO."""

    def __init__(self, model: AudioVisualLM, optimizer: torch.optim.Optimizer, config: TrainConfig) -> None:
        import deepspeed

        super().__init__(model)  # no autocast: in bfloat16 runs DeepSpeed's weights are bfloat16
        assert config.zero is not None
        self.rank, self.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self._deepspeed = deepspeed
        self._stage = config.zero.stage
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        else:  # for inference only; it compiles for a minute, and a kill meanwhile leaves a lock that hangs later runs
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo")
        self._engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(config, self.ranks)
        )
        self.device = self._engine.device

    @override
    def backward(self, batch: Batch, tokens: int, last: bool) -> torch.Tensor:
        self._engine.set_gradient_accumulation_boundary(last)
        loss: torch.Tensor = self._engine(batch)
        self._engine.backward(loss * (self.ranks / tokens))  # DeepSpeed averages over ranks
        return loss.detach()

    @override
    def step(self) -> float:
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    @override
    def total(self, *values: float) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(tensor)
        sums: list[float] = tensor.tolist()
        return sums

    @override
    def largest(self, value: int) -> int:
        maximum = torch.tensor(value, device=self.device)
        torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX)
        return int(maximum.item())

    @override
    def gather(self, value: Any) -> list[Any]:
        values = [None] * self.ranks
        torch.distributed.all_gather_object(values, value)
        return values

    @override
    def gathered(self, tensors: list[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        if not any(hasattr(tensor, "ds_id") for tensor in tensors):
            return contextlib.nullcontext()
        whole: contextlib.AbstractContextManager[None] = self._deepspeed.zero.GatheredParameters(tensors)
        return whole

    @override
    def fragments(self) -> Iterator[Fragment]:
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
        """The flat float32 tensors that the optimizer updates on this rank."""
        zero = self._engine.optimizer
        flats: list[torch.Tensor] = (
            zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        )
        return flats

    def _place(self, parameter: Any) -> tuple[int, int, int, int]:
        """Where this rank's part of a parameter lies: flat tensor, offset in it, the part's first element, and size."""
        if self._stage == 3:
            zero = self._engine.optimizer
            group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            start = parameter.ds_tensor.numel() * self.rank
            return group, offset, start, max(0, min(size, parameter.ds_numel - start))  # what follows is padding
        mapping = parameter._hp_mapping
        if mapping is None:
            return 0, 0, 0, 0
        place = mapping.hp_fragment_address
        return mapping.param_group_index, place.start, mapping.lp_fragment_address.start, place.numel

    @override
    def start_moments(self, steps: int) -> None:
        for flat in self._flats:
            self._engine.optimizer.optimizer.state[flat] = new_moments(flat.data, steps)

    @override
    def close(self) -> None:
        self._engine.destroy()
        self._deepspeed.comm.destroy_process_group()


def deepspeed_config(config: TrainConfig, ranks: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a run."""
    assert config.zero is not None
    zero: dict[str, Any] = {"stage": config.zero.stage, "overlap_comm": torch.cuda.is_available()}
    if config.zero.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": ranks,  # counted in passes; each pass says whether it is the step's last
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.clip or 0.0,
        "bf16": {"enabled": config.precision == "bfloat16"},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def build_engine(model: AudioVisualLM, optimizer: torch.optim.Optimizer, config: TrainConfig) -> Engine:
    """DeepSpeed if `zero` is set and a launcher started this process, else plain torch."""
    if config.deterministic and torch.cuda.is_available():
        compute_repeatably()
    if uses_deepspeed(config):
        return ZeroEngine(model, optimizer, config)
    return PlainEngine(model, optimizer, config.precision == "bfloat16", config.clip)
