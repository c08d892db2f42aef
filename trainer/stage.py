"""One stage of training, from a configuration to a checkpoint."""

import contextlib
import math
import resource
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from store import UserError, canonical_json
from store.console import Meter, console
from store.publish import TEMPORARY
from trainer.checkpoint.folder import save_checkpoint
from trainer.checkpoint.info import CheckpointInfo, is_checkpoint, read_info
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.states import State, States, check_same_data, state_to_resume
from trainer.checkpoint.tensors import SavedTensors, check_same_llm
from trainer.checkpoint.weights import gather_weights
from trainer.checks import check_run
from trainer.curves import PLOT, plot_losses
from trainer.data import TrainingData
from trainer.engine import Engine
from trainer.evaluation import HeldOut, held_out_of, summary
from trainer.flops import forward_flops, has_bfloat16, peak_flops, step_flops
from trainer.launch import alone_in, is_first
from trainer.llm import digest_of, load_llm
from trainer.loader import Loader, RankBatch
from trainer.log import RunLog, import_tracker
from trainer.optim import build_optimizer, lr_factor, set_lr
from trainer.report import report_data
from trainer.settings import TrainConfig
from trainer.start import build_model
from trainer.trainable import precision
from trainer.zero import build_engine


def train(config: TrainConfig) -> None:
    """Run a stage, or resume it where it stopped, and leave its checkpoint in `<output>/checkpoint`.

    Raises:
        UserError: the configuration does not fit the data, the model, the processes that were started, or the run that
            it would resume.
    """
    check_run(config)
    with alone_in(Path(config.output)):
        _train(config)


def _train(config: TrainConfig) -> None:
    output, states, saved = Path(config.output), States(config.output), state_to_resume(config)
    if config.track:
        import_tracker(config.track)
    if is_first():
        console.print(f"loading {config.model}, joining conversations with columns")
    llm, tokenizer = load_llm(config.model, precision(config), longest=config.max_tokens)
    data = TrainingData(config, tokenizer)
    held_out = held_out_of(config)
    if saved:
        check_same_data(saved, config, data.has_identity)
        check_same_llm(saved, llm, output)
    base = (saved and saved.base) or digest_of(llm.named_parameters(), precision(config))
    model = build_model(config, data, llm)
    if saved:
        SavedTensors(states.path(saved.step)).load_weights(model)
    if is_first():
        if config.overwrite:
            for old in ("checkpoint", states.folder.name, "tensorboard"):
                shutil.rmtree(output / old, ignore_errors=True)
        for leftover in output.glob(f"{TEMPORARY}*-checkpoint*"):
            shutil.rmtree(leftover)
        states.clear()
    engine = build_engine(model, build_optimizer(model, config), config)
    if saved:
        SavedTensors(states.path(saved.step)).load_optimizer(engine, saved.step)
    log = None
    if engine.rank == 0:
        report_data(data, config, held_out)
        if saved:
            console.print(f"going on at step {saved.step}, saved by {saved.ranks} process{'es' * (saved.ranks > 1)}")
        console.print(f"attention: {engine.attention}")
        if config.precision == "bfloat16" and not has_bfloat16(engine.device):
            console.print("this processor has no instructions for bfloat16; precision=float32 is many times as fast")
        log = RunLog(config, saved.step if saved else 0, engine.attention)
        (output / "config.json").write_bytes(canonical_json(config.model_dump(mode="json")))
    run = Run(config, data, tokenizer, engine, log, held_out, Saver(states, engine, config.keep), saved, base)
    try:
        run.save_checkpoint(run.all_steps())
    finally:
        run.saver.close()
        if log:
            log.close()
    engine.close()  # not after an error: one failed rank and the others would wait for each other


