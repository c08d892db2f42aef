"""Whether intervals cover what they should, and how small a difference a comparison finds, by simulation.

python -m benchmarks.intervals coverage
python -m benchmarks.intervals power
"""

from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.progress import track

from serve.evals.statistics import bootstrap, estimate, p_value
from store.console import console, make_app, make_table, run

Floats = NDArray[np.float64]
app = make_app("Simulations of the statistics of evaluations.")


def _answers(draw: np.random.Generator, videos: int, questions: int, mean: float, spread: float) -> Floats:
    """Whether answers are right, [videos, questions]: those about one video have a chance in common.

    Args:
        draw: source of chance.
        videos: how many.
        questions: about each.
        mean: share of right answers.
        spread: correlation of two answers about one video: 0 for independent ones.
    """
    chance: Floats = np.full(videos, mean)
    if spread:
        strength = 1 / spread - 1
        chance = draw.beta(mean * strength, (1 - mean) * strength, videos)
    right: Floats = (draw.random((videos, questions)) < chance[:, None]).astype(np.float64)
    return right


@app.command()
def coverage(rounds: Annotated[int, typer.Option(help="Samples of each setting.")] = 1000) -> None:
    """How often a 95% interval holds the truth: over videos, as in reports, and as if questions were independent."""
    table = make_table("videos", "questions each", "right", "correlation", "over videos", "over questions", "score 0-5")
    draw = np.random.default_rng(0)
    settings = [(50, 4, 0.5, 0.3), (50, 4, 0.8, 0.3), (200, 4, 0.5, 0.3), (200, 4, 0.8, 0.3), (200, 4, 0.5, 0.0)]
    for videos, questions, mean, spread in track(settings, console=console, transient=True):
        held = np.zeros(3)
        clusters, ones = np.repeat(np.arange(videos), questions).astype(str), np.ones(videos * questions)
        single = np.arange(videos * questions).astype(str)
        for _ in range(rounds):
            right = _answers(draw, videos, questions, mean, spread).ravel()
            scores = np.where(right, draw.integers(3, 6, right.shape), draw.integers(0, 3, right.shape)).astype(float)
            cases = ((right, clusters, mean), (right, single, mean), (scores, clusters, 4 * mean + 1 - mean))
            for place, (values, groups, truth) in enumerate(cases):
                found = bootstrap(values, ones, groups)
                held[place] += found.low <= truth <= found.high
        table.add_row(*map(str, (videos, questions, mean, spread)), *(f"{100 * h / rounds:.1f}%" for h in held))
    console.print(table)


@app.command()
def power(rounds: Annotated[int, typer.Option(help="Pairs of evaluations of each setting.")] = 400) -> None:
    """How often a comparison finds a difference: paired by question, and by two intervals that do not meet."""
    table = make_table(
        "videos", "questions each", "difference", "found, paired", "interval without 0", "found, not paired"
    )
    draw = np.random.default_rng(0)
    settings = [(videos, gain) for videos in (100, 300) for gain in (0.0, 0.02, 0.05)]
    for videos, gain in track(settings, console=console, transient=True):
        found = np.zeros(3)
        clusters = np.repeat(np.arange(videos), 4).astype(str)
        for _ in range(rounds):
            ours = _answers(draw, videos, 4, 0.6, 0.3).ravel()
            theirs = _changed(draw, ours, gain)
            parts = [np.stack([values, np.ones_like(values)], 1) for values in (ours, theirs)]
            found[0] += p_value(parts[0], parts[1], _ratio, clusters) < 0.05
            paired = estimate(np.concatenate(parts, 1), lambda s: _ratio(s[..., 2:]) - _ratio(s[..., :2]), clusters)
            found[1] += paired.low > 0 or paired.high < 0
            low, high = (bootstrap(values, np.ones_like(values), clusters) for values in (ours, theirs))
            found[2] += low.high < high.low or high.high < low.low
        table.add_row(str(videos), "4", f"{100 * gain:.0f} points", *(f"{100 * f / rounds:.1f}%" for f in found))
    console.print(table)


def _changed(draw: np.random.Generator, ours: Floats, gain: float) -> Floats:
    """Answers of a second model, which differs on a tenth of all questions, and is right more often by `gain`."""
    mean, moved = 0.6, 0.1
    up, down = (moved + gain) / 2 / (1 - mean), (moved - gain) / 2 / mean
    changes = draw.random(ours.shape) < np.where(ours, down, up)
    return np.where(changes, 1 - ours, ours)


def _ratio(sums: Floats) -> Floats:
    value: Floats = sums[..., 0] / sums[..., 1]
    return value


if __name__ == "__main__":
    run(app)
