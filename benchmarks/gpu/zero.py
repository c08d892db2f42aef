"""DeepSpeed with one rank: losses match plain torch's, and a killed run resumes bit for bit."""

import json
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.gpu.llms import build_llm, shape_of, word_tokenizer
from benchmarks.gpu.report import Report
from benchmarks.gpu.training import become_one_rank, configuration_of
from benchmarks.training.setup import write_store
from trainer.checkpoint.states import States
from trainer.settings import TrainConfig
from trainer.stage import train

SAVED, KILLED = 3, 5  # steps between saved states; steps logged before the kill
ROUNDING = {"float32": 1e-4, "bfloat16": 1e-2}  # largest relative difference of losses


def runs_of(report: Report, folder: Path) -> dict[str, TrainConfig]:
    """Settings of a run for each precision and way of sharding, on a folder's small LLM."""
    runs = {}
    config = configuration_of(report, 2, str(folder / "store"), "", 4, 7 if report.tiny else 40)
    for precision in ROUNDING:
        for name, zero in {"plain": None, "ZeRO 2": {"stage": 2}, "ZeRO 3": {"stage": 3}}.items():
            changes = {"model": str(folder / "llm"), "precision": precision, "zero": zero, "save_every": SAVED,
                       "lr": 1e-3, "output": str(folder / f"{name}, {precision}")}  # fmt: skip
            runs[f"{name}, {precision}"] = TrainConfig.model_validate({**config.model_dump(), **changes})
    return runs


def prepare(folder: Path) -> None:
    """Write the store and the LLM."""
    write_store(folder / "store", 24)
    build_llm(shape_of("tiny"), torch.device("cpu")).save_pretrained(folder / "llm")
    word_tokenizer().save_pretrained(folder / "llm")


def train_all(configs: list[TrainConfig]) -> None:
    """Train one after the other in this process."""
    for config in configs:
        become_one_rank()
        train(config)


def logged(config: TrainConfig) -> list[dict[str, Any]]:
    """The complete lines of a run's log."""
    path = Path(config.output) / "log.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def in_process(report: Report, function: Any, *given: Any) -> Any:
    """Start a function in another process, which can be killed; this process never touches the GPU."""
    start_method: Any = multiprocessing.get_context("fork" if report.tiny else "spawn")
    process = start_method.Process(target=function, args=given)
    process.start()
    return process


def finish(process: Any) -> None:
    """Wait for a process to succeed."""
    process.join()
    assert process.exitcode == 0, f"a training process ended with {process.exitcode}"


def measure(report: Report) -> None:
    """Compare losses; kill a run after a saved state, resume it, and compare all that it leaves."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finish(in_process(report, prepare, folder))
        runs = runs_of(report, folder)
        whole = runs["ZeRO 3, bfloat16"]
        killed = whole.model_copy(update={"output": str(folder / "killed")})
        trainings = in_process(report, train_all, [*runs.values(), killed])
        while trainings.is_alive() and (len(logged(killed)) < KILLED or not States(killed.output).steps()):
            time.sleep(0.002)
        assert trainings.is_alive(), f"trainings ended with {trainings.exitcode}"
        os.kill(trainings.pid, signal.SIGKILL)
        trainings.join()
        compare_losses(report, runs)
        saved = States(killed.output).steps()
        report.fact(
            "kill -9: steps logged, newest saved state", f"{len(logged(killed))} of {killed.steps}, {saved[-1]}"
        )
        finish(in_process(report, train_all, [killed]))
        compare_runs(report, whole, killed)


def compare_losses(report: Report, runs: dict[str, TrainConfig]) -> None:
    """Compare the losses of ZeRO and plain torch, step by step."""
    for name, config in runs.items():
        plain = logged(runs[f"plain, {config.precision}"])
        errors = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(logged(config), plain, strict=True)]
        if config.zero:
            report.agrees(f"{name}: largest relative difference of a loss from plain torch's, {len(errors)} steps",
                          max(errors), ROUNDING[config.precision])  # fmt: skip


def compare_runs(report: Report, whole: TrainConfig, killed: TrainConfig) -> None:
    """Compare the losses and weights of a run that was never killed and of one that was."""
    losses = [[(line["step"], line["loss"], line["grad_norm"]) for line in logged(run)] for run in (whole, killed)]
    report.fact("resumed: losses and norms equal bit for bit", losses[0] == losses[1], "True", losses[0] == losses[1])
    equal = count = 0
    for path in sorted((Path(whole.output) / "checkpoint").rglob("*.safetensors")):
        other = load_file(Path(killed.output) / path.relative_to(whole.output))
        for name, tensor in load_file(path).items():
            count, equal = count + 1, equal + torch.equal(tensor, other[name])
    report.fact(
        "resumed: tensors of the checkpoint equal bit for bit", f"{equal} of {count}", f"{count}", equal == count
    )
    assert losses[0] == losses[1], "the resumed run's losses differ"
    assert equal == count > 0, "the resumed run's weights differ"
