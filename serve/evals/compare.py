"""`serve compare`: two evaluations of the same questions, paired by question."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.evals.folder import read_run
from serve.evals.scores import COUNTS, bleu_of
from serve.evals.statistics import Estimate, estimate, p_value, widened
from store import UserError

Floats = NDArray[np.float64]
Item = Mapping[str, Any]
Entry = Mapping[str, Any]  # of a task in a report
SAME = {  # what has to be equal, and what it is called
    "digest": "questions, prompts or references",
    "conversations": "conversations",
    "scorer": "scorer",
    "failed_are": "way to count questions that could not be asked",
}
SAME_JUDGE = {
    "protocol": "judge's protocol",
    "prompts": "judge's wording",
    "model": "judge",
    "served": "judge as served",
}


@dataclass(frozen=True)
class Difference:
    """A metric of two evaluations on the same questions.

    Attributes:
        count: questions that have it in both.
        first: its value in the first.
        second: its value in the second.
        difference: second minus first, with its interval.
        p: how likely a difference of this size is if both are the same.
    """

    count: int
    first: float
    second: float
    difference: Estimate
    p: float


@dataclass(frozen=True)
class Comparison:
    """A task in two evaluations.

    Attributes:
        task: its name.
        title: its usual name.
        names: of its metrics, the main one first.
        first: its items in the first evaluation.
        second: the same questions in the second.
    """

    task: str
    title: str
    names: Sequence[str]
    first: Sequence[Item]
    second: Sequence[Item]

    @cached_property
    def metrics(self) -> dict[str, Difference]:
        """By name, the main one first."""
        found = {name: self._bleu(name) if name.startswith("BLEU") else self._mean(name) for name in self.names}
        return {name: difference for name, difference in found.items() if difference}

    @property
    def of_items(self) -> str:
        """The main metric that each question has for itself."""
        return next(name for name in self.names if name in self.first[0])

    def _mean(self, name: str) -> Difference | None:
        """The difference of a mean over the questions that have a value in both."""
        pairs = [(a[name], b[name], a["cluster"]) for a, b in zip(self.first, self.second, strict=True)]
        kept = [pair for pair in pairs if pair[0] is not None and pair[1] is not None]
        if not kept:
            return None
        first, second = (np.array([[pair[side], 1.0] for pair in kept]) for side in (0, 1))
        clusters = [cluster for *_, cluster in kept]
        found = _difference(first, second, clusters, lambda sums: sums[..., 0] / sums[..., 1])
        return _widened(found, clusters) if name.startswith("accuracy") else found

    def _bleu(self, name: str) -> Difference:
        first, second = (np.array([item[COUNTS] for item in side], float) for side in (self.first, self.second))
        return _difference(first, second, [item["cluster"] for item in self.first], bleu_of(int(name[-1]) - 1))

    def changed(self, name: str, sign: int) -> list[tuple[Item, Item]]:
        """The questions whose value rose (`sign` 1) or fell (-1), the largest changes first."""
        pairs = zip(self.first, self.second, strict=True)
        there = [(a, b) for a, b in pairs if a.get(name) is not None and b.get(name) is not None]
        moved = [(a, b) for a, b in there if sign * (b[name] - a[name]) > 0]
        return sorted(moved, key=lambda pair: -abs(pair[1][name] - pair[0][name]))


def _difference(first: Floats, second: Floats, clusters: Sequence[str], value: Any) -> Difference:
    """The difference of a function of sums; whole clusters are drawn, with both sides."""
    width = first.shape[1]
    drawn = estimate(
        np.concatenate([first, second], 1), lambda s: value(s[..., width:]) - value(s[..., :width]), clusters
    )
    p = p_value(first, second, value, clusters)
    return Difference(len(first), float(value(first.sum(0))), float(value(second.sum(0))), drawn, p)


def _widened(found: Difference, clusters: Sequence[str]) -> Difference:
    return replace(found, difference=widened(found.difference, clusters, -100))


def compare(first: Path, second: Path, tasks: Sequence[str]) -> list[Comparison]:
    """Compare two evaluations.

    Args:
        first: the folder of one.
        second: that of the other.
        tasks: which to compare; all without any.

    Raises:
        UserError: a folder is no scored evaluation, or tasks, questions, protocols or judges are not the same.
    """
    ours, theirs = read_report(first), read_report(second)
    for name in tasks or {**ours, **theirs}:
        for folder, known in ((first, ours), (second, theirs)):
            if name not in known:
                raise UserError(
                    f"{folder}: has no task {name!r}; it has: {', '.join(known)}; name the tasks to compare after the "
                    "folders"
                )
    names = [name for name in tasks or ours if ours[name]["metrics"] or theirs[name]["metrics"]]
    if not names:
        raise UserError(f"{first}: has no scores of these tasks; score them with --judge")
    return [_compared(name, (first, ours[name]), (second, theirs[name])) for name in names]


def read_report(folder: Path) -> dict[str, Entry]:
    """The tasks in the report of an evaluation, by name.

    Raises:
        UserError: it is no scored evaluation.
    """
    read_run(folder)
    path = folder / "report.json"
    if not path.is_file():
        raise UserError(f"{folder}: is not scored: there is no report.json in it; run serve evaluate --only scores")
    return {task["task"]: task for task in json.loads(path.read_text())["tasks"]}


def _compared(name: str, first: tuple[Path, Entry], second: tuple[Path, Entry]) -> Comparison:
    check_comparable(first, second)
    items = [_items(folder / entry["items"]) for folder, entry in (first, second)]
    if lacking := [key for key in {**items[0], **items[1]} if not (key in items[0] and key in items[1])]:
        raise UserError(
            f"task {name}: {len(lacking):,} of its questions are scored in one of {first[0]} and {second[0]} only, for "
            f"example {lacking[0][0]!r}; evaluate both with the same --limit, and judge what is undecided"
        )
    names = list(first[1]["metrics"] or second[1]["metrics"])
    return Comparison(name, first[1]["title"], names, list(items[0].values()), [items[1][key] for key in items[0]])


def check_comparable(first: tuple[Path, Entry], second: tuple[Path, Entry]) -> None:
    """Refuse two scores of a task, each with its folder, that were not made in the same way.

    Raises:
        UserError: questions, prompts, protocols or judges are not the same.
    """
    (folder, ours), (other, theirs) = first, second
    compared = [(said, ours[field], theirs[field]) for field, said in SAME.items()]
    compared += [(said, *(_told(entry, field) for entry in (ours, theirs))) for field, said in SAME_JUDGE.items()]
    for said, one, two in compared:
        if one != two:
            raise UserError(f"task {ours['task']}: another {said}: {one} in {folder}, {two} in {other}")


def _told(entry: Entry, field: str) -> Any:
    """What a report tells of the judge."""
    value = (entry["judge"] or {}).get(field)
    return sorted(value) if isinstance(value, dict) else value  # the models, not how many replies came from each


def _items(path: Path) -> dict[tuple[str, int], Item]:
    """The items of a task, by id and occurrence."""
    items = [json.loads(line) for line in path.read_text().splitlines()]
    return {(item["id"], item["occurrence"]): item for item in items}
