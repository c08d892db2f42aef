"""Packed against padded batches, and our loop against a Hugging Face Trainer.

    python -m benchmarks.training packed
    python -m benchmarks.training trainer

`packed` and `trainer` use SmolLM2-135M, as `python -m demo` makes it, and features of the paper's size: ViT-L/14 on 32
frames (32 + 256 rows; a still has 1 + 256) and CLAP on 4 segments. Contenders take turns on the same conversations in
the same order, with the same weights at the start, in bfloat16.
"""

import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from benchmarks.conversations import (
    MAX_TOKENS,
    WIDTHS,
    K,
    N,
    T,
    draw,
    lengths_of,
    make_samples,
    random_arrays,
)
from benchmarks.padded import PaddedLM, collate
from store import Candidate, ColumnSpec, Corpus, Failure, Feature, Storage, create_column, save_conversations
from store.console import Meter, console, make_app, run
from trainer.attention import NAME as PACKED
from trainer.batch import Sample, pack, share_out
from trainer.data import TrainingData
from trainer.engine import PlainEngine
from trainer.llm import load_llm
from trainer.model import AudioVisualLM
from trainer.optim import build_optimizer
from trainer.settings import Source, TrainConfig
from trainer.stage import train
from trainer.start import build_model
from trainer.trainable import choose_trained

BUDGET = 4096  # on two cores a pass of 8192 rows leaves the cache and is slower
CONVERSATIONS = "mixed"
VISUAL, AUDIO = "clip-vit-l-14", "clap-htsat-tiny"  # columns
Stage = Annotated[int, typer.Option(min=1, max=2, help="1 trains the projectors, 2 the LLM too.")]
Model = Annotated[Path, typer.Option(help="SmolLM2's folder; made if it is not there.")]
SMOLLM = Path("build/smollm2")
app = make_app("Training beside padded batches, and beside a Hugging Face Trainer.")


# packed against padded


def cut(numbers: Sequence[int], batch: int) -> list[list[int]]:
    """Batches in the order that stands."""
    return [list(numbers[i : i + batch]) for i in range(0, len(numbers), batch)]


def by_length(lengths: Sequence[int], numbers: Sequence[int], window: int) -> list[int]:
    """The numbers in an order that keeps like lengths together, sorted in windows, as LLaVA's sampler does."""
    return [n for part in cut(numbers, window) for n in sorted(part, key=lambda n: -lengths[n])]


def real_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """Of the token slots of padded batches, the share that holds tokens."""
    slots = sum(len(numbers) * max(lengths[n] for n in numbers) for numbers in batches)
    return sum(lengths[n] for numbers in batches for n in numbers) / slots


def report_shares(samples: Sequence[Sample]) -> None:
    """A table of the shares of token slots that hold tokens."""
    lengths = lengths_of(samples)
    table = Table("batches", "conversations in one", "real token slots")
    numbers = range(len(lengths))
    for batch in (4, 16):
        mixed, alike = cut(numbers, batch), cut(by_length(lengths, numbers, 50 * batch), batch)
        table.add_row("padded", str(batch), f"{real_share(lengths, mixed):.3f}")
        table.add_row("padded, grouped by length", str(batch), f"{real_share(lengths, alike):.3f}")
    for batch in (16, 128):
        rows = [
            len(pack([samples[step[i]] for i in part], WIDTHS, MAX_TOKENS).ids)
            for step in cut(numbers, batch)
            for part in share_out([lengths[n] for n in step], BUDGET)
        ]
        full = sum(rows) / (BUDGET * len(rows))
        table.add_row(f"packed (passes {full:.0%} full)", str(batch), f"{sum(lengths) / sum(rows):.3f}")
    console.print(table)


