"""Our loop against a Hugging Face Trainer."""

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from benchmarks.padded import PaddedLM, collate
from benchmarks.training.setup import (
    SMOLLM,
    Model,
    configuration,
    make_llm,
    show_machine,
    write_store,
)
from store.console import Meter, console
from trainer.batch import Sample
from trainer.data import TrainingData
from trainer.llm import load_llm
from trainer.settings import TrainConfig
from trainer.stage import train
from trainer.start import build_model


def our_trainer(config: TrainConfig) -> dict[str, list[float]]:
    """Train with our loop. Returns the figures its log has for each step."""
    train(config)
    lines = [json.loads(line) for line in (Path(config.output) / "log.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines] for name in ("seconds", "loss", "data_wait")}


class InOrder(torch.utils.data.Dataset[Sample]):
    """The conversations one by one, in the order of our loop."""

    def __init__(self, data: TrainingData, batch: int) -> None:
        self.data, self.batch = data, batch

    def __len__(self) -> int:
        return self.data.steps * self.batch

    def __getitem__(self, number: int) -> Sample:
        step, place = divmod(number, self.batch)
        return self.data.samples(step, place, self.batch)[0]


def usual_trainer(config: TrainConfig, micro: int) -> dict[str, list[float]]:
    """Train with a Hugging Face Trainer on the same conversations: padded, all logits, a loader that prefetches."""
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
        max_grad_norm=config.clip or 0.0,
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


def contender(name: str, stage: int, model: Path, folder: Path, batch: int, micro: int, steps: int) -> None:
    """One run in this process: prints what each step took, its loss, and the peak of memory, as JSON."""
    config = configuration(stage, model, str(folder), str(folder / f"{name}-{stage}"), batch, steps)
    if name == TRAINER:
        figures: dict[str, Any] = {**usual_trainer(config, micro)}
    else:
        figures = {**our_trainer(config.model_copy(update={"compile": name == COMPILED}))}
    figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps(figures))


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
    results: dict[tuple[int, str], list[dict[str, Any]]] = {(stage, name): [] for stage in (1, 2) for name in names}
    with tempfile.TemporaryDirectory() as folder, Meter("running", rounds * len(results), "runs") as meter:
        write_store(Path(folder), max(64, batch * steps))
        for _ in range(rounds):
            for stage, name in results:
                words = [name, stage, model.absolute(), folder, batch, micro, steps]
                results[stage, name].append(_child("contender", *words))
                meter.advance(1, f"stage {stage}, {name}")
    show_machine(f"SmolLM2-135M, bfloat16, {batch} conversations a step, {steps - 1} steps measured in {rounds} runs")
    table = Table("stage", "trainer", "s/step", "samples/s", "first step", "peak GB", "wait", "first loss")
    medians: dict[tuple[int, str], float] = {}
    for (stage, name), runs in results.items():
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
            for a, b in zip(results[stage, name], results[stage, TRAINER], strict=True)
            for mine, theirs in zip(a["seconds"][1:], b["seconds"][1:], strict=True)
        ]
        console.print(
            f"stage {stage}: {name} is {statistics.median(ratios):.2f} times as fast as the Trainer on the same step "
            f"(median; {min(ratios):.2f} - {max(ratios):.2f})"
        )


def _child(*words: object) -> Any:
    """Run a hidden command in its own process. Returns its last line, parsed as JSON."""
    call = [sys.executable, "-m", "benchmarks.training", *map(str, words)]
    done = subprocess.run(
        call, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    )
    return json.loads(done.stdout.splitlines()[-1])
