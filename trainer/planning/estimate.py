"""What a run will need, before it takes any GPU: memory, hours, bytes of a saved state (`train --dry-run`)."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from rich.table import Table

from store import UserError
from store.console import console
from trainer.batch import Batch, Sample, fill_passes, pack
from trainer.checkpoint.info import is_checkpoint
from trainer.checks import check_plan
from trainer.data import TrainingData
from trainer.evaluation import held_out_of
from trainer.flops import DEVICES, Device, forward_flops, peak_flops, step_flops
from trainer.launch import is_first, uses_deepspeed, world_size
from trainer.llm import check_packing, load_shape, say_rounding
from trainer.loader import SLACK
from trainer.planning.memory import (
    MASTER,
    MOMENTS,
    Memory,
    Parameters,
    build_shape,
    pass_without_data,
    plain_memory,
    zero_memory,
)
from trainer.planning.shapes import column_widths, llm_shape, paper_conversations
from trainer.report import report_data
from trainer.settings import TrainConfig
from trainer.start import check_checkpoint
from trainer.trainable import precision

MFU = 0.4  # assumed model FLOP utilization: share of the device's peak that goes into the model
PROCESSOR = "this processor"
SPARE = 0.08  # share of a device's memory left for CUDA's context, NCCL and fragmentation
SAMPLED = 512  # conversations whose lengths are measured
RANKS_A_NODE = 8


def device_of(name: str | None, dtype: torch.dtype) -> Device:
    """A GPU of the data sheets; without a name, the first one of this machine, or its CPU.

    Raises:
        UserError: no GPU has that name.
    """
    if name:
        for device in DEVICES:
            if device.name.lower() == name.lower():
                return device
        raise UserError(f"--device {name}: known are {', '.join(device.name for device in DEVICES)}")
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.name, peak_flops(torch.device("cuda"), dtype), properties.total_memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(PROCESSOR, peak_flops(torch.device("cpu"), dtype), memory)


@dataclass(frozen=True)
class Load:
    """The work of a step, measured on a sample of steps.

    Attributes:
        positions: of a conversation, on average.
        flops: of training on a conversation, on average.
        passes: of a step, the most of any rank.
        fullest: a pass as full as they become.
        inputs: bytes of features and tokens in a rank's share of a step.
    """

    positions: float
    flops: float
    passes: int
    fullest: Batch
    inputs: float


def load_of(
    batches: Sequence[Sequence[Sample]], config: TrainConfig, shape: Any, widths: dict[str, int], ranks: int
) -> Load:
    """Measure the work of global batches.

    Args:
        batches: some of the run's.
        config: of the run.
        shape: configuration of the LLM.
        widths: the width D of each feature.
        ranks: W, which share each batch.
    """
    share, samples = config.global_batch // ranks, [sample for batch in batches for sample in batch]
    lengths = [min(len(sample.tokens.ids), config.max_tokens) for sample in samples]
    shares = [lengths[first : first + share] for first in range(0, len(lengths), share)]
    targets = sum(sum(sample.tokens.answers[: config.max_tokens]) for sample in samples)
    flops = step_flops(forward_flops(shape, lengths, targets), config.stage == 2 and not config.lora)
    full = min(config.batch_tokens, share * max(lengths))
    repeated = lengths * (1 + 2 * full // sum(lengths))  # enough for one full pass
    filled = fill_passes(repeated, full)
    numbers = max(filled, key=lambda numbers: sum(repeated[i] for i in numbers))
    fullest = pack([samples[i % len(samples)] for i in numbers], widths, config.max_tokens)
    a_position = sum(tensor.nbytes for tensor in fullest.tensors()) / len(fullest.ids)
    return Load(
        positions=sum(lengths) / len(samples),
        flops=flops / len(samples),
        passes=max(len(fill_passes(part, config.batch_tokens)) for part in shares),
        fullest=fullest,
        inputs=a_position * share * sum(lengths) / len(lengths),
    )


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        memory: of a rank.
        hours: for all steps.
        state: bytes of a saved state.
        checkpoint: bytes of the checkpoint.
    """

    memory: Memory
    hours: float
    state: int
    checkpoint: int


