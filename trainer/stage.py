"""One stage of training, from a configuration to a checkpoint."""

import contextlib
import fnmatch
import json
import math
import resource
import shutil
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from store import UserError, canonical_json
from store.console import Meter, console
from trainer.checkpoint import (
    ADAPTER,
    CheckpointInfo,
    check_llm,
    describe,
    gather_weights,
    is_checkpoint,
    load_projectors,
    read_info,
    save_checkpoint,
)
from trainer.data import TrainingData
from trainer.distributed import Engine, build_engine, check_world, is_first, uses_deepspeed
from trainer.evaluation import HeldOut, summary
from trainer.features import Grid
from trainer.flops import forward_flops, peak_flops, step_flops
from trainer.llm import digest_of, load_llm
from trainer.loader import Loader, RankBatch
from trainer.log import RunLog, import_tracker
from trainer.model import AudioVisualLM, ColumnStatistics, initialize_projectors
from trainer.optim import build_optimizer, lr_factor, set_lr
from trainer.settings import TrainConfig
from trainer.states import Saver, State, States, check_same_llm, check_same_run

NAMED = 5  # conversations that were left out, for each reason
STATISTICS_ITEMS = 512  # of a column, that its projectors' start is computed from


def report_data(data: TrainingData, config: TrainConfig, held_out: HeldOut | None, write: bool = True) -> None:
    """Say what is trained on and what was left out; `left_out.jsonl` in the output folder names the latter.

    Args:
        data: of the run.
        config: of the run.
        held_out: conversations that are asked, which should not be trained on.
        write: that file.
    """
    counts = ", ".join(f"{count} {modality}" for modality, count in data.counts().items())
    console.print(f"{data.size} usable conversations ({counts})")
    if data.left_out:
        path = Path(config.output) / "left_out.jsonl"
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(each._asdict()) + "\n" for each in data.left_out))
        console.print(f"{len(data.left_out)} conversations left out{f': {path}' if write else ''}")
        for reason, count in sorted(Counter(each.reason for each in data.left_out).items()):
            ids = [each.id for each in data.left_out if each.reason == reason]
            console.print(f"  {count} {reason}: {', '.join(ids[:NAMED])}{' ...' * (count > NAMED)}", markup=False)
    same, media = held_out.overlap(data.conversations()) if held_out else (0, 0)
    if same or media:
        console.print(
            f"warning: of {len(held_out or ())} held-out conversations {same} are also trained on, of {media} others "
            "the media are: their loss says little about what is new"
        )
    columns = ", ".join(spec.folder for spec in data.specs.values())
    console.print(f"columns {columns}; {data.steps} steps of {config.global_batch} conversations")


def build_model(config: TrainConfig, data: TrainingData, llm: Any) -> AudioVisualLM:
    """The model of a stage: projectors from a checkpoint, those that it lacks started from the columns' statistics."""
    model = AudioVisualLM(llm, data.widths)
    trained: dict[str, torch.Tensor] = {}
    if is_checkpoint(config.model):
        check_checkpoint(config, data)
        check_llm(config.model, read_info(config.model), llm)
        trained = load_projectors(config.model)
    known = {name.split(".")[0] for name in trained}
    if started := data.widths.keys() - known:
        statistics = ColumnStatistics()
        for arrays in data.items(STATISTICS_ITEMS):
            statistics.add(arrays)
        initialize_projectors(model, statistics, config.seed, started)
    model.projectors.load_state_dict(
        {name: w for name, w in trained.items() if name.split(".")[0] in data.widths}, strict=False
    )
    choose_trained(config, model)
    return model


def choose_trained(config: TrainConfig, model: AudioVisualLM) -> None:
    """Say what of a model is trained: projectors, and in stage 2 the LLM or adapters in it; keep that in float32.

    Raises:
        UserError: a pattern of `freeze` names no parameter that would be trained, or all of them are frozen.
    """
    llm = model.llm
    llm.requires_grad_(config.stage == 2)
    if config.lora:
        _add_adapters(config, llm)
    for pattern in config.freeze:
        named = [p for name, p in model.named_parameters() if p.requires_grad and fnmatch.fnmatch(name, pattern)]
        if not named:
            some = [name for name, p in model.named_parameters() if p.requires_grad][:3]
            raise UserError(f"field 'freeze': {pattern} matches no trained parameter; there are {', '.join(some)} ...")
        for parameter in named:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("field 'freeze': nothing is left to train")
    by_deepspeed = uses_deepspeed(config)  # it keeps float32 originals of its own
    for name, parameter in model.named_parameters():
        if name.startswith("projectors.") or (parameter.requires_grad and not by_deepspeed):
            parameter.data = parameter.data.float()
    if config.gradient_checkpointing:
        enable = getattr(llm, "activation_checkpointing_enable", None) or llm.gradient_checkpointing_enable
        enable({"use_reentrant": False})  # the name until transformers 5.2x
        llm.enable_input_require_grads()
    if config.compile:
        for layer in llm.base_model.layers:
            layer.compile(dynamic=True)
    model.train()


