"""Both stages through the trainer's own loop, with random weights and random features: speed, memory, data wait."""

import json
import os
import resource
import socket
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from benchmarks.conversations import MAX_TOKENS
from benchmarks.gpu.llms import build_llm, shape_of, word_tokenizer
from benchmarks.gpu.report import LeftOutError, Report, forget
from benchmarks.training.setup import configuration, write_store
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.states import States
from trainer.data import TrainingData
from trainer.flops import Device, peak_flops
from trainer.launch import uses_deepspeed
from trainer.log import RunLog
from trainer.optim import build_optimizer
from trainer.planning.estimate import Load, estimate, load_of
from trainer.planning.memory import Memory, Parameters, build_shape, pass_without_data
from trainer.planning.shapes import column_widths, paper_conversations
from trainer.settings import TrainConfig
from trainer.stage import Run
from trainer.start import build_model
from trainer.zero import build_engine

ITEMS = 256  # of the store; conversations are drawn again and again
WARM_UP = 2  # steps that are not counted
HOST_SHARE = 0.6  # share of the host's free memory that an offloaded run may plan for
NEAR = 0.1  # largest relative difference of measured memory from a dry run's


def configuration_of(report: Report, stage: int, store: str, output: str, batch: int, steps: int) -> TrainConfig:
    """The paper's settings of a stage, on columns of `write_store`."""
    config = configuration(stage, Path("random"), store, output, batch, steps)
    return config.model_copy(update={"batch_tokens": MAX_TOKENS if report.tiny else 8192})


def some_load(config: TrainConfig, shape: LlamaConfig) -> tuple[Load, dict[str, int]]:
    """One step's load of conversations like the paper's, without a store, and each feature's width."""
    widths = column_widths(config)
    return load_of([paper_conversations(config, config.global_batch)], config, shape, widths, 1), widths


class Bench:
    """A store of the paper's sizes, and runs on it, one after the other in this process.

    Args:
        report: where figures go.
        folder: for the store and the runs.
        items: of the store.
    """

    def __init__(self, report: Report, folder: Path, items: int = ITEMS) -> None:
        self.report, self.folder = report, folder
        self.tokenizer = word_tokenizer()
        write_store(folder / "store", 16 if report.tiny else items)

    def settings(self, stage: int, batch: int, steps: int, **changes: Any) -> TrainConfig:
        """Settings of a run on the store; a tiny check has small batches and few steps."""
        batch, steps = (4, WARM_UP + 1) if self.report.tiny else (batch, steps)
        output = str(self.folder / "run")
        config = configuration_of(self.report, stage, str(self.folder / "store"), output, batch, steps)
        return TrainConfig.model_validate({**config.model_dump(), **changes})

    def run(self, what: str, shape: LlamaConfig, config: TrainConfig, mfu: float | None = None) -> list[dict[str, Any]]:
        """Train; report rows/s, MFU, data wait, and memory beside a dry run's estimate. Returns the log's lines.

        Args:
            what: the run's label.
            shape: configuration of the LLM.
            config: settings of the run.
            mfu: target MFU, if there is one.
        """
        device = self.report.device
        data = TrainingData(config, self.tokenizer)
        planned = dry_run(config, shape, data, device)
        forget(device)
        model = build_model(config, data, build_llm(shape, device))
        engine = build_engine(model, build_optimizer(model, config), config)
        log = RunLog(config, 0, engine.attention)
        run = Run(config, data, self.tokenizer, engine, log, None, Saver(States(config.output), engine, 1), None)
        try:
            run.all_steps()
        finally:
            run.saver.close()
            log.close()
        if uses_deepspeed(config):
            engine.close()
        lines = [json.loads(line) for line in (Path(config.output) / "log.jsonl").read_text().splitlines()]
        self._report(what, lines, planned, mfu)
        return lines

    def _report(self, what: str, lines: list[dict[str, Any]], planned: Memory, mfu: float | None) -> None:
        report = self.report
        median = {
            name: statistics.median(line.get(name, 0.0) for line in lines[WARM_UP:])
            for name in ("tokens_per_second", "mfu", "seconds", "data_wait")
        }
        report.fact(f"{what}: attention", lines[-1]["attention"])
        report.measured(
            f"{what}: rows/s",
            f"{median['tokens_per_second']:.0f} ({median['seconds']:.2f} s a step, first {lines[0]['seconds']:.1f} s)",
        )
        report.measured(f"{what}: MFU", f"{median['mfu']:.2f}", f">= {mfu}" if mfu else "",
                        median["mfu"] >= mfu if mfu else None)  # fmt: skip
        report.measured(f"{what}: data wait", f"{median['data_wait']:.2%}", "< 1%", median["data_wait"] < 0.01)
        peak, planned_peak = lines[-1]["memory_gb"], max(planned.totals) / 1e9
        near = abs(planned_peak / peak - 1) <= NEAR
        report.measured(f"{what}: peak GB (a dry run says)", f"{peak:.2f} ({planned_peak:.2f})", "within 10%", near)


