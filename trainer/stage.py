"""One stage of training, from a configuration to a checkpoint."""

import contextlib
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from store import UserError, canonical_json
from store.console import Meter, console
from trainer.batch import Batch, pack
from trainer.checkpoint import describe, is_checkpoint, load_llm, load_projectors, read_info, save_checkpoint
from trainer.data import TrainingData
from trainer.distributed import Engine, build_engine, check_world
from trainer.features import rows_of
from trainer.log import RunLog
from trainer.model import AudioVisualLM, ColumnStatistics, initialize_projectors
from trainer.optim import build_optimizer, lr_factor, set_lr
from trainer.settings import TrainConfig

STATISTICS_SAMPLES = 512  # conversations that the projectors' start is computed from


@dataclass(frozen=True)
class StepBatches:
    """One rank's passes of a step, and the response tokens in them."""

    passes: list[Batch]
    tokens: int
    positions: int


def count_steps(config: TrainConfig, data: TrainingData) -> int:
    """Optimizer steps of a run."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None
    return math.ceil(data.size * config.epochs / config.global_batch)


def report_data(data: TrainingData, config: TrainConfig) -> None:
    """Say what is trained on and what was left out."""
    counts = ", ".join(f"{count} {modality}" for modality, count in data.counts().items())
    console.print(f"{data.size} usable conversations ({counts})")
    if data.left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(data.left_out.items()))
        console.print(f"{data.left_out.total()} conversations left out ({reasons})")
    columns = ", ".join(spec.folder for spec in data.specs.values())
    console.print(f"columns {columns}; {count_steps(config, data)} steps of {config.global_batch} conversations")


def build_model(config: TrainConfig, data: TrainingData, llm: Any) -> AudioVisualLM:
    """The model of a stage: projectors from a checkpoint, or started from the columns' statistics."""
    model = AudioVisualLM(llm, data.widths)
    if is_checkpoint(config.model):
        _check_same_columns(config, data)
        model.projectors.load_state_dict(load_projectors(config.model))
    else:
        statistics = ColumnStatistics()
        for sample in data.some_items(min(STATISTICS_SAMPLES, data.size)):
            statistics.add(sample.arrays)
        initialize_projectors(model, statistics, config.seed)
    model.projectors.float()
    llm.requires_grad_(config.stage == 2)
    if config.stage == 2:
        llm.float()
    if config.gradient_checkpointing:
        llm.gradient_checkpointing_enable({"use_reentrant": False})
        llm.enable_input_require_grads()
    return model.train()


def _check_same_columns(config: TrainConfig, data: TrainingData) -> None:
    info = read_info(config.model)
    for modality, spec in data.specs.items():
        trained = info.columns.get(modality)
        if trained != spec:
            what = trained.folder if trained else "no column"
            raise UserError(f"field {modality!r}: {config.model} was trained on {what}, this run reads {spec.folder}")


def passes_of_step(data: TrainingData, config: TrainConfig, engine: Engine, step: int) -> StepBatches:
    """One rank's share of a global batch, packed into its passes."""
    samples = data.samples(step, engine.rank, engine.ranks)
    size = len(samples) // config.accumulation
    passes = [
        pack(samples[i : i + size], data.widths, config.max_tokens).to(engine.device)
        for i in range(0, len(samples), size)
    ]
    return StepBatches(passes, sum(len(b.targets) for b in passes), sum(len(b.ids) for b in passes))