@dataclass
class Run:
    """A stage in progress; only the first rank has a `log`, and `base` is the digest of the LLM's initial weights."""

    config: TrainConfig
    data: TrainingData
    tokenizer: Any
    engine: Engine
    log: RunLog | None
    held_out: HeldOut | None
    saver: Saver
    saved: State | None
    base: str | None = None
    best: tuple[float, int] | None = None
    _peak: float = field(default=0.0, init=False)
    _comparable_from: int = field(default=0, init=False)  # the step from which held-out losses can be compared
    _damaged: int = field(default=0, init=False)
    _judged: str = field(default="", init=False)
    _loader: Loader = field(init=False)

    def __post_init__(self) -> None:
        engine = self.engine
        self._loader = Loader(self.data, self.config, engine.rank, engine.ranks, engine.device)

    def all_steps(self) -> int:
        """Train to the end, saving states on the way; return the number of steps done."""
        config, first = self.config, self.saved.step if self.saved else 0
        if self.saved and self.saved.asked == (config.evaluation and config.evaluation.asked):
            self.best = self.saved.best
        else:  # losses on other held-out conversations are not comparable
            self._comparable_from = first
        if self.log:
            self._peak = peak_flops(self.engine.device, precision(config)) * self.engine.ranks
        done = first
        with contextlib.ExitStack() as stack:
            meter = Meter(f"stage {config.stage}", self.data.steps, "steps", before=first) if self.log else None
            if meter:
                stack.enter_context(meter)
            batches = stack.enter_context(contextlib.closing(self._loader.batches(first)))
            while done < self.data.steps and not self._should_stop(done):
                started = time.perf_counter()
                ready = next(batches)
                waited = time.perf_counter() - started
                set_lr(self.engine.optimizer, lr_factor(done, self.data.steps, config.warmup_ratio))
                torch.manual_seed(self._dropout_seed(done))
                values = self._step(ready)
                self._add_speed(values, ready, waited, time.perf_counter() - started)
                done += 1
                loss = self._evaluate(done, values)
                if self.log and meter:
                    if (done - 1) % config.log_every == 0 or done == self.data.steps or loss is not None:
                        self.log.write(done - 1, values)
                    meter.advance(1, f"loss {values['loss']:.4f}{self._judged}")
                best = loss is not None and self.best is not None and self.best[1] == done
                if best or (config.save_every and done % config.save_every == 0 and done < self.data.steps):
                    self.saver.save(self._state(done, loss))
        self.saver.finish()
        return done

    def _dropout_seed(self, done: int) -> int:
        """Another for each step and, of up to 4099, each rank. Factors are primes: runs of other seeds share few."""
        return (self.config.seed * 1_000_003 + done * 4099 + self.engine.rank) % 2**63

    def _step(self, ready: RankBatch) -> dict[str, float]:
        """One optimizer step; the loss is the mean over the response tokens of the global batch."""
        passes = ready.passes
        needed = self.engine.largest(len(passes))
        if needed > len(passes):
            passes = ready.split(needed)
        all_targets, damaged = self.engine.total(ready.targets, len(self.data.damaged))
        self._bound_damaged(int(damaged))
        tokens = max(1, int(all_targets))  # of all ranks
        losses = [self.engine.backward(batch, tokens, number == len(passes) - 1) for number, batch in enumerate(passes)]
        norm = self.engine.step()
        (loss,) = self.engine.total(float(torch.stack(losses).sum()))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"{self.config.output}: training diverged: loss {loss / tokens}, norm of the gradient {norm}; nothing "
                f"of this step was saved. Try a lower lr (now {self.config.lr}), with another output or overwrite=true"
            )
        return {"loss": loss / tokens, "grad_norm": norm, "lr": self.engine.optimizer.param_groups[-1]["lr"]}

    def _bound_damaged(self, count: int) -> None:
        """Raise if all ranks together met more damaged items than the run tolerates; `count` is the sum over ranks."""
        if count == self._damaged:
            return
        self._damaged = count
        damaged = {item: error for met in self.engine.gather(dict(self.data.damaged)) for item, error in met.items()}
        if len(damaged) > self.config.tolerate:
            raise next(iter(damaged.values()))

    def _add_speed(self, values: dict[str, float], ready: RankBatch, waited: float, taken: float) -> None:
        """Add to `values` how fast the step was, over all ranks, and the memory of this rank."""
        config = self.config
        forward = forward_flops(self.engine.model.llm.config, ready.lengths, ready.targets)
        flops = step_flops(forward, config.stage == 2 and not config.lora)
        positions, flops = self.engine.total(sum(ready.lengths), flops)
        values["seconds"] = taken
        values["tokens_per_second"] = positions / taken
        if self._peak:
            values["mfu"] = flops / taken / self._peak
        values["data_wait"] = waited / taken
        if self.engine.device.type == "cuda":
            values["memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        else:
            values["memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def _evaluate(self, done: int, values: dict[str, float]) -> float | None:
        """Evaluate on the held-out conversations, if it is time; return their loss."""
        evaluation = self.config.evaluation
        if self.held_out is None or evaluation is None or (done % evaluation.every and done != self.data.steps):
            return None
        judged = self.held_out.judge(self.engine, self.tokenizer, self.config.prompt, self.config.max_tokens)
        values |= summary(self.engine, judged)
        loss = values["eval_loss"]
        self._judged = f", held-out loss {loss:.4f} at step {done}"
        if loss < (self.best[0] if self.best else math.inf):
            self.best = loss, done
        return loss

    def _should_stop(self, done: int) -> bool:
        """Whether the held-out loss has not fallen for `patience` evaluations."""
        evaluation = self.config.evaluation
        if evaluation is None or evaluation.patience is None:
            return False
        since = self.best[1] if self.best else self._comparable_from
        stop = done - since >= evaluation.patience * evaluation.every
        if stop and self.log:
            console.print(f"stopped early: the held-out loss has not fallen since step {since}")
        return stop

    def _info(self, steps: int) -> CheckpointInfo:
        return describe(self.config, self.data, steps, self.engine.attention)

    def _state(self, done: int, loss: float | None) -> State:
        return State(
            step=done,
            identity=self.data.identity,
            config=self.config,
            checkpoint=self._info(done),
            ranks=self.engine.ranks,
            loss=loss,
            best=self.best,
            base=self.base,
        )

    def save_checkpoint(self, steps: int) -> None:
        """Write the current model as the run's checkpoint."""
        model, dtype = self.engine.model, precision(self.config)
        weights = gather_weights(model, dtype, self.engine.gathered, self.engine.rank == 0)
        if self.engine.rank == 0:
            folder = Path(self.config.output) / "checkpoint"
            save_checkpoint(folder, model.llm, weights, self.tokenizer, self._info(steps))
            plot_losses(folder.parent)
            console.print(f"saved {folder}, and its losses in {folder.parent / PLOT}")
            if self.best and self.best[1] != steps:
                console.print(
                    f"lowest held-out loss: {self.best[0]:.4f} at step {self.best[1]}; for that model: "
                    f"avllm trainer export {self.config.output} FOLDER --step {self.best[1]}"
                )


def describe(config: TrainConfig, data: TrainingData, steps: int, attention: str) -> CheckpointInfo:
    """The metadata of a run's checkpoint."""
    before = read_info(config.model) if is_checkpoint(config.model) else None
    base = before.base if before else None if Path(config.model).is_dir() else config.model
    names = [*(before.trained_on if before else ()), *(source.conversations for source in config.sources)]
    return CheckpointInfo(
        frames=config.frames,
        segments=config.segments,
        columns=data.specs,
        builds=data.builds,
        prompt=config.prompt,
        stage=config.stage,
        steps=steps,
        base=base,
        attention=attention,
        trained_on=tuple(dict.fromkeys(names)),
    )
