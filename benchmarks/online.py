"""The same training with encoders online in each step, as is usual, against cached features.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.online

Both contenders use the trainer's model, optimizer, loss, conversations and order. The cached one is the trainer's own
path. The online one decodes the files of a step with this project's decoder, in threads, while the step before trains;
encodes all frames and segments of the step in batches, without gradients, in the same precision; and packs the result
as the cached one does. The losses of the first step must agree.

Each contender is its own process, so that its peak memory is its own. They take turns, step by step. A turn ends when
both the step and the loading of the next one are done, so nothing runs during the other's turn. Memory placement makes
all steps of a process a little faster or slower, so each round starts new processes.

The light setups are the hardest for caching: one-layer encoders leave next to nothing to save, and a one-layer LLM
hides none of the other work.
"""

import contextlib
import math
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from rich.table import Table

from benchmarks.steps import BATCH, SHARDS, Done, Setup, cached, featurizing, make_store, online
from demo.llm import make_llm
from store.console import Meter, console, make_app, run
from trainer.flops import peak_flops

LARGE, LIGHT = "clip:ViT-L-14/random", "clip:ViT-S-32/random"
SETUPS = {
    "clips": Setup("clips with sound, ViT-L/14 at 32 frames and CLAP", "video", 12, LARGE, -2, 32, True),
    "stills": Setup("stills, ViT-L/14", "image", 24, LARGE, -2, 1, False),
    "light-clips": Setup("clips without sound, one layer of ViT-S/32 at 2 frames", "video", 24, LIGHT, 1, 2, False, 1),
    "light-stills": Setup("stills, one layer of ViT-S/32", "image", 24, LIGHT, 1, 1, False, 1),
}
PAPER = {1: 3, 2: 1}  # epochs of each stage
app = make_app("Training with encoders online in each step against cached features.")


@dataclass(frozen=True)
class Raced:
    """Each contender's turns in one stage of a setup."""

    stage: int
    online: list[Done]
    cached: list[Done]

    @property
    def steps(self) -> tuple[float, float]:
        """Median seconds of a step, online and cached."""
        theirs, ours = (statistics.median(done.seconds for done in turns) for turns in (self.online, self.cached))
        return theirs, ours

    @property
    def ratio(self) -> float:
        """Median speedup of the cached contender over the online one on the same step."""
        return statistics.median(a.seconds / b.seconds for a, b in zip(self.online, self.cached, strict=True))

    @property
    def spared(self) -> float:
        """Seconds that cached features save per item in an epoch: the median over the same steps."""
        return statistics.median(a.seconds - b.seconds for a, b in zip(self.online, self.cached, strict=True)) / BATCH


class Child:
    """A contender's process, which does one turn on request."""

    def __init__(self, work: Callable[..., Iterator[Done]], *words: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([Setup.__module__])  # packages are imported once, for all children
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, words))
        self._process.start()
        theirs.close()

    def turn(self) -> Done:
        """Let it do its next turn, and wait for it."""
        self._pipe.send(None)
        done: Done = self._pipe.recv()
        return done

    def end(self) -> None:
        """End the process, and wait for it."""
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, work: Callable[..., Iterator[Done]], words: Sequence[Any]) -> None:
    turns = work(*words)
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            pipe.send(next(turns))


@app.command()
def race(
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SETUPS)}; all if not given.")] = None,
    steps: Annotated[int, typer.Option(help="Measured steps of each contender, after one that is not.")] = 4,
    rounds: Annotated[int, typer.Option(help="How often both start anew, for as many steps again.")] = 1,
    epoch: Annotated[int, typer.Option(help="Items of the epoch whose hours are told.")] = 100_000,
    threads: Annotated[int, typer.Option(help="Torch and decoding threads.")] = os.cpu_count() or 1,
    model: Annotated[Path, typer.Option(help="The LLM; made of a package if it is not there.")] = Path("build/smollm2"),
    plot: Annotated[Path | None, typer.Option(help="A file for a plot of hours against epochs.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="ViT-B/32 at 8 frames for ViT-L/14 at 32: to see that it runs.")
    ] = False,
) -> None:
    """Print seconds of a step, hours of an epoch, peak of memory, and the epochs after which features have paid."""
    torch.set_num_threads(threads)
    make_llm(model)
    dtype = _machine(threads)
    results: dict[str, tuple[float, list[Raced]]] = {}
    for name in only or SETUPS:
        setup = replace(SETUPS[name], dtype=dtype)
        if quick and setup.encoder == LARGE:
            small = setup.what.replace("ViT-L/14", "ViT-B/32").replace("32 frames", "8 frames")
            setup = replace(setup, what=small, encoder="clip:ViT-B-32/random", frames=min(8, setup.frames))
        folder = Path(tempfile.mkdtemp())
        try:
            console.print(f"\n{setup.what}")
            make_store(setup, folder)
            item = _featurize(setup, folder, threads)
            raced = [_race(setup, folder, threads, stage, str(model), steps + 1, rounds) for stage in PAPER]
        finally:
            shutil.rmtree(folder)
        _report(setup, item, raced, epoch)
        results[setup.what] = item, raced
    if plot:
        _plot(plot, results, epoch)


