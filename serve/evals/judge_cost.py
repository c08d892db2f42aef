"""What judging would cost: calls, tokens and dollars, by the requests that would be sent."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curate.ledger import Ledger, Request
from serve.evals.judge import Judging
from serve.evals.judge_settings import JudgeSettings
from serve.evals.judgements import Given, Item, items_of, kind_of
from serve.evals.tasks import Task
from store.console import console, make_table

CHARACTERS_A_TOKEN = 4  # of English, in tokenizers of today
REPLY_TOKENS = 20  # of a verdict and a score
BILLION = 1_000_000_000


@dataclass(frozen=True)
class Cost:
    """What judging a task would take.

    Attributes:
        calls: different requests.
        known: those of them whose replies the ledger has.
        prompt_tokens: of the others, about.
        completion_tokens: the same.
    """

    calls: int
    known: int
    prompt_tokens: int
    completion_tokens: int


def cost_of(judge: JudgeSettings, items: Sequence[Item], ledger: Ledger | None) -> Cost:
    """What judging some answers would take, if every reply can be read."""
    requests = {request.digest: request for request in map(judge.request, items)}
    left = [request for request in requests.values() if ledger is None or request not in ledger]
    tokens = sum(map(_tokens, left))
    return Cost(len(requests), len(requests) - len(left), tokens, REPLY_TOKENS * len(left))


def say_cost(judging: Judging, tasks: Sequence[tuple[Task, Sequence[Given]]], folder: Path) -> None:
    """Print what judging the answers to tasks, and the anchors, would take.

    Args:
        judging: who would judge.
        tasks: those that need a judge, each with its answers.
        folder: of the answers, for a ledger that has no place of its own.
    """
    kinds = {kind_of(task) for task, _ in tasks}
    anchors = [anchor.item(0, number) for number, anchor in enumerate(judging.anchors) if anchor.kind in kinds]
    items = {task.name: items_of(0, task, given) for task, given in tasks} | {"anchors": anchors}
    table = make_table(
        "judge", "task", "calls", "known", "prompt tokens, about", "reply tokens, about", "dollars, about"
    )
    path = judging.path(folder)
    for judge in judging.judges:
        with Ledger(path) if path.exists() else contextlib.nullcontext() as ledger:
            costs = {name: cost_of(judge, own, ledger) for name, own in items.items() if own}
        costs["all"] = Cost(*(sum(column) for column in zip(*map(_row, costs.values()), strict=True)))
        for name, cost in costs.items():
            table.add_row(judge.model, name, *(f"{number:,}" for number in _row(cost)), _dollars(judge, cost))
    console.print(table)


def _row(cost: Cost) -> tuple[int, int, int, int]:
    return cost.calls, cost.known, cost.prompt_tokens, cost.completion_tokens


def _dollars(judge: JudgeSettings, cost: Cost) -> str:
    price = judge.price
    return f"{price.of(cost.prompt_tokens, cost.completion_tokens).cost / BILLION:.2f}" if price else "no price given"


def _tokens(request: Request) -> int:
    return len(json.dumps(request.body["messages"], ensure_ascii=False)) // CHARACTERS_A_TOKEN
