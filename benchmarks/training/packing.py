"""Packed batches against padded ones."""

import time
from collections.abc import Sequence
from typing import Annotated

import torch
import typer
from rich.table import Table

from benchmarks.conversations import (
    MAX_TOKENS,
    WIDTHS,
    draw,
    lengths_of,
    make_samples,
)
from benchmarks.padded import PaddedLM, collate
from benchmarks.training.setup import BUDGET, SMOLLM, Model, Stage, configuration, make_llm, show_machine
from store.console import Meter, console
from trainer.attention import NAME as PACKED
from trainer.batch import Sample, fill_passes, pack
from trainer.engine import PlainEngine
from trainer.llm import load_llm
from trainer.model import AudioVisualLM
from trainer.optim import build_optimizer
from trainer.trainable import choose_trained


def cut(numbers: Sequence[int], batch: int) -> list[list[int]]:
    """Split into batches, keeping the order."""
    return [list(numbers[i : i + batch]) for i in range(0, len(numbers), batch)]


def by_length(lengths: Sequence[int], numbers: Sequence[int], window: int) -> list[int]:
    """Sort the numbers by length within windows, as LLaVA's sampler does."""
    return [n for part in cut(numbers, window) for n in sorted(part, key=lambda n: -lengths[n])]


def real_share(lengths: Sequence[int], batches: Sequence[Sequence[int]]) -> float:
    """The share of the token slots of padded batches that hold tokens."""
    slots = sum(len(numbers) * max(lengths[n] for n in numbers) for numbers in batches)
    return sum(lengths[n] for numbers in batches for n in numbers) / slots


def report_shares(samples: Sequence[Sample]) -> None:
    """Print a table of the shares of token slots that hold tokens."""
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
            for part in fill_passes([lengths[n] for n in step], BUDGET)
        ]
        full = sum(rows) / (BUDGET * len(rows))
        table.add_row(f"packed (passes {full:.0%} full)", str(batch), f"{sum(lengths) / sum(rows):.3f}")
    console.print(table)


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
    lengths, chosen = lengths_of(samples), range(batch * (rounds + 1))

    def packed_step(numbers: Sequence[int]) -> None:
        llm.set_attn_implementation(PACKED)
        mine = [samples[n] for n in numbers]
        for part in fill_passes([lengths[n] for n in numbers], BUDGET):
            engine.backward(pack([mine[n] for n in part], WIDTHS, MAX_TOKENS).to(engine.device), 1000, last=True)
        engine.step()

    def padded_step(numbers: Sequence[int]) -> None:
        llm.set_attn_implementation("sdpa")
        for part in cut(numbers, micro):
            inputs = {name: x.to(engine.device) for name, x in collate([samples[n] for n in part]).items()}
            with torch.autocast(engine.device.type, torch.bfloat16):
                loss = padded(**inputs)["loss"]
            loss.backward()
        engine.step()

    mixed = cut(chosen, batch)
    alike = [mixed[0], *cut(by_length(lengths, chosen[batch:], len(chosen)), batch)]
    ways = {
        "packed": (packed_step, mixed),
        "padded": (padded_step, mixed),
        "padded, grouped by length": (padded_step, alike),
    }
    seconds = dict.fromkeys(ways, 0.0)
    with Meter("measuring", rounds + 1, "steps of each") as meter:
        for number in range(rounds + 1):
            for way, (step, batches) in ways.items():
                start = time.perf_counter()
                step(batches[number])  # ends with the gradient norm, which waits for the device
                if number:  # the first also pays for allocating memory
                    seconds[way] += time.perf_counter() - start
            meter.advance(1)
    show_machine(f"SmolLM2-135M, stage {stage}, bfloat16, lengths like LLaVA's and Valley's")
    report_shares(samples)
    measured = batch * rounds
    table = Table(f"{measured} conversations", "seconds", "samples/s", "packed is so many times as fast")
    for way, taken in seconds.items():
        table.add_row(way, f"{taken:.1f}", f"{measured / taken:.2f}", f"{taken / seconds['packed']:.2f}")
    console.print(table)
