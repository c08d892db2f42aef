"""The rows of an ablation's tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ablate.outcomes import Outcome, averaged
from ablate.paper import paper_accuracy
from ablate.settings import Value
from serve.evals.statistics import Estimate


@dataclass(frozen=True)
class Row:
    """A value on an axis, asked one benchmark.

    Attributes:
        value: value on the axis.
        benchmark: its name.
        metric: of the benchmark; in percent, or a judge's score from 0 to 5.
        n: questions asked.
        seeds: how many.
        score: the metric's value.
        deviation: its standard deviation over seeds; None with one seed.
        difference: score minus the base point's, on the same questions; None in the base row or without one.
        loss: of a response token, on held-out conversations; None for generated answers.
        judge: who judged, and by which protocol; empty if nobody did.
        paper: the paper's accuracy, in percent; for judged rows only, since it was judged.
    """

    value: Value
    benchmark: str
    metric: str
    n: int
    seeds: int
    score: Estimate
    deviation: float | None
    difference: Estimate | None
    loss: Estimate | None
    judge: str
    paper: float | None


@dataclass
class Table:
    """The results on one axis."""

    axis: str
    title: str
    rows: list[Row] = field(default_factory=list)


def row_of(axis: str, value: Value, benchmark: str, seeds: Sequence[Outcome], base: Sequence[Outcome]) -> Row:
    """The row of a value, from the outcome of each seed there and at the base point."""
    outcome = averaged(seeds)
    scores = [float(seed.of(seed.parts.sum(0))) for seed in seeds]
    is_base = [id(seed) for seed in seeds] == [id(seed) for seed in base]
    return Row(
        value=value,
        benchmark=benchmark,
        metric=outcome.metric,
        n=len(outcome.ids),
        seeds=len(seeds),
        score=outcome.score,
        deviation=float(np.std(scores, ddof=1)) if len(seeds) > 1 else None,
        difference=None if is_base or not base else outcome.minus(averaged(base)),
        loss=outcome.mean_loss,
        judge=outcome.judge,
        paper=paper_accuracy(axis, value, benchmark) if outcome.judge else None,
    )