@app.command()
def packed(
    stage: Stage = 1,
    conversations: Annotated[int, typer.Option(help="Whose lengths are counted.")] = 4096,
    batch: Annotated[int, typer.Option(help="Conversations of a step.")] = 16,
    micro: Annotated[int, typer.Option(help="Conversations of a padded pass; a step has batch / micro of them.")] = 4,
    rounds: Annotated[int, typer.Option(help="Measured steps of each contender, in turns, after one that is not.")] = 4,
    model: Model = SMOLLM,
) -> None:
    """Print the share of token slots that hold tokens, and samples a second, packed and padded.

    All compute logits for the response positions alone: what differs is the packing.
    """
    make_llm(model)
    config = configuration(stage, model, "", "", batch, rounds)
    llm, tokenizer = load_llm(config.model, torch.bfloat16)
    ours = AudioVisualLM(llm, WIDTHS)
    choose_trained(config, ours)
    engine = PlainEngine(ours, build_optimizer(ours, config), bfloat16=True, clip=1.0)
    padded = PaddedLM(ours, full=False)
    samples = make_samples(draw(conversations, ("LLaVA", "Valley")), tokenizer)
    lengths, asked = lengths_of(samples), range(batch * (rounds + 1))

    def packed_step(numbers: Sequence[int]) -> None:
        llm.set_attn_implementation(PACKED)
        mine = [samples[n] for n in numbers]
        for part in share_out([lengths[n] for n in numbers], BUDGET):
            engine.backward(pack([mine[n] for n in part], WIDTHS, MAX_TOKENS).to(engine.device), 1000, last=True)
        engine.step()

    def padded_step(numbers: Sequence[int]) -> None:
        llm.set_attn_implementation("sdpa")
        for part in cut(numbers, micro):
            given = {name: x.to(engine.device) for name, x in collate([samples[n] for n in part]).items()}
            with torch.autocast(engine.device.type, torch.bfloat16):
                loss = padded(**given)["loss"]
            loss.backward()
        engine.step()

    mixed = cut(asked, batch)
    alike = [mixed[0], *cut(by_length(lengths, asked[batch:], len(asked)), batch)]
    ways = {
        "packed": (packed_step, mixed),
        "padded": (padded_step, mixed),
        "padded, grouped by length": (padded_step, alike),
    }
    seconds = dict.fromkeys(ways, 0.0)
    with Meter("measuring", rounds + 1, "steps of each") as meter:
        for number in range(rounds + 1):
            for way, (step, batches) in ways.items():
                began = time.perf_counter()
                step(batches[number])  # ends with the gradient's norm, so a device is waited for
                if number:  # the first pays for memory that was never touched
                    seconds[way] += time.perf_counter() - began
            meter.advance(1)
    _machine(f"SmolLM2-135M, stage {stage}, bfloat16, lengths like LLaVA's and Valley's")
    report_shares(samples)
    measured = batch * rounds
    table = Table(f"{measured} conversations", "seconds", "samples/s", "packed is so many times as fast")
    for way, taken in seconds.items():
        table.add_row(way, f"{taken:.1f}", f"{measured / taken:.2f}", f"{taken / seconds['packed']:.2f}")
    console.print(table)


# our loop against a Hugging Face Trainer


def write_store(folder: Path, count: int) -> None:
    """A store of the paper's sizes: conversations of all three sources, each with an item of random features."""
    storage, drawn, rng = Storage(folder), draw(count, ("LLaVA", "Valley", "paper")), np.random.default_rng(1)
    corpus = Corpus()
    corpus.append([Candidate(f"{n}-clip", f"/nowhere/{n}-clip", "video") for n in range(count)], 64)
    corpus.save(storage)
    stored = {
        "visual": {"temporal": Feature(shape=(None, 1024), dtype="float16")}
        | {f"spatial.t{T}": Feature(shape=(N, 1024), dtype="float16")},
        "audio": {f"audio.k{K}": Feature(shape=(K, 768), dtype="float16")},
    }
    for (modality, features), name in zip(stored.items(), (VISUAL, AUDIO), strict=True):
        spec = ColumnSpec(name=name, modality=modality, numerics={"random": 1}, features=features)  # type: ignore[arg-type]
        column = create_column(storage, spec, {})
        for shard, items in corpus.shards.items():
            with column.write_shard(shard) as writer:
                for item in items:
                    arrays = random_arrays(drawn[64 * shard + item.position].medium, rng)
                    kept = {f: arrays[f.split(".")[0]] for f in features if f.split(".")[0] in arrays}
                    if kept:
                        writer.add(item.key, kept, {})
                    else:
                        writer.fail(Failure(key=item.key, code="absent", reason="no such stream"))
    save_conversations(storage, CONVERSATIONS, [conversation for _, conversation in drawn])


def configuration(stage: int, model: Path, store: str, output: str, batch: int, steps: int) -> TrainConfig:
    """The paper's settings of a stage."""
    return TrainConfig(
        stage=1 if stage == 1 else 2,
        model=str(model),
        sources=(Source(store=store, conversations=CONVERSATIONS),),
        visual=VISUAL,
        audio=AUDIO,
        output=output,
        overwrite=True,
        global_batch=batch,
        batch_tokens=BUDGET,
        max_tokens=MAX_TOKENS,
        steps=steps,
        lr=2e-3 if stage == 1 else 2e-5,
    )


