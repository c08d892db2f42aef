"""What judging would cost: calls, tokens and dollars, by the requests that would be sent."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curate.ledger import Ledger, Request
from serve.evals.judge import LEDGER, Given, Judge, items_of
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


def cost_of(judge: Judge, task: Task, given: Sequence[Given], ledger: Ledger | None) -> Cost:
    """What judging the answers to a task would take, if every reply can be read."""
    protocol, model = judge.protocol, judge.settings.model
    made = [protocol.request(item.kind, item.texts, model, judge.schema) for item in items_of(0, task, given)]
    requests = {request.digest: request for request in made}
    left = [request for request in requests.values() if ledger is None or request not in ledger]
    tokens = sum(map(_tokens, left))
    return Cost(len(requests), len(requests) - len(left), tokens, REPLY_TOKENS * len(left))


def say_cost(judge: Judge, tasks: Sequence[tuple[Task, Sequence[Given]]], folder: Path) -> None:
    """Print what judging the answers to tasks would take.

    Args:
        judge: who would judge.
        tasks: those that need a judge, each with its answers.
        folder: of the answers, for a ledger that has no place of its own.
    """
    path = judge.ledger or folder / LEDGER
    if path.exists():
        with Ledger(path) as ledger:
            costs = [cost_of(judge, task, given, ledger) for task, given in tasks]
    else:
        costs = [cost_of(judge, task, given, None) for task, given in tasks]
    table = make_table("task", "calls", "known", "prompt tokens, about", "reply tokens, about", "dollars, about")
    whole = Cost(*(sum(column) for column in zip(*(_row(cost) for cost in costs), strict=True)))
    for name, cost in [*((task.name, cost) for (task, _), cost in zip(tasks, costs, strict=True)), ("all", whole)]:
        table.add_row(name, *(f"{number:,}" for number in _row(cost)), _dollars(judge, cost))
    console.print(table)


def _row(cost: Cost) -> tuple[int, int, int, int]:
    return cost.calls, cost.known, cost.prompt_tokens, cost.completion_tokens


def _dollars(judge: Judge, cost: Cost) -> str:
    price = judge.settings.price
    return f"{price.of(cost.prompt_tokens, cost.completion_tokens).cost / BILLION:.2f}" if price else "no price given"


def _tokens(request: Request) -> int:
    return len(json.dumps(request.body["messages"], ensure_ascii=False)) // CHARACTERS_A_TOKEN