def dry_run(config: TrainConfig, shape: LlamaConfig, data: TrainingData, device: torch.device) -> Memory:
    """`train --dry-run`'s estimate of one rank's memory."""
    load = load_of([data.samples(0, 0, 1)], config, shape, data.widths, 1)
    parameters = Parameters.of(build_shape(config, shape, data.widths))
    sharded = uses_deepspeed(config)
    activations = pass_without_data(config, shape, data.widths, load.fullest, sharded, on_gpu=device.type == "cuda")
    one = Device("this", peak_flops(device, torch.bfloat16), 0)
    return estimate(config, parameters, load, activations, data.steps, 1, sharded, one, 0.4).memory


@contextmanager
def bench(report: Report, items: int = ITEMS) -> Iterator[Bench]:
    """A `Bench` in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        yield Bench(report, Path(folder), items)


def named(report: Report, name: str, layers: int | None = None) -> tuple[str, LlamaConfig]:
    """A label and the shape of that name; a tiny check takes the tiny shape."""
    if report.tiny:
        return f"tiny for {name}", shape_of("tiny")
    return name if layers is None else f"{layers} layers of {name}", shape_of(name, layers)


def stage1(report: Report) -> None:
    """Projectors before a frozen LLM of Vicuna-7B's shape, with and without checkpointing and compilation."""
    name, shape = named(report, "7B")
    ways = [(), ("checkpointing",), ("compiled",), ("compiled", "checkpointing")]
    with bench(report) as runs:
        for words in (
            ways[:2] if report.tiny else ways
        ):  # a CPU compiles for a minute; test_trainer_model.py has it do so
            changes = {"compile": "compiled" in words, "gradient_checkpointing": "checkpointing" in words}
            config = runs.settings(1, 64, WARM_UP + 3, **changes)
            target = 0.5 if words == ("compiled",) else None
            runs.run(", ".join(["stage 1", name, *words]), shape, config, target)


def feeding(report: Report) -> None:
    """A small LLM, whose steps are short: does it wait for data?"""
    with bench(report) as runs:
        config = runs.settings(1, 256, WARM_UP + 10)
        name, shape = named(report, "135M")
        runs.run(f"stage 1, {name}, {config.global_batch} conversations a step", shape, config)


def stage2(report: Report) -> None:
    """An LLM of 1B, whole on one GPU: plain torch, float32 weights."""
    with bench(report) as runs:
        config = runs.settings(2, 32, WARM_UP + 4)
        name, shape = named(report, "1B")
        runs.run(f"stage 2, {name}, whole", shape, config)


def lora(report: Report) -> None:
    """Adapters in an LLM of Vicuna-7B's shape, as `trainer/configs/paper-lora.yaml` trains them."""
    with bench(report) as runs:
        adapters = {"rank": 4, "alpha": 8} if report.tiny else {"rank": 128, "alpha": 256}
        config = runs.settings(2, 32, WARM_UP + 3, lora=adapters, gradient_checkpointing=True)
        name, shape = named(report, "7B")
        runs.run(f"stage 2, {name}, LoRA, checkpointing", shape, config)


def offload(report: Report) -> None:
    """ZeRO 3 with the optimizer in host memory: 7B, or as many of its layers as the host holds."""
    import psutil

    become_one_rank()
    free = psutil.virtual_memory().available * HOST_SHARE
    with bench(report) as runs:
        config = runs.settings(2, 32, WARM_UP + 2, zero={"stage": 3, "offload": True}, gradient_checkpointing=True)
        data = TrainingData(config, runs.tokenizer)
        shapes = (named(report, "7B", layers) for layers in range(32, 0, -4))
        fitting = ((name, shape) for name, shape in shapes if host_bytes(config, shape, data) <= free)
        name, shape = next(fitting, (None, None))
        if shape is None:
            raise LeftOutError(f"{free / 1e9:.0f} GB of host memory hold not even 4 layers of 7B and their optimizer")
        runs.run(f"stage 2, {name}, ZeRO 3, optimizer offloaded", shape, config)
        held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        planned = host_bytes(config, shape, data) / 1e9
        report.measured("the same: GB of host memory (a dry run says)", f"{held:.1f} ({planned:.1f})")


def host_bytes(config: TrainConfig, shape: LlamaConfig, data: TrainingData) -> float:
    """A dry run's estimate of host memory in training, in bytes."""
    load = load_of([data.samples(0, 0, 1)], config, shape, data.widths, 1)
    parameters = Parameters.of(build_shape(config, shape, data.widths))
    one = Device("this", 1.0, 0)
    return estimate(config, parameters, load, 0.0, data.steps, 1, True, one, 0.4).memory.training


def become_one_rank() -> None:
    """Set the variables that a launcher gives to a single process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(rank)