def estimate(
    config: TrainConfig,
    parameters: Parameters,
    load: Load,
    activations: float,
    steps: int,
    ranks: int,
    sharded: bool,
    device: Device,
    mfu: float,
) -> Estimate:
    """Estimate the memory of each rank's device and host, and the hours that a run takes.

    Args:
        config: of the run.
        parameters: of the model.
        load: of the run's steps.
        activations: bytes of a full pass.
        steps: of the run.
        ranks: W.
        sharded: whether DeepSpeed runs the steps.
        device: of a rank.
        mfu: model FLOP utilization: share of the device's peak that goes into the model.
    """
    if sharded:
        memory = zero_memory(config, parameters, activations, load.inputs, ranks, load.passes)
    else:
        memory = plain_memory(config, parameters, activations, load.inputs)
    return Estimate(
        memory=memory,
        hours=steps * config.global_batch * load.flops / (ranks * device.peak * mfu) / 3600,
        state=(MASTER + MOMENTS) * parameters.trained,
        checkpoint=precision(config).itemsize * (parameters.llm - parameters.adapters) + 4 * parameters.projectors,
    )


@dataclass(frozen=True)
class Forecast:
    """What a run would do and need.

    Attributes:
        estimate: what it needs.
        parameters: of its model.
        load: of its steps.
        steps: of the run.
        ranks: W.
        device: of a rank.
        data: that it would train on; None if `conversations` were assumed instead.
        libraries: bytes that a process holds before it opens its data.
    """

    estimate: Estimate
    parameters: Parameters
    load: Load
    steps: int
    ranks: int
    device: Device
    data: TrainingData | None
    libraries: int