def _machine(threads: int) -> Literal["float32", "bfloat16"]:
    """Print what this runs on. Returns the precision with the faster matrix products."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in fields.get("flags", "").split()]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = {name: peak_flops(device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    best: Literal["float32", "bfloat16"] = "bfloat16" if rates["bfloat16"] > rates["float32"] else "float32"
    console.print(
        f"{fields.get('model name', platform.machine())}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"torch {torch.__version__} on {device.type}, {threads} threads"
    )
    console.print(
        f"flags {', '.join(flags) or 'without bfloat16'}; products of matrices at "
        f"{', '.join(f'{rate / 1e9:.0f} GFLOP/s in {name}' for name, rate in rates.items())}: both train in {best}"
    )
    return best


def _featurize(setup: Setup, folder: Path, threads: int) -> float:
    """Median seconds to featurize an item, over the shards."""
    child = Child(featurizing, setup, folder, threads)
    taken = []
    try:
        with Meter("featurizing", SHARDS, "shards") as meter:
            for _ in range(SHARDS):
                taken.append(child.turn().seconds)
                meter.advance(1)
        return statistics.median(taken) / (setup.items // SHARDS)
    finally:
        child.end()


def _race(setup: Setup, folder: Path, threads: int, stage: int, model: str, steps: int, rounds: int) -> Raced:
    """Run both turn by turn. The first turn of each process checks that both train the same, and is not measured."""
    raced = Raced(stage, [], [])
    with Meter(f"stage {stage}", rounds * steps, "steps of each") as meter:
        for _ in range(rounds):
            children = [Child(work, setup, folder, threads, stage, model, steps) for work in (online, cached)]
            try:
                for step in range(steps):  # both go first equally often
                    first = step % 2
                    pair = {n: children[n].turn() for n in (first, 1 - first)}
                    theirs, ours = pair[0], pair[1]
                    if step:
                        raced.online.append(theirs)
                        raced.cached.append(ours)
                    elif not math.isclose(theirs.loss, ours.loss, rel_tol=1e-6):
                        raise AssertionError(f"not the same training: losses {theirs.loss} and {ours.loss}")
                    meter.advance(1)
            finally:
                for child in children:
                    child.end()
    return raced


def _report(setup: Setup, item: float, raced: Sequence[Raced], epoch: int) -> None:
    """Print the table of a setup, and when featurizing has paid off."""
    llm = "SmolLM2-135M" if setup.llm_layers is None else f"SmolLM2-135M cut to {setup.llm_layers} layer"
    console.print(f"{llm}; {BATCH} conversations a step, {len(raced[0].online)} steps of each")
    console.print(f"featurizing: {item:.3f} s an item, {item * epoch / 3600:.1f} h for an epoch of {epoch}")
    table = Table("stage", "encoders", "s/step (least - most)", "CPU s", "peak GiB", "last loss")
    for race in raced:
        for name, turns, step in zip(("online", "cached"), (race.online, race.cached), race.steps, strict=True):
            seconds = [done.seconds for done in turns]
            table.add_row(
                str(race.stage),
                name,
                f"{step:.2f} ({min(seconds):.2f} - {max(seconds):.2f})",
                f"{statistics.median(done.cpu for done in turns):.2f}",
                f"{max(done.peak for done in turns):.2f}",
                f"{turns[-1].loss:.4f}",
            )
    console.print(table)
    for race in raced:
        paid = f"after {item / race.spared:.2f} epochs" if race.spared > 0 else "never"
        console.print(
            f"stage {race.stage}: the same step is {race.ratio:.2f} times as fast cached (median); "
            f"featurizing has paid {paid}"
        )
    theirs, ours = (sum(PAPER[race.stage] * _hours(race.steps[i], epoch) for race in raced) for i in (0, 1))
    ours += item * epoch / 3600
    console.print(
        f"the paper's epochs, {PAPER[1]} of stage 1 and {PAPER[2]} of stage 2: {theirs:.1f} h online, "
        f"{ours:.1f} h cached, featurizing included: {theirs / ours:.2f} times as fast"
    )


def _hours(step: float, epoch: int) -> float:
    return step * epoch / BATCH / 3600


def _plot(path: Path, results: dict[str, tuple[float, list[Raced]]], epoch: int) -> None:
    """Plot hours against epochs for each setup and stage; the lines cross where featurizing has paid off."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(results), len(PAPER), squeeze=False, figsize=(10, 3.5 * len(results)), layout="constrained"
    )
    epochs = np.linspace(0, 4, 2)
    for row, (what, (item, raced)) in zip(axes, results.items(), strict=True):
        for axis, race in zip(row, raced, strict=True):
            online_step, cached_step = race.steps
            axis.plot(epochs, epochs * _hours(online_step, epoch), label="encoders online")
            axis.plot(epochs, item * epoch / 3600 + epochs * _hours(cached_step, epoch), label="featurized once")
            if race.spared > 0:
                axis.axvline(item / race.spared, color="grey", linestyle=":")
            axis.set(xlabel=f"epochs of {epoch} items", ylabel="hours", title=f"{what}\nstage {race.stage}")
            axis.set(xlim=(0, 4), ylim=(0, None))
            axis.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run(app)