def our_trainer(config: TrainConfig) -> dict[str, list[float]]:
    """A run of ours: what its log says of each step."""
    train(config)
    lines = [json.loads(line) for line in (Path(config.output) / "log.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines] for name in ("seconds", "loss", "data_wait")}


class InOrder(torch.utils.data.Dataset[Sample]):
    """The conversations of a run of ours, one by one, in its order."""

    def __init__(self, data: TrainingData, batch: int) -> None:
        self.data, self.batch = data, batch

    def __len__(self) -> int:
        return self.data.steps * self.batch

    def __getitem__(self, number: int) -> Sample:
        step, place = divmod(number, self.batch)
        return self.data.samples(step, place, self.batch)[0]


def usual_trainer(config: TrainConfig, micro: int) -> dict[str, list[float]]:
    """A Hugging Face Trainer on the same conversations: padded, logits everywhere, a loader that reads ahead."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    llm, tokenizer = load_llm(config.model, torch.bfloat16 if config.stage == 1 else torch.float32, "sdpa")
    data = TrainingData(config, tokenizer)
    settings = TrainingArguments(
        output_dir=config.output,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.global_batch // micro,
        max_steps=data.steps,
        learning_rate=config.lr,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        lr_scheduler_type="cosine",
        warmup_steps=1,
        max_grad_norm=config.clip,
        optim="adamw_torch_fused",
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="sequential",
        dataloader_num_workers=1,
        remove_unused_columns=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        PaddedLM(build_model(config, data, llm), full=True),
        settings,
        collate,
        InOrder(data, config.global_batch),
        callbacks=[Clock()],
    )
    ends.append(time.perf_counter())
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"seconds": np.diff(ends).tolist(), "loss": losses}


OURS, COMPILED, TRAINER = "avllm", "avllm, compiled", "Trainer"


@app.command(hidden=True)
def contender(name: str, stage: int, model: Path, folder: Path, batch: int, micro: int, steps: int) -> None:
    """One run in this process: prints what each step took, its loss, and the peak of memory, as JSON."""
    config = configuration(stage, model, str(folder), str(folder / f"{name}-{stage}"), batch, steps)
    if name == TRAINER:
        found: dict[str, Any] = {**usual_trainer(config, micro)}
    else:
        found = {**our_trainer(config.model_copy(update={"compile": name == COMPILED}))}
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps(found))


@app.command()
def trainer(
    batch: Annotated[int, typer.Option(help="Conversations of an optimizer step.")] = 8,
    micro: Annotated[int, typer.Option(help="Conversations of the Trainer's passes; it accumulates them.")] = 4,
    steps: Annotated[int, typer.Option(help="Of each run; the first is not measured.")] = 6,
    rounds: Annotated[int, typer.Option(help="Runs of each trainer and stage, in turns.")] = 2,
    model: Model = SMOLLM,
) -> None:
    """Print samples a second of both stages, ours (plain and compiled) and a Hugging Face Trainer's; our data wait."""
    make_llm(model)
    names = (OURS, COMPILED, TRAINER)
    found: dict[tuple[int, str], list[dict[str, Any]]] = {(stage, name): [] for stage in (1, 2) for name in names}
    with tempfile.TemporaryDirectory() as folder, Meter("running", rounds * len(found), "runs") as meter:
        write_store(Path(folder), max(64, batch * steps))
        for _ in range(rounds):
            for stage, name in found:
                words = [name, stage, model.absolute(), folder, batch, micro, steps]
                found[stage, name].append(_child("contender", *words))
                meter.advance(1, f"stage {stage}, {name}")
    _machine(f"SmolLM2-135M, bfloat16, {batch} conversations a step, {steps - 1} steps measured in {rounds} runs")
    table = Table("stage", "trainer", "s/step", "samples/s", "first step", "peak GB", "wait", "first loss")
    medians: dict[tuple[int, str], float] = {}
    for (stage, name), runs in found.items():
        medians[stage, name] = middle = statistics.median(s for run in runs for s in run["seconds"][1:])
        waits = [wait for run in runs for wait in run.get("data_wait", [])[1:]]
        table.add_row(
            str(stage),
            name,
            f"{middle:.2f}",
            f"{batch / middle:.2f}",
            f"{statistics.median(run['seconds'][0] for run in runs):.1f} s",
            f"{max(run['peak'] for run in runs):.1f}",
            f"{statistics.median(waits):.2%}" if waits else "",
            f"{runs[0]['loss'][0]:.4f}",
        )
    console.print(table)
    for stage, name in itertools.product((1, 2), (OURS, COMPILED)):
        ratios = [
            theirs / mine
            for a, b in zip(found[stage, name], found[stage, TRAINER], strict=True)
            for mine, theirs in zip(a["seconds"][1:], b["seconds"][1:], strict=True)
        ]
        console.print(
            f"stage {stage}: {name} is {statistics.median(ratios):.2f} times as fast as the Trainer on the same step "
            f"(median; {min(ratios):.2f} - {max(ratios):.2f})"
        )


def make_llm(folder: Path) -> None:
    """SmolLM2, if it is not there."""
    if not (folder / "model.safetensors").is_file():
        from demo.llm import make_llm

        make_llm(folder)


def _child(*words: object) -> Any:
    """What a hidden command prints as its last line, from a process of its own."""
    call = [sys.executable, "-m", "benchmarks.training", *map(str, words)]
    done = subprocess.run(
        call, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    )
    return json.loads(done.stdout.splitlines()[-1])


def _machine(what: str) -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    console.print(f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}: {what}")


if __name__ == "__main__":
    run(app)
