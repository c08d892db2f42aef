"""How fast: wall and CPU seconds of whole processes, with their start and without it."""

import os
import platform
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.featurizers.clips import clips
from benchmarks.featurizers.contenders import CEILING, OURS, Case, Job, Settings, job, versions
from benchmarks.featurizers.process import Spent
from store.console import Meter, console, make_table

WALL, CPU = 0, 1


def race(case: Case, folder: Path, settings: Settings, rounds: int) -> None:
    """Run all in turns, each round in another order, and print what they took."""
    names = (OURS, *case.peers, CEILING)
    counts = (case.few, case.many)
    taken = np.zeros((rounds, len(names), len(counts), 2))
    plans: list[float] = []
    with Meter(case.what, taken[..., 0].size, "runs") as meter:
        for number in range(rounds):
            for at, count in enumerate(counts):
                for turn in np.roll(range(len(names)), number):
                    with tempfile.TemporaryDirectory() as out:
                        work = job(names[turn], case, clips(folder, count), Path(out), settings)
                        if plan := work.plan():
                            plans.append(plan.cpu)
                        spent = _whole(work, count)
                    taken[number, turn, at] = spent.wall, spent.cpu
                    meter.advance(1, f"{names[turn]}, {count} clips: {spent.wall:.0f} s")
    _machine(case, settings)
    _table(case, names, taken)
    console.print(f"avllm: planning takes {statistics.median(plans):.1f} CPU s beside this, once")
    _ratios(case, taken)


def _whole(work: Job, count: int) -> Spent:
    """Run a job; end the benchmark unless it kept all clips."""
    spent = work.run()
    if spent.code or len(work.kept) != count:
        raise SystemExit(f"{work.name}: status {spent.code}\n" + "\n".join(spent.said[-20:]))
    return spent


def _machine(case: Case, settings: Settings) -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    console.print(f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {versions(settings.python)}")
    words = f"; avllm: {', '.join(settings.words)}" if settings.words else ""
    console.print(f"{case.what}, float32; threads as each takes them by default{words}")


def _table(case: Case, names: Sequence[str], taken: NDArray[np.float64]) -> None:
    """Print medians over the rounds; without the start is the long run's excess, per additional clip."""
    per_clip = _each(case, taken)
    table = make_table(
        "CPU / wall seconds", "a clip, without start", "start", f"{case.few} clips", f"{case.many} clips"
    )
    for turn, name in enumerate(names):
        start = taken[:, turn, 0] - case.few * per_clip[:, turn]
        cells = (
            _cell(per_clip[:, turn], 3),
            *(_cell(part, 1) for part in (start, taken[:, turn, 0], taken[:, turn, 1])),
        )
        table.add_row(name, *cells)
    console.print(table)


def _cell(taken: NDArray[np.float64], digits: int) -> str:
    wall, cpu = np.median(taken, 0)
    return f"{cpu:.{digits}f} / {wall:.{digits}f}"


def _each(case: Case, taken: NDArray[np.float64]) -> NDArray[np.float64]:
    per_clip: NDArray[np.float64] = (taken[:, :, 1] - taken[:, :, 0]) / (case.many - case.few)
    return per_clip


def _ratios(case: Case, taken: NDArray[np.float64]) -> None:
    """Print ours against the best peer, and against the encoder alone: medians of the rounds' ratios."""
    per_clip = _each(case, taken)
    measured = {
        "CPU s a clip, without start": per_clip[..., CPU],
        f"CPU s of {case.few} clips": taken[:, :, 0, CPU],
        f"CPU s of {case.many} clips": taken[:, :, 1, CPU],
        f"wall s of {case.many} clips": taken[:, :, 1, WALL],
        "wall s a clip, without start": per_clip[..., WALL],
    }
    for what, seconds in measured.items():  # ours first, the ceiling last
        best = 1 + int(np.argmin(np.median(seconds[:, 1:-1], 0)))
        ratio = np.median(seconds[:, 0] / seconds[:, best])
        console.print(f"{what}: {ratio:.2f} of the best peer's, {case.peers[best - 1]}")
    of_ceiling = np.median(per_clip[:, -1, WALL] / per_clip[:, 0, WALL])
    console.print(f"clips/s without start: {of_ceiling:.2f} of the encoder alone")