def _add_adapters(config: TrainConfig, llm: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora.layer import ParamWrapper

    assert config.lora is not None
    targets = config.lora.targets
    settings = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.model,
    )
    linear = {name.rpartition(".")[2] for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    torch.manual_seed(config.seed % 2**63)  # of the adapters' start
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings")  # refused below
            warnings.filterwarnings("ignore", "The following .*_pattern keys")  # of a mixture's experts: refused too
            inject_adapter_in_model(settings, llm, ADAPTER)
    except ValueError as error:
        raise UserError(f"field 'lora.targets': {' '.join(str(error).split())[:300]}") from None
    weights = dict(llm.named_parameters())  # what is tied has one name
    for name, module in llm.named_modules():
        if isinstance(module, ParamWrapper):
            raise UserError(
                f"field 'lora.targets': {name} is a mixture's router or experts, which are no linear layers; "
                f"accepted: {', '.join(sorted(linear - {'lm_head'}))}"
            )
        if hasattr(module, "lora_A") and (module.lora_embedding_A or f"{name}.base_layer.weight" not in weights):
            raise UserError(f"field 'lora.targets': {name} is an embedding or tied to one; accepted: linear layers")


def check_checkpoint(config: TrainConfig, data: TrainingData) -> None:
    """Refuse to go on from a checkpoint with other columns; say what else differs from how it was trained.

    Raises:
        UserError: a column is another one than it was trained on.
    """
    info = read_info(config.model)
    then, now = (
        {"frames": info.frames, "segments": info.segments},
        {"frames": config.frames, "segments": config.segments},
    )
    other = [f"{field} {then[field]} (now {now[field]})" for field in then if then[field] != now[field]]
    if other and is_first():
        console.print(f"warning: {config.model} was trained with {', '.join(other)}; its projectors know that grid")
    for modality, spec in data.specs.items():
        trained = info.columns.get(modality)
        if trained is None:
            if is_first():
                console.print(f"{config.model} was trained without {modality}: this run starts to read {spec.folder}")
        elif trained != spec:
            raise UserError(
                f"field {modality!r}: {config.model} was trained on {trained.folder}, this run reads {spec.folder}"
            )
    for modality in sorted(info.columns.keys() - data.specs.keys()):
        if is_first():
            console.print(f"{config.model} also reads {info.columns[modality].folder}; this run leaves that out")


def train(config: TrainConfig) -> None:
    """Run a stage, or go on with it where it stopped, and leave its checkpoint in `<output>/checkpoint`.

    Raises:
        UserError: the configuration does not fit the data, the model, the processes that were started or what the run
            was before it stopped.
    """
    check_world(config)
    output, states = Path(config.output), States(config.output)
    if (output / "checkpoint").exists() and not config.overwrite:
        raise UserError(f"field 'output': {config.output} holds a checkpoint; take another folder, or overwrite=true")
    if config.track:
        import_tracker(config.track)
    if is_first():
        console.print(f"loading {config.model}, joining conversations with columns")
    llm, tokenizer = load_llm(config.model, precision(config), longest=config.max_tokens)
    data = TrainingData(config, tokenizer)
    held_out = held_out_of(config)
    saved = None if config.overwrite or not states.steps() else states.state(states.steps()[-1])
    if saved:
        check_same_run(saved, config, data.identity)
        check_same_llm(saved, llm, output)
    base = (saved and saved.base) or digest_of(llm.named_parameters(), precision(config))
    model = build_model(config, data, llm)
    if saved:
        states.load(saved.step).load_weights(model)
    if is_first():
        if config.overwrite:
            for old in ("checkpoint", states.folder.name, "tensorboard"):
                shutil.rmtree(output / old, ignore_errors=True)
        for left in output.glob(".tmp-checkpoint-*"):
            shutil.rmtree(left)
        states.clear()
    engine = build_engine(model, build_optimizer(model, config), config)
    if saved:
        states.load(saved.step).load_optimizer(engine, saved.step)
    log = None
    if engine.rank == 0:
        report_data(data, config, held_out)
        if saved:
            console.print(f"going on at step {saved.step}, saved by {saved.ranks} process{'es' * (saved.ranks > 1)}")
        console.print(f"attention: {engine.attention}")
        log = RunLog(config, saved.step if saved else 0, engine.attention)
        (output / "config.json").write_bytes(canonical_json(config.model_dump(mode="json")))
    run = Run(config, data, tokenizer, engine, log, held_out, Saver(states, engine, config.keep), saved, base)
    try:
        run.save_checkpoint(run.all_steps())
    finally:
        run.saver.close()
        if log:
            log.close()
    engine.close()  # not after an error of one rank: that would wait for the others, and they for it


def precision(config: TrainConfig) -> torch.dtype:
    """Of the arithmetic and of a checkpoint's LLM."""
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32


def held_out_of(config: TrainConfig) -> HeldOut | None:
    """The held-out conversations of a run, if it has any."""
    if config.evaluation is None:
        return None
    grid = Grid(config.frames, config.segments)
    return HeldOut(config.evaluation.sources, config.visual, config.audio, grid, config.evaluation.limit)


@dataclass
class Run:
    """A stage under way; `log` is that of the first rank, `base` the digest of the LLM's first weights."""

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
    _since: int = field(default=0, init=False)
    _loader: Loader = field(init=False)

    def __post_init__(self) -> None:
        engine = self.engine
        self._loader = Loader(self.data, self.config, engine.rank, engine.ranks, engine.device)

    def all_steps(self) -> int:
        """Train to the end, saving states on the way; the steps that are done then."""
        config, first = self.config, self.saved.step if self.saved else 0
        if self.saved and self.saved.asked == (config.evaluation and config.evaluation.asked):
            self.best = self.saved.best
        else:  # losses on other conversations say nothing about these
            self._since = first
        if self.log:
            self._peak = peak_flops(self.engine.device, precision(config)) * self.engine.ranks
        done = first
        with contextlib.ExitStack() as stack:
            name = f"stage {config.stage}" + (f" from step {first}" if first else "")
            meter = stack.enter_context(Meter(name, self.data.steps - first, "steps")) if self.log else None
            batches = stack.enter_context(contextlib.closing(self._loader.batches(first)))
            while done < self.data.steps and not self._tired(done):
                asked = time.perf_counter()
                ready = next(batches)
                waited = time.perf_counter() - asked
                set_lr(self.engine.optimizer, lr_factor(done, self.data.steps, config.warmup_ratio))
                torch.manual_seed((config.seed * 1_000_003 + done * 4099 + self.engine.rank) % 2**63)  # of dropout
                values = self._step(ready)
                self._add_speed(values, ready, waited, time.perf_counter() - asked)
                done += 1
                loss = self._evaluate(done, values)
                if self.log and meter:
                    if (done - 1) % config.log_every == 0 or done == self.data.steps or loss is not None:
                        self.log.write(done - 1, values)
                    meter.advance(1, f"loss {values['loss']:.4f}")
                best = loss is not None and self.best is not None and self.best[1] == done
                if best or (config.save_every and done % config.save_every == 0 and done < self.data.steps):
                    self.saver.save(self._state(done, loss))
        self.saver.finish()
        return done

    def _step(self, ready: RankBatch) -> dict[str, float]:
        """One optimizer step; the loss is the mean over the response tokens of the global batch."""
        passes = ready.passes
        needed = self.engine.largest(len(passes))
        if needed > len(passes):
            passes = self._loader.repack(ready, needed)
        (found,) = self.engine.total(ready.tokens)
        tokens = max(1, int(found))
        losses = [self.engine.backward(batch, tokens, number == len(passes) - 1) for number, batch in enumerate(passes)]
        norm = self.engine.step()
        (loss,) = self.engine.total(float(torch.stack(losses).sum()))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise UserError(
                f"{self.config.output}: training diverged: loss {loss / tokens}, norm of the gradient {norm}; nothing "
                f"of this step was saved. Try a lower lr (now {self.config.lr}), with another output or overwrite=true"
            )
        return {"loss": loss / tokens, "grad_norm": norm, "lr": self.engine.optimizer.param_groups[-1]["lr"]}

    def _add_speed(self, values: dict[str, float], ready: RankBatch, waited: float, taken: float) -> None:
        """How fast the step was, over all ranks; memory is that of this one."""
        config = self.config
        forward = forward_flops(self.engine.model.llm.config, ready.lengths, ready.tokens)
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
        """Ask the held-out conversations, if it is time; their loss."""
        evaluation = self.config.evaluation
        if self.held_out is None or evaluation is None or (done % evaluation.every and done != self.data.steps):
            return None
        judged = self.held_out.judge(self.engine, self.tokenizer, self.config.prompt, self.config.max_tokens)
        values |= summary(self.engine, judged)
        loss = values["eval_loss"]
        if loss < (self.best[0] if self.best else math.inf):
            self.best = loss, done
        return loss

    def _tired(self, done: int) -> bool:
        """Whether the loss on held-out conversations has not fallen for too long."""
        evaluation = self.config.evaluation
        if evaluation is None or evaluation.patience is None:
            return False
        since = self.best[1] if self.best else self._since
        tired = done - since >= evaluation.patience * evaluation.every
        if tired and self.log:
            console.print(f"stopped early: the held-out loss has not fallen since step {since}")
        return tired

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
        """Write the model as it is."""
        model, dtype = self.engine.model, precision(self.config)
        weights = gather_weights(model, dtype, self.engine.gathered, self.engine.rank == 0)
        if self.engine.rank == 0:
            folder = Path(self.config.output) / "checkpoint"
            save_checkpoint(folder, model.llm, weights, self.tokenizer, self._info(steps))
            console.print(f"saved {folder}")
            if self.best and self.best[1] != steps:
                console.print(
                    f"lowest held-out loss: {self.best[0]:.4f} at step {self.best[1]}; for that model: "
                    f"python -m trainer export {self.config.output} FOLDER --step {self.best[1]}"
                )
