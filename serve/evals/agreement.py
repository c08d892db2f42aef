"""How far several judges agree on the same answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.evals.judge_replies import Judgement
from serve.evals.judgements import Given, Judgements, name_of
from serve.evals.statistics import Estimate, estimate, percentage

Floats = NDArray[np.float64]
VERDICTS = ("yes", "no", None)  # a reply without a verdict is a third thing to say


@dataclass(frozen=True)
class Agreement:
    """The agreement of judges.

    Attributes:
        count: answers that all of them judged.
        exact: share of these on which all say the same verdict, or without verdicts the same whole score, in percent.
        alpha: Krippendorff's, of verdicts as names or of scores as numbers; None where all said one thing throughout.
    """

    count: int
    exact: Estimate
    alpha: Estimate | None


def agreement_of(given: Sequence[Given], judges: Sequence[Judgements], verdicts: bool) -> Agreement | None:
    """The agreement of judges on the answers to a task; None if there are no answers that all of them judged.

    Args:
        given: the answers.
        judges: the judgements of each judge.
        verdicts: whether verdicts are compared, else scores. An answer without a score by some judge is left out.
    """
    found = [(query.cluster, [judge.by_name.get(name_of(query)) for judge in judges]) for query, _ in given]
    judged = [(cluster, [each.judgement for each in said if each]) for cluster, said in found if all(said)]
    if not verdicts:
        judged = [(cluster, said) for cluster, said in judged if all(each.score is not None for each in said)]
    if not judged:
        return None
    clusters = [cluster for cluster, _ in judged]
    values = np.array([[_numbers(each, verdicts) for each in said] for _, said in judged], np.float64)
    same = np.all(values == values[:, :1], axis=(1, 2))
    return Agreement(len(judged), percentage(100.0 * same, clusters), alpha(values, clusters))


def _numbers(judgement: Judgement, verdicts: bool) -> list[float]:
    """A verdict as a place among its kinds, or a score."""
    if verdicts:
        return [float(judgement.verdict == verdict) for verdict in VERDICTS]
    assert judgement.score is not None
    return [float(int(judgement.score))]


def alpha(values: Floats, groups: Sequence[str]) -> Estimate | None:
    """Krippendorff's alpha, with its bootstrap interval: 1 for full agreement, 0 for that of chance.

    It is of numbers, by their squared differences; names are given as one number for each, 0 or 1, which makes the
    difference of any two the same. Krippendorff, Content Analysis, chapter on reliability;
    https://en.wikipedia.org/wiki/Krippendorff%27s_alpha

    Args:
        values: what each of m judges said of n answers, [n, m, k].
        groups: each answer's group, [n]; a group is drawn as a whole.

    Returns:
        None if all values are equal, since then nothing tells agreement from chance.
    """
    n, m, k = values.shape
    if m < 2 or np.all(values == values[:1, :1]):
        return None
    first, second = values.sum(1), (values**2).sum(1)
    differences = 2 * (m * second - first**2).sum(1, keepdims=True) / (m - 1)
    parts = np.concatenate([differences, first, second, np.full((n, 1), float(m))], 1)

    def value(sums: Floats) -> Floats:
        count = sums[..., -1]
        firsts, seconds = sums[..., 1 : 1 + k], sums[..., 1 + k : 1 + 2 * k]
        by_chance = 2 * (count[..., None] * seconds - firsts**2).sum(-1) / (count * (count - 1))
        result: Floats = 1 - sums[..., 0] / count / by_chance
        return result

    return estimate(parts, value, groups)
