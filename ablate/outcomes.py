"""What the evaluations of an ablation say of each question, read from their reports."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ablate.plan import Evaluation
from serve.evals.judge_settings import JudgeSettings
from serve.evals.scores import COUNTS, bleu_of
from serve.evals.statistics import Estimate, estimate, widened

Floats = NDArray[np.float64]
EXACT = "exact answers"  # share of conversations whose answers would all be given word for word


@dataclass(frozen=True)
class Outcome:
    """The answers of one evaluation, or of several seeds on average.

    Attributes:
        metric: what is measured: in percent, or a judge's score from 0 to 5.
        ids: of the questions.
        clusters: the video of each, [n]; intervals draw whole videos.
        parts: what the metric is computed from, [n, k].
        of: the metric, of sums [..., k].
        loss: of held-out conversations the summed loss and the tokens of each, [n, 2].
        judge: who judged, and by which protocol; empty if nobody did.
        undecided: questions that the judge could not be asked about.
    """

    metric: str
    ids: Sequence[str]
    clusters: Sequence[str]
    parts: Floats
    of: Callable[[Floats], Floats]
    loss: Floats | None = None
    judge: str = ""
    undecided: int = 0

    @cached_property
    def score(self) -> Estimate:
        """The metric."""
        score = estimate(self.parts, self.of, self.clusters)
        return widened(score, self.clusters, 0) if self._is_share else score

    @property
    def mean_loss(self) -> Estimate | None:
        """Mean loss of a response token; None for generated answers."""
        return None if self.loss is None else estimate(self.loss, ratio, self.clusters)

    def minus(self, other: "Outcome") -> Estimate:
        """The paired difference of the metric, over the questions in both."""
        mine, theirs = (outcome.only(set(self.ids) & set(other.ids)) for outcome in (self, other))
        width = mine.parts.shape[1]
        both = np.concatenate([mine.parts, theirs.parts], 1)
        found = estimate(both, lambda sums: self.of(sums[..., :width]) - self.of(sums[..., width:]), mine.clusters)
        return widened(found, mine.clusters, -100) if self._is_share else found

    @property
    def _is_share(self) -> bool:
        return self.metric == EXACT or self.metric.startswith("accuracy")

    def only(self, chosen: set[str]) -> "Outcome":
        """The chosen questions, sorted by id."""
        kept = sorted((i for i, id_ in enumerate(self.ids) if id_ in chosen), key=lambda i: self.ids[i])
        ids, clusters = ([values[i] for i in kept] for values in (self.ids, self.clusters))
        loss = None if self.loss is None else self.loss[kept]
        return replace(self, ids=ids, clusters=clusters, parts=self.parts[kept], loss=loss)


def ratio(sums: Floats) -> Floats:
    """The first sum over the second."""
    value: Floats = sums[..., 0] / sums[..., 1]
    return value


def averaged(seeds: Sequence[Outcome]) -> Outcome:
    """What several seeds say on average, of the questions that all of them have."""
    common = set.intersection(*(set(outcome.ids) for outcome in seeds))
    kept = [outcome.only(common) for outcome in seeds]
    losses = [outcome.loss for outcome in kept if outcome.loss is not None]
    parts = np.mean([outcome.parts for outcome in kept], axis=0)
    return replace(kept[0], parts=parts, loss=np.mean(losses, axis=0) if losses else None)


def is_by(judge: JudgeSettings, judged: Mapping[str, Any]) -> bool:
    """Whether a report is of a judge's scores, as it would judge now."""
    return bool(judged) and all(
        judged[name] == own
        for name, own in (("model", judge.model), ("protocol", judge.protocol), ("prompts", judge.asked_by.digest))
    )


def is_done(evaluation: Evaluation, judge: JudgeSettings | None) -> bool:
    """Whether an evaluation is finished; one whose judge could not be asked about all is not."""
    if not evaluation.file.exists() or not evaluation.task or not evaluation.task.judged or not judge:
        return evaluation.file.exists()  # reports appear whole
    (entry,) = json.loads(evaluation.file.read_bytes())["tasks"]
    return is_by(judge, entry["judge"] or {}) and not entry["judge"]["undecided"]


def read_outcome(evaluation: Evaluation, judge: JudgeSettings | None) -> Outcome | None:
    """The outcome of an evaluation; None if it is still to come, has no metrics, or was not judged as `judge` would."""
    if not evaluation.file.exists():
        return None
    report = json.loads(evaluation.file.read_bytes())
    return _of_task(evaluation, report, judge) if evaluation.task else of_held_out(report)


def of_held_out(report: Mapping[str, Any]) -> Outcome:
    """The outcome in a report of `serve heldout --out`."""
    judged = report["judged"]
    exact, loss, tokens = (np.array([j[name] for j in judged], np.float64) for name in ("exact", "loss", "tokens"))
    ids, clusters = [j["id"] for j in judged], [j["id"] if j["key"] is None else j["key"] for j in judged]
    return Outcome(
        EXACT, ids, clusters, np.stack([100 * exact, np.ones_like(exact)], 1), ratio, np.stack([loss, tokens], 1)
    )


def _of_task(evaluation: Evaluation, report: Mapping[str, Any], judge: JudgeSettings | None) -> Outcome | None:
    """The outcome in a report of `serve evaluate`, by the task's main metric."""
    (entry,) = report["tasks"]
    assert evaluation.task
    judged = entry["judge"] or {}
    if evaluation.task.judged and not (judge and is_by(judge, judged)):
        return None
    if not entry["metrics"]:
        return None
    items = [json.loads(line) for line in (evaluation.file.parent / entry["items"]).read_text().splitlines()]
    metric = next(iter(entry["metrics"]))
    if metric.startswith("BLEU"):
        parts, of = np.array([item[COUNTS] for item in items], float), bleu_of(int(metric[-1]) - 1)
    else:
        items = [item for item in items if item[metric] is not None]
        parts, of = np.array([[item[metric], 1.0] for item in items]), ratio
    ids, clusters = [f"{item['id']} {item['occurrence']}" for item in items], [item["cluster"] for item in items]
    by = f"{judged['model']}, protocol {judged['protocol']}" if judged else ""
    return Outcome(metric, ids, clusters, parts, of, judge=by, undecided=judged.get("undecided", 0))
