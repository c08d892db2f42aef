"""Statistics of answers: means, other functions of sums, and paired differences, with confidence intervals.

Intervals are 95%, by bootstrap over videos (all questions about one are drawn together), with a fixed seed; where all
answers are right, or all are wrong, they are Wilson's, over videos. The bootstrap's percentiles are expanded as
Student's t is wider than a normal distribution: with few videos plain ones are too narrow. Source: Hesterberg's
expanded percentiles, https://arxiv.org/abs/1411.5279.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000
SWAPS = 10_000
QUANTILE = 1.96  # of a normal distribution, for 95%
AT_ONCE = 1 << 22  # draws x groups held in memory at once


@dataclass(frozen=True)
class Estimate:
    """A value and its 95% interval."""

    value: float
    low: float
    high: float


def bootstrap(above: NDArray[np.float64], below: NDArray[np.float64], groups: ArrayLike) -> Estimate:
    """The ratio of two sums over conversations, with its bootstrap interval.

    Args:
        above: terms of the numerator, [n].
        below: terms of the denominator, [n]; ones give a mean.
        groups: each conversation's group, [n]; a group is drawn as a whole.
    """
    return estimate(np.stack([above, below], 1), lambda sums: sums[..., 0] / sums[..., 1], groups)


def estimate(
    parts: NDArray[np.float64], value: Callable[[NDArray[np.float64]], NDArray[np.float64]], groups: ArrayLike
) -> Estimate:
    """A function of sums over items, with its bootstrap interval.

    Args:
        parts: what is summed over the items, [n, k].
        value: the function, of sums [..., k] to [...].
        groups: each item's group, [n]; a group is drawn as a whole.
    """
    sums, rng = _sums(parts, groups), np.random.default_rng(0)
    count = len(sums)
    chances = np.full(count, 1 / count)
    drawn = np.concatenate([rng.multinomial(count, chances, size) @ sums for size in _sizes(DRAWS, count)])
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = np.nanquantile(value(drawn), [tail(count), 1 - tail(count)])
    return Estimate(float(value(parts.sum(0))), float(low), float(high))


def tail(count: int) -> float:
    """The share of bootstrap draws that lies beyond each end of a 95% interval over `count` groups."""
    if count < 2:
        return 0.0
    z, freedom = QUANTILE, count - 1
    # Student's quantile by Cornish and Fisher's expansion
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-t * (count / freedom) ** 0.5)


def unseen(groups: ArrayLike) -> float:
    """The largest share, in percent, of what no group shows: Wilson's bound."""
    return 100 * QUANTILE**2 / (len(np.unique(groups)) + QUANTILE**2)


def widened(found: Estimate, groups: ArrayLike, least: float) -> Estimate:
    """An interval in percent; where all groups say the same it gets `unseen`, as nothing else was drawn.

    Args:
        found: by bootstrap.
        groups: each item's group, [n].
        least: what is possible: 0 of a share, -100 of a difference. The most is 100.
    """
    if found.low != found.high:
        return found
    rest = unseen(groups)
    return Estimate(found.value, max(least, found.low - rest), min(100.0, found.high + rest))


def p_value(
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    groups: ArrayLike,
) -> float:
    """How likely a difference of this size is if both were the same, by a paired permutation test, two-sided.

    In each of `SWAPS` draws the two sides of each group change places with probability one half. Noreen,
    Computer-Intensive Methods for Testing Hypotheses (1989); for corpus metrics, https://aclanthology.org/W05-0908.

    Args:
        ours: what is summed over the items of one side, [n, k].
        theirs: the same of the other side, in the same order.
        value: the metric, of sums [..., k] to [...].
        groups: each item's group, [n]; a group changes places as a whole.
    """
    first, second, rng = _sums(ours, groups), _sums(theirs, groups), np.random.default_rng(0)
    whole, moved = first.sum(0), second - first

    def difference(change: NDArray[np.float64]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = value(whole + change) - value(whole + moved.sum(0) - change)
        return result

    with np.errstate(invalid="ignore", divide="ignore"):
        least = abs(difference(np.zeros_like(whole))) * (1 - 1e-9)  # equal ones may differ by rounding
        sizes = _sizes(SWAPS, len(first))
        extreme = sum(
            int((abs(difference(rng.integers(0, 2, (size, len(first))) @ moved)) >= least).sum()) for size in sizes
        )
    return (1 + extreme) / (1 + SWAPS)


def _sums(parts: NDArray[np.float64], groups: ArrayLike) -> NDArray[np.float64]:
    """What is summed, by group: [groups, k]."""
    names, owner = np.unique(groups, return_inverse=True)
    return np.stack([np.bincount(owner, column, len(names)) for column in parts.T], 1)


def _sizes(draws: int, groups: int) -> list[int]:
    """Draws in parts that fit into memory."""
    step = max(1, AT_ONCE // groups)
    return [min(draws - done, step) for done in range(0, draws, step)]


def percentage(values: NDArray[np.float64], groups: ArrayLike) -> Estimate:
    """The mean of values that are 0 or 100, NaN where there is none.

    Where all are equal, a bootstrap would say that nothing else is possible, so the interval is Wilson's over groups.
    """
    there = ~np.isnan(values)
    if len(kept := np.unique(values[there])) == 1 and kept[0] in (0, 100):
        rest = unseen(np.asarray(groups)[there])
        return Estimate(float(kept[0]), 100 - rest if kept[0] else 0.0, 100.0 if kept[0] else rest)
    return bootstrap(np.nan_to_num(values), there.astype(float), groups)


def shown(value: Estimate, metric: str = "") -> str:
    """A value with its interval; a judge's score, which ends at 5, has two decimals."""
    digits = 2 if metric == "score" else 1
    return f"{value.value:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"
