"""Score the answers of a task: every metric with its interval, and the parts of each item that it is computed from."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.evals.agreement import Agreement
from serve.evals.bleu import BleuCounts, count_bleu
from serve.evals.choices import choose
from serve.evals.cider import DocumentFrequencies, cider
from serve.evals.judgements import Given, Judgements, name_of
from serve.evals.matching import matches, matches_leniently
from serve.evals.rouge import rouge
from serve.evals.statistics import Estimate, bootstrap, estimate, percentage
from serve.evals.tasks import Query, Task
from serve.evals.words import tokenize

Floats = NDArray[np.float64]
# The main metric, by scorer.
MAIN = {
    "exact": "accuracy", "choice": "accuracy", "cider": "CIDEr", "bleu": "BLEU-1", "judged": "accuracy",
    "dimension": "score",
}  # fmt: skip
COUNTS = "counts of BLEU"  # among the numbers of an item: matches and guesses by order, length, reference's length


@dataclass(frozen=True)
class Group:
    """The answers of one group: how many, and its main metric."""

    count: int
    value: Estimate


@dataclass(frozen=True)
class TaskScores:
    """The scores of a task.

    Attributes:
        task: the task.
        conversations: their name in the store.
        questions: how many the task has in this store.
        digest: of all its questions, prompts and references.
        expected: how many its data set has, and how that is known; empty if it is not.
        scored: how many answers were scored.
        failed: questions whose features cannot be used; how they count is `failed_are`.
        failed_are: `wrong` or `left-out`.
        reasons: why questions could not be asked, and how many.
        invalid: answers that could not be parsed, or whose judgement could not; they are wrong, but for the scorer
            `dimension`, whose mean leaves them out. None where nothing is parsed.
        tokens: mean length of an answer.
        cut: answers that were ended by the limit on tokens.
        metrics: by name, the main one first; empty if only a judge can score.
        groups: by name.
        judge: the judgements that the scores are made of; None if there are none.
        undecided: answers that the judge could not be asked about, which are not scored.
        others: the scores by other judges.
        agreement: of all judges; None if there is one alone.
        length_ratio: words of the answers to words of the references closest in length; None for other scorers.
        items: for each answer its id, occurrence, media item, cluster, groups, question, references, reply and scores.
    """

    task: Task
    conversations: str
    questions: int
    digest: str
    expected: str
    scored: int
    failed: int
    failed_are: str
    reasons: Counter[str]
    invalid: int | None
    tokens: float
    cut: int
    metrics: dict[str, Estimate]
    groups: dict[str, Group]
    length_ratio: float | None
    items: list[dict[str, Any]]
    judge: Judgements | None = None
    undecided: int = 0
    others: Sequence["TaskScores"] = ()
    agreement: Agreement | None = None

    @property
    def is_partial(self) -> bool:
        """Whether some of the questions were not asked."""
        return self.scored + (self.failed if self.failed_are == "left-out" else 0) < self.questions


@dataclass
class _Scored:
    """What a scorer gives: metrics, and numbers of each item by name."""

    metrics: dict[str, Estimate] = field(default_factory=dict)
    items: dict[str, Sequence[Any]] = field(default_factory=dict)
    invalid: int | None = None
    length_ratio: float | None = None


def score(
    task: Task,
    conversations: str,
    made: Sequence[Query],
    given: Sequence[Given],
    failed_are: str,
    judge: Judgements | None = None,
) -> TaskScores:
    """Score the answers to some of a task's queries.

    Args:
        task: the task.
        conversations: their name in the store.
        made: all its queries: CIDEr weighs words by the references of the whole set.
        given: the queries that have an answer, and their answers.
        failed_are: `wrong`, or `left-out`, for questions whose features cannot be used.
        judge: what a judge said of the answers; None if none was asked.
    """
    failed = {_unit(query) for query, answer in given if answer.failures}
    counted = [(query, answer) for query, answer in given if failed_are == "wrong" or _unit(query) not in failed]
    answered = len(counted)
    if judge:
        counted = [each for each in counted if name_of(each[0]) in judge.by_name or _unit(each[0]) in failed]
    clusters = [query.cluster for query, _ in counted]
    scored = _Scored()
    if judge and counted:
        scored = _judged(task, counted, clusters, judge)
    elif counted and task.scorer in SCORERS:
        scored = SCORERS[task.scorer](made, counted, clusters)
    asked = [answer for _, answer in counted if not answer.failures]
    return TaskScores(
        task=task,
        conversations=conversations,
        questions=len(made),
        digest=_digest(task, made),
        expected=_expected(task, made),
        scored=len(counted),
        failed=sum(bool(answer.failures) for _, answer in given),
        failed_are=failed_are,
        reasons=Counter(f"{sense} {why}" for _, answer in given for sense, why in answer.failures.items()),
        invalid=scored.invalid,
        tokens=float(np.mean([answer.tokens for answer in asked])) if asked else 0.0,
        cut=sum(answer.reason == "length" for answer in asked),
        metrics=scored.metrics,
        groups=_groups(task, counted, clusters, scored),
        length_ratio=scored.length_ratio,
        items=_items(counted, scored),
        judge=judge,
        undecided=answered - len(counted),
    )


def _digest(task: Task, made: Sequence[Query]) -> str:
    """Equal digests: the same questions were asked in the same words, and scored against the same answers."""
    whole = [task.model_dump(include={"answer_prefix", "system", "max_new_tokens", "temperature", "scorer"})]
    text = json.dumps([whole, [asdict(query) for query in made]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _expected(task: Task, made: Sequence[Query]) -> str:
    splits = sorted({query.split for query in made})
    expected = task.expects(splits[0]) if len(splits) == 1 else None
    return f"{expected.count:,} ({expected.source})" if expected and expected.count else ""


def _items(counted: Sequence[Given], scored: _Scored) -> list[dict[str, Any]]:
    items = []
    for number, (query, answer) in enumerate(counted):
        entry: dict[str, Any] = {"id": query.id, "occurrence": query.occurrence, "key": query.key}
        entry |= {"cluster": query.cluster, "groups": list(query.groups)}
        entry |= {"question": query.question, "references": list(query.references), "reply": answer.reply}
        entry |= {"failures": dict(answer.failures)} if answer.failures else {}
        items.append(entry | {name: values[number] for name, values in scored.items.items()})
    return items


def _groups(task: Task, counted: Sequence[Given], clusters: Sequence[str], scored: _Scored) -> dict[str, Group]:
    """The main metric of each group; of metrics that are means over items."""
    main = MAIN[task.scorer]
    if not scored.metrics or main not in scored.items:
        return {}
    values, groups = np.array(scored.items[main], float), dict[str, Group]()
    for name in sorted({group for query, _ in counted for group in query.groups}):
        chosen = [number for number, (query, _) in enumerate(counted) if name in query.groups]
        if np.isnan(values[chosen]).all():
            continue
        groups[name] = Group(len(chosen), _mean(values[chosen], [clusters[number] for number in chosen], main))
    return groups


def _mean(values: Floats, clusters: Sequence[str], name: str) -> Estimate:
    """The mean of the values that are there: an answer without a score is NaN."""
    if name.startswith("accuracy"):
        return percentage(values, clusters)
    return bootstrap(np.nan_to_num(values), (~np.isnan(values)).astype(float), clusters)


def _exact(_: Sequence[Query], counted: Sequence[Given], clusters: Sequence[str]) -> _Scored:
    """The published rule decides; a lenient one, which takes `_` for a blank, stands beside it."""
    items: dict[str, Sequence[Any]] = {
        name: [100 * any(rule(answer.reply, right) for right in query.references) for query, answer in counted]
        for name, rule in (("accuracy", matches), ("accuracy, lenient", matches_leniently))
    }
    return _Scored({name: _mean(np.array(values, float), clusters, name) for name, values in items.items()}, items)


def _choice(_: Sequence[Query], counted: Sequence[Given], clusters: Sequence[str]) -> _Scored:
    chosen = [None if answer.failures else choose(answer.reply, query.options) for query, answer in counted]
    right = [100 * (choice == query.right) for choice, (query, _) in zip(chosen, counted, strict=True)]
    invalid = sum(choice is None and not answer.failures for choice, (_, answer) in zip(chosen, counted, strict=True))
    items: dict[str, Sequence[Any]] = {"accuracy": right, "chosen": chosen}
    return _Scored({"accuracy": _mean(np.array(right, float), clusters, "accuracy")}, items, invalid)


def _judged(task: Task, counted: Sequence[Given], clusters: Sequence[str], judge: Judgements) -> _Scored:
    """Accuracy, in which a reply without a verdict is wrong, and the mean of the scores that were given.

    An answer that could not be given, or one of a pair with such a one, is wrong and has score 0.
    """
    replies = [judge.by_name.get(name_of(query)) for query, _ in counted]
    verdicts = [judged.judgement.verdict if judged else "no" for judged in replies]
    scores = [judged.judgement.score if judged else 0.0 for judged in replies]
    texts = [judged.reply.text if judged else "" for judged in replies]
    items: dict[str, Sequence[Any]] = {"score": scores, "judged": texts}
    values = np.array(scores, float)
    metrics = {} if np.isnan(values).all() else {"score": _mean(values, clusters, "score")}
    if task.scorer == "dimension":
        return _Scored(metrics, items, sum(score is None for score in scores))
    items = {"accuracy": [100 * (verdict == "yes") for verdict in verdicts], "verdict": verdicts, **items}
    metrics = {"accuracy": _mean(np.array(items["accuracy"], float), clusters, "accuracy"), **metrics}
    return _Scored(metrics, items, sum(verdict is None for verdict in verdicts))


def _unit(query: Query) -> object:
    """What is judged at once: the query, or the pair that it is of."""
    return query.pair or name_of(query)


def _captions(made: Sequence[Query], counted: Sequence[Given], clusters: Sequence[str]) -> _Scored:
    """CIDEr-D with the document frequencies of all references, BLEU and ROUGE-L, all times 100."""
    references = {name_of(query): [tokenize(text) for text in query.references] for query in made}
    predictions = [tokenize(answer.reply) for _, answer in counted]
    theirs = [references[name_of(query)] for query, _ in counted]
    frequencies = DocumentFrequencies.of([references[name_of(query)] for query in made])
    items = {"CIDEr": 100 * cider(predictions, theirs, frequencies), "ROUGE-L": 100 * rouge(predictions, theirs)}
    metrics = {name: _mean(values, clusters, name) for name, values in items.items()}
    counts = count_bleu(predictions, theirs)
    parts = np.concatenate(
        [counts.matches, counts.guesses, counts.lengths[:, None], counts.reference_lengths[:, None]], 1
    )
    for order in range(4):
        metrics[f"BLEU-{order + 1}"] = estimate(parts.astype(float), bleu_of(order), clusters)
    ratio = float(counts.lengths.sum() / max(1, counts.reference_lengths.sum()))
    lists = {name: values.tolist() for name, values in items.items()} | {COUNTS: parts.tolist()}
    return _Scored(metrics, lists, length_ratio=ratio)


def bleu_of(order: int) -> Callable[[Floats], Floats]:
    """BLEU times 100 up to words in a row of some length, as a function of sums of an item's counts."""

    def value(sums: Floats) -> Floats:
        counts = BleuCounts(sums[..., :4], sums[..., 4:8], sums[..., 8], sums[..., 9])
        bleu: Floats = 100 * counts.scores()[..., order]
        return bleu

    return value


def _paragraphs(made: Sequence[Query], counted: Sequence[Given], clusters: Sequence[str]) -> _Scored:
    """As `_captions`, with BLEU first."""
    scored = _captions(made, counted, clusters)
    scored.metrics = {n: scored.metrics[n] for n in sorted(scored.metrics, key=lambda n: not n.startswith("BLEU"))}
    return scored


SCORERS: dict[str, Callable[[Sequence[Query], Sequence[Given], Sequence[str]], _Scored]] = {
    "exact": _exact, "choice": _choice, "cider": _captions, "bleu": _paragraphs,
}  # fmt: skip
