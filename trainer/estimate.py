"""What a run will take, before any GPU is taken: memory, hours, bytes of a saved state (`train --dry-run`)."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from rich.table import Table
from transformers import AutoTokenizer

from store import UserError
from store.console import console
from trainer.batch import Batch, Sample, pack, share_out
from trainer.data import TrainingData
from trainer.distributed import check_world, is_first, world_size
from trainer.flops import PEAK, forward_flops, peak_flops, step_flops
from trainer.memory import (
    MASTER,
    MOMENTS,
    Memory,
    Parameters,
    build_shape,
    pass_without_data,
    plain_memory,
    shards_state,
    zero_memory,
)
from trainer.settings import TrainConfig
from trainer.shapes import SHAPES, llm_shape
from trainer.stage import check_lengths, held_out_of, precision, report_data

MEMORY = {  # bytes, by a part of the device's name, as in `PEAK`
    "H200": 141e9, "H100": 80e9, "A100": 80e9, "L40S": 48e9, "RTX 4090": 24e9, "A40": 48e9, "V100": 32e9,
}  # fmt: skip
SPARE = 0.08  # of a device's memory: CUDA's context, NCCL, fragmentation
SAMPLED = 512  # conversations that lengths are taken of
RANKS_A_NODE = 8
LETTERS_A_TOKEN = 4  # of English text, where there is no tokenizer to ask


@dataclass(frozen=True)
class Device:
    """What a rank runs on.

    Attributes:
        name: for messages.
        memory: bytes.
        peak: operations a second at best.
        gpu: whether it is one, on which DeepSpeed overlaps communication by a second bucket.
    """

    name: str
    memory: float
    peak: float
    gpu: bool

    @classmethod
    def named(cls, name: str) -> "Device":
        """A GPU of the data sheets.

        Raises:
            UserError: none of that name.
        """
        part = next((part for part in PEAK if part.lower() == name.lower()), None)
        memory = next((size for known, size in MEMORY.items() if part and known in part), None)
        if part is None or memory is None:
            raise UserError(f"--device {name}: known are {', '.join(PEAK)}")
        return cls(part, memory, PEAK[part], True)

    @classmethod
    def here(cls, dtype: torch.dtype) -> "Device":
        """The first GPU of this machine, or its processor."""
        if torch.cuda.is_available():
            device = torch.device("cuda")
            found = torch.cuda.get_device_properties(device)
            return cls(found.name, found.total_memory, peak_flops(device, dtype), True)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return cls("this processor", memory, peak_flops(torch.device("cpu"), dtype), False)


class RoughTokenizer:
    """Tokens of four letters each: good for lengths, where no tokenizer can be had."""

    eos_token_id = 0

    def __call__(self, text: str, **_: Any) -> Any:
        """Ids and offsets as a fast tokenizer gives them."""
        starts = range(0, len(text), LETTERS_A_TOKEN)
        return SimpleNamespace(input_ids=[1] * len(starts), offset_mapping=[(s, s + LETTERS_A_TOKEN) for s in starts])


def _tokenizer(model: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        if model not in SHAPES:
            raise UserError(f"field 'model': {model}: {' '.join(str(error).split())[:300]}") from None
        console.print(
            f"{model} cannot be reached: its shape is known, its tokens are taken as {LETTERS_A_TOKEN} letters"
        )
        return RoughTokenizer()


@dataclass(frozen=True)
class Load:
    """What steps are made of, from a sample of them.

    Attributes:
        conversations: of the sample.
        rows: of a conversation, on average.
        flops: of training on a conversation, on average.
        passes: of a step, the most of any rank.
        fullest: a pass that is as full as they become.
    """

    conversations: int
    rows: float
    flops: float
    passes: int
    fullest: Batch


def load_of(
    batches: Sequence[Sequence[Sample]], config: TrainConfig, shape: Any, widths: dict[str, int], ranks: int
) -> Load:
    """What global batches take.

    Args:
        batches: some of a run's.
        config: of the run.
        shape: of the LLM.
        widths: of each feature.
        ranks: that share each batch.
    """
    share = config.global_batch // ranks
    passes = 0
    for batch in batches:
        for first in range(0, len(batch), share):
            lengths = [_length(sample, config) for sample in batch[first : first + share]]
            passes = max(passes, len(share_out(lengths, config.batch_tokens)))
    samples = [sample for batch in batches for sample in batch]
    lengths = [_length(sample, config) for sample in samples]
    targets = sum(sum(sample.tokens.answers[: config.max_tokens]) for sample in samples)
    flops = step_flops(forward_flops(shape, lengths, targets), config.stage == 2 and not config.lora)
    return Load(
        conversations=len(samples),
        rows=sum(lengths) / len(samples),
        flops=flops / len(samples),
        passes=passes,
        fullest=_fullest(samples, config, widths),
    )


def _length(sample: Sample, config: TrainConfig) -> int:
    return min(len(sample.tokens.ids), config.max_tokens)


def _fullest(samples: Sequence[Sample], config: TrainConfig, widths: dict[str, int]) -> Batch:
    chosen: list[Sample] = []
    for sample in itertools.cycle(samples):
        chosen.append(sample)
        if sum(_length(s, config) for s in chosen) > 2 * config.batch_tokens:
            break
    lengths = [_length(sample, config) for sample in chosen]
    fullest = max(share_out(lengths, config.batch_tokens), key=lambda share: sum(lengths[i] for i in share))
    return pack([chosen[i] for i in fullest], widths, config.max_tokens)


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        memory: of a rank.
        hours: of all its steps.
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
    ranks: int | None,
    device: Device,
    mfu: float,
) -> Estimate:
    """What a run takes of each rank's device and host, and how long.

    Args:
        config: of the run.
        parameters: of the model.
        load: of the run's steps.
        activations: bytes of a full pass.
        steps: of the run.
        ranks: that a launcher starts; None for those it did start, or one process of plain torch.
        device: of a rank.
        mfu: share of the device's operations at best that go into the model.
    """
    world = ranks or world_size()
    if shards_state(config, ranks):
        memory = zero_memory(config, parameters, activations, world, load.passes, device.gpu)
    else:
        memory = plain_memory(config, parameters, activations)
    return Estimate(
        memory=memory,
        hours=steps * config.global_batch * load.flops / (world * device.peak * mfu) / 3600,
        state=(MASTER + MOMENTS) * parameters.trained,
        checkpoint=precision(config).itemsize * (parameters.llm - parameters.adapters) + 4 * parameters.projectors,
    )


def dry_run(config: TrainConfig, ranks: int | None = None, device: str | None = None, mfu: float = 0.4) -> None:
    """Join conversations with columns, and say what a run would do and take. No weights are read.

    Args:
        config: of the run.
        ranks: that a launcher would start; None for those it did start, or one process of plain torch.
        device: a GPU of the data sheets; None for what is here.
        mfu: assumed share of the device's operations at best that go into the model.

    Raises:
        UserError: as `train` does.
    """
    check_world(config, ranks)
    shape, chosen = llm_shape(config.model), Device.named(device) if device else Device.here(precision(config))
    data = TrainingData(config, _tokenizer(config.model))
    check_lengths(config, data)
    held_out_of(config)
    if not is_first():
        return
    report_data(data, config)
    count, world = min(data.steps, -(-SAMPLED // config.global_batch)), ranks or world_size()
    batches = [data.samples(number * data.steps // count, 0, 1) for number in range(count)]
    load = load_of(batches, config, shape, data.widths, world)
    parameters = Parameters.of(build_shape(config, shape, data.widths))
    held = [pass_without_data(c, shape, data.widths, load.fullest, shards_state(config, ranks)) for c in both(config)]
    activations = held[config.gradient_checkpointing]
    found = estimate(config, parameters, load, activations, data.steps, ranks, chosen, mfu)
    _show_memory(found, parameters, world)
    console.print(
        f"activations of a pass of {len(load.fullest.ids)} rows, {len(load.fullest.targets)} response tokens: "
        f"{held[0] / 1e9:.2f} GB, with gradient checkpointing {held[1] / 1e9:.2f} GB"
    )
    console.print(
        f"{load.rows:.0f} rows a conversation (of {load.conversations}), at most {load.passes} passes a step; "
        f"{data.steps} steps take {found.hours:.2f} h on {world} x {chosen.name} at an assumed MFU of {mfu}"
    )
    console.print(verdict(max(found.memory.on_device), chosen))


def both(config: TrainConfig) -> list[TrainConfig]:
    """Without gradient checkpointing, and with it."""
    return [config.model_copy(update={"gradient_checkpointing": value}) for value in (False, True)]


def _show_memory(found: Estimate, parameters: Parameters, ranks: int) -> None:
    table = Table("GB of each rank's device", "at the start", "between steps", "in a pass", "in a step")
    for name, row in found.memory.device.items():
        table.add_row(name, *(f"{size / 1e9:.2f}" for size in row))
    table.add_section()
    table.add_row("all", *(f"{size / 1e9:.2f}" for size in found.memory.on_device))
    console.print(table)
    console.print(
        f"{parameters.projectors / 1e6:.2f} M weights of projectors, {parameters.llm / 1e6:.2f} M of the LLM; "
        f"{parameters.trained / 1e6:.2f} M are trained"
    )
    local = int(os.environ.get("LOCAL_WORLD_SIZE", min(ranks, RANKS_A_NODE)))
    starting, training, *_ = found.memory.on_host
    console.print(
        f"host memory of {local} ranks: {local * starting / 1e9:.1f} GB as they start, "
        f"{local * training / 1e9:.1f} GB in training; a saved state takes {found.state / 1e9:.2f} GB of disk, "
        f"the checkpoint {found.checkpoint / 1e9:.2f} GB"
    )


def verdict(need: float, device: Device) -> str:
    """Whether a rank fits its device."""
    said = f"{need / 1e9:.1f} of {device.memory / 1e9:.0f} GB of {device.name}"
    if need <= device.memory * (1 - SPARE):
        return f"fits: {said}"
    return (
        f"does not fit: {said}, of which {SPARE:.0%} are left for CUDA and NCCL; what helps: "
        "gradient_checkpointing=true, fewer batch_tokens, more ranks, zero.stage=3, zero.offload=true, lora"
    )