def _ahead(data: TrainingData, config: TrainConfig, engine: Engine, steps: int) -> Iterator[StepBatches]:
    """The batches of all steps, each made in a thread while the one before it is trained on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(passes_of_step, data, config, engine, 0)
        for step in range(steps):
            ready = coming.result()
            if step + 1 < steps:
                coming = pool.submit(passes_of_step, data, config, engine, step + 1)
            yield ready


def train(config: TrainConfig, dry_run: bool = False) -> None:
    """Run a stage and leave its checkpoint in `<output>/checkpoint`.

    Raises:
        UserError: the configuration does not fit the data, the model or the processes that were started.
    """
    check_world(config)
    if (Path(config.output) / "checkpoint").exists() and not (config.overwrite or dry_run):
        raise UserError(f"field 'output': {config.output} holds a checkpoint; take another folder, or overwrite=true")
    dtype = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
    llm, tokenizer = load_llm(config.model, dtype)
    data = TrainingData(config, tokenizer)
    _check_lengths(config, data)
    if dry_run:
        report_data(data, config)
        return
    model = build_model(config, data, llm)
    engine = build_engine(model, build_optimizer(model, config), config)
    log = None
    if engine.rank == 0:
        report_data(data, config)
        log = RunLog(Path(config.output))
        (Path(config.output) / "config.json").write_bytes(canonical_json(config.model_dump(mode="json")))
    try:
        _Run(config, data, model, tokenizer, engine, log).all_steps()
    finally:
        if log:
            log.close()
        engine.close()


def _check_lengths(config: TrainConfig, data: TrainingData) -> None:
    rows = max(rows_of(data.sample(place).arrays)["audio_visual"] for place in range(min(16, data.size)))
    if rows >= config.max_tokens:
        raise UserError(f"field 'max_tokens': {config.max_tokens}; an item's features alone take {rows} rows")


@dataclass(frozen=True)
class _Run:
    """A stage under way; `log` is that of the first rank."""

    config: TrainConfig
    data: TrainingData
    model: AudioVisualLM
    tokenizer: Any
    engine: Engine
    log: RunLog | None

    def all_steps(self) -> None:
        """Train to the end, saving on the way."""
        steps = count_steps(self.config, self.data)
        with contextlib.ExitStack() as stack:
            meter = stack.enter_context(Meter(f"stage {self.config.stage}", steps, "steps")) if self.log else None
            asked = time.perf_counter()
            for step, ready in enumerate(_ahead(self.data, self.config, self.engine, steps)):
                waited = time.perf_counter() - asked
                set_lr(self.engine.optimizer, lr_factor(step, steps, self.config.warmup_ratio))
                values = self._step(ready)
                if self.log and meter:
                    taken = time.perf_counter() - asked
                    values["positions_per_second"] = ready.positions * self.engine.ranks / taken
                    values["data_wait"] = waited / taken
                    if step % self.config.log_every == 0 or step == steps - 1:
                        self.log.write(step, values)
                    meter.advance(1, f"loss {values['loss']:.4f}")
                if step == steps - 1 or (self.config.save_every and (step + 1) % self.config.save_every == 0):
                    self._save(step + 1)
                asked = time.perf_counter()

    def _step(self, ready: StepBatches) -> dict[str, float]:
        """One optimizer step; the loss is the mean over the response tokens of the global batch."""
        tokens = self.engine.total(ready.tokens)
        loss = self.engine.total(sum(self.engine.backward(batch, int(tokens)) for batch in ready.passes)) / tokens
        norm = self.engine.step()
        return {"loss": loss, "grad_norm": norm, "lr": self.engine.optimizer.param_groups[-1]["lr"]}

    def _save(self, steps: int) -> None:
        """Write the checkpoint, gathering one tensor at a time."""
        llm: dict[str, torch.Tensor] = {}
        projectors: dict[str, torch.Tensor] = {}
        dtype = torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32
        buffers = self.model.projectors.named_buffers("projectors")
        for name, tensor in (*self.model.named_parameters(), *buffers):
            with self.engine.gathered([tensor]):
                if self.engine.rank == 0:
                    part, _, rest = name.partition(".")
                    whole = tensor.detach().cpu().contiguous()
                    if part == "projectors":
                        projectors[rest] = whole.float().clone()
                    else:
                        llm[rest] = whole.to(dtype).clone()
        if self.engine.rank == 0:
            folder = Path(self.config.output) / "checkpoint"
            info = describe(self.config, self.data, steps)
            save_checkpoint(folder, self.model.llm, llm, projectors, self.tokenizer, info)
            console.print(f"saved {folder}")