def forecast(
    config: TrainConfig,
    ranks: int | None = None,
    device: str | None = None,
    mfu: float = MFU,
    conversations: int | None = None,
) -> Forecast | None:
    """What a run would do and need; None on all but the first rank. No weights are read.

    Args:
        config: of the run.
        ranks: that a launcher would start; None for those it did start, or one process of plain torch.
        device: a GPU of the data sheets; None for what is here.
        mfu: assumed model FLOP utilization: share of the device's peak that goes into the model.
        conversations: how many to assume, of the paper's kinds, in place of the sources; None reads the sources.

    Raises:
        UserError: as `train` does.
    """
    check_plan(config, ranks, reads_sources=not conversations)
    sharded = uses_deepspeed(config) or (ranks is not None and config.zero is not None)
    chosen, ranks = device_of(device, precision(config)), ranks or world_size()
    process = psutil.Process().memory_info()
    libraries = process.rss - getattr(process, "shared", 0)
    known = llm_shape(config.model) if conversations else None
    shape, tokenizer = (known, None) if known else load_shape(config.model)
    check_packing(shape, config.max_tokens, config.model)
    say_rounding(shape, precision(config), config.model)
    data = None
    if conversations:
        widths = column_widths(config)
        batches = [paper_conversations(config, config.global_batch)]
        steps = config.steps or math.ceil(conversations * (config.epochs or 0) / config.global_batch)
    else:
        data = TrainingData(config, tokenizer)
        if is_checkpoint(config.model):
            check_checkpoint(config, data)
        widths, steps = data.widths, data.steps
        count = min(steps, -(-SAMPLED // config.global_batch))
        batches = [data.samples(number * steps // count, 0, 1) for number in range(count)] if is_first() else []
    if not is_first():
        return None
    load = load_of(batches, config, shape, widths, ranks)
    parameters = Parameters.of(build_shape(config, shape, widths))
    activations = pass_without_data(config, shape, widths, load.fullest, sharded, chosen.name != PROCESSOR)
    needs = estimate(config, parameters, load, activations, steps, ranks, sharded, chosen, mfu)
    return Forecast(needs, parameters, load, steps, ranks, chosen, data, libraries)


def dry_run(
    config: TrainConfig,
    ranks: int | None = None,
    device: str | None = None,
    mfu: float = MFU,
    conversations: int | None = None,
) -> None:
    """Print what a run would do and need; arguments and errors are those of `forecast`."""
    plan = forecast(config, ranks, device, mfu, conversations)
    held_out = None if conversations else held_out_of(config)
    if plan is None:
        return
    if plan.data:
        report_data(plan.data, config, held_out, write=False)
    _show_memory(plan)
    console.print(f"{plan.parameters.all:,} weights, of which {plan.parameters.trained:,} are trained")
    console.print(
        f"{plan.load.positions:.0f} positions a conversation, {len(plan.load.fullest.ids)} in a full pass, at most "
        f"{plan.load.passes} passes a step; {plan.steps} steps take {show_hours(plan.estimate.hours)} on "
        f"{plan.ranks} x {plan.device.name} at an assumed MFU of {mfu}"
    )
    console.print(verdict(max(plan.estimate.memory.totals), plan.device))


def _show_memory(plan: Forecast) -> None:
    needs, device = plan.estimate, plan.device
    whose = "process" if device.name == PROCESSOR else "rank's device"
    table = Table(f"GB of each {whose}", "at the start", "in a pass", "in a step")
    for name, row in needs.memory.device.items():
        table.add_row(name, *(f"{size / 1e9:.2f}" for size in row))
    table.add_section()
    table.add_row("all", *(f"{size / 1e9:.2f}" for size in needs.memory.totals))
    console.print(table)
    _show_host(plan)
    console.print(
        f"a saved state takes {needs.state / 1e9:.2f} GB of disk, the checkpoint {needs.checkpoint / 1e9:.2f} GB"
    )


def _show_host(plan: Forecast) -> None:
    """Print what the ranks of a machine hold of its memory, beside a device, and where time goes as they start."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", min(plan.ranks, RANKS_A_NODE)))
    held, mapped = (plan.data.held, plan.data.mapped) if plan.data else (0, 0)
    weights = plan.estimate.memory if plan.device.name != PROCESSOR else None  # on a processor they are in the table
    batches = 2 * SLACK * plan.load.inputs if weights else 0
    rank = plan.libraries + held + batches
    starting, training = (rank + n for n in ((weights.starting, weights.training) if weights else (0, 0)))
    console.print(
        f"host memory of {local} rank{'s' * (local > 1)}: {(local * starting + mapped) / 1e9:.1f} GB as they start, "
        f"{(local * training + mapped) / 1e9:.1f} GB in training; each has {plan.libraries / 1e9:.2f} GB of libraries, "
        f"{held / 1e9:.2f} GB of numbers of its data, {batches / 1e9:.2f} GB of batches; all map {mapped / 1e9:.2f} GB"
    )
    if plan.data:
        times = ", ".join(f"{what} {seconds:.1f} s" for what, seconds in plan.data.seconds.items())
        console.print(f"at the start, as measured here: {times}")


def show_hours(hours: float) -> str:
    """A duration in hours, or in minutes if it is less than one hour."""
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} minutes"


def verdict(need: float, device: Device) -> str:
    """Say whether a rank, which needs `need` bytes, fits its device."""
    usage = f"{need / 1e9:.1f} of {device.memory / 1e9:.0f} GB of {device.name}"
    if need <= device.memory * (1 - SPARE):
        return f"fits: {usage}"
    return (
        f"does not fit: {usage}, of which {SPARE:.0%} are left for CUDA and NCCL; what helps: "
        "gradient_checkpointing=true, fewer batch_tokens, more ranks, zero.stage=3, zero.offload=true, lora"
    )
