"""The judge: an outside LLM reads each answer beside the right one. Every judgement is kept in a ledger, asked once.

What is asked and how replies are read is a protocol (protocols.py). What the judge could not be asked stays undecided:
it is neither right nor wrong, and the next run asks it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from curate.client import Client
from curate.ledger import Ledger, Reply, Request
from curate.settings import ClientSettings
from serve.evals.answers import Answer
from serve.evals.protocols import PROTOCOLS, Kind, Protocol, ProtocolName
from serve.evals.replies import Judgement
from serve.evals.tasks import Query, Task
from store import UserError, parse_settings
from store.console import Meter, console
from store.settings import override

Name = tuple[str, int]  # of a query in its task: id and occurrence
Given = tuple[Query, Answer]
LEDGER = "judgements.jsonl"
MANY = 20  # judgements after which one reply to all is no accident


@dataclass(frozen=True)
class Judge:
    """Who judges, and how.

    Attributes:
        settings: servers, model, limits and price.
        protocol: what is asked, and how replies are read.
        ledger: file of replies, which other evaluations may share; None for one beside the answers.
        schema: whether the server is told the form of a reply.
    """

    settings: ClientSettings
    protocol: Protocol
    ledger: Path | None = None
    schema: bool = True


def make_judge(
    urls: Sequence[str],
    model: str | None,
    overrides: Sequence[str],
    protocol: ProtocolName,
    schema: bool,
    ledger: Path | None,
) -> Judge:
    """The judge that a command names.

    Args:
        urls: of servers.
        model: as they call it.
        overrides: `field=value` of its other settings.
        protocol: what it is asked.
        schema: whether the server is told the form of a reply.
        ledger: file of replies; None for one beside the answers.

    Raises:
        UserError: the model is not named, or a setting is wrong.
    """
    if not model:
        raise UserError("--judge needs --judge-model: the judge, as its server calls it")
    data: dict[str, Any] = {"urls": list(urls), "model": model}
    for word in overrides:
        override(data, word)
    return Judge(parse_settings(ClientSettings, data, "--judge-set"), PROTOCOLS[protocol], ledger, schema)


@dataclass(frozen=True)
class Judged:
    """What the judge said of an answer."""

    judgement: Judgement
    reply: Reply


@dataclass
class Judgements:
    """The judgements of a task.

    Attributes:
        protocol: by which.
        model: the judge that was asked.
        prompts: digest of the protocol.
        by_name: the judgements; a query without one is undecided.
    """

    protocol: str
    model: str
    prompts: str
    by_name: dict[Name, Judged] = field(default_factory=dict)

    @property
    def served(self) -> dict[str, int]:
        """How many judgements came from which model, as the servers name them."""
        return dict(Counter(judged.reply.served or "not named" for judged in self.by_name.values()).most_common())

    @property
    def says_one_thing(self) -> bool:
        """Whether many answers got one reply, word for word."""
        return len(self.by_name) >= MANY and len({judged.reply.text for judged in self.by_name.values()}) == 1

    @property
    def refused(self) -> int:
        """How many replies the server marked as refusals."""
        return sum(judged.reply.refused for judged in self.by_name.values())


class Item(NamedTuple):
    """An answer to judge, or two of a pair.

    Attributes:
        task: number of its task.
        kind: of judgement.
        names: of the queries that the judgement is about.
        texts: by their places in the wording.
    """

    task: int
    kind: Kind
    names: tuple[Name, ...]
    texts: Mapping[str, str]


def items_of(number: int, task: Task, given: Sequence[Given]) -> list[Item]:
    """What there is to judge in the answers to a task: those that were given, and of pairs those with both."""
    kind: Kind = task.dimension or "judged"
    asked = [(query, answer) for query, answer in given if not answer.failures]
    groups: dict[str | Name, list[Given]] = {}
    for query, answer in asked:
        groups.setdefault(query.pair or name_of(query), []).append((query, answer))
    size = 2 if task.form == "pair" else 1
    return [_item(number, kind, group) for group in groups.values() if len(group) == size]


def name_of(query: Query) -> Name:
    """What tells the queries of a task apart."""
    return query.id, query.occurrence


def _item(number: int, kind: Kind, group: Sequence[Given]) -> Item:
    first, answer = group[0]
    texts = {"question": first.question, "answer": " or ".join(first.references), "prediction": answer.reply}
    if len(group) == 2:
        texts |= {"question2": group[1][0].question, "prediction2": group[1][1].reply}
    return Item(number, kind, tuple(name_of(query) for query, _ in group), texts)


def judge_all(judge: Judge, tasks: Sequence[tuple[Task, Sequence[Given]]], folder: Path) -> list[Judgements]:
    """Judge the answers to tasks; what the ledger knows is not asked.

    Args:
        judge: who judges.
        tasks: each with its answers.
        folder: of the answers, for a ledger that has no place of its own.

    Raises:
        UserError: as `Client.ask_all`; judgements that came before are kept.
    """
    protocol, settings = judge.protocol, judge.settings
    found = [Judgements(protocol.name, settings.model, protocol.digest) for _ in tasks]
    left = [item for number, (task, given) in enumerate(tasks) for item in items_of(number, task, given)]
    client = Client(settings)
    with Ledger(judge.ledger or folder / LEDGER, settings.limit) as ledger:
        if ledger.unsettled:
            console.print(f"{ledger.path}: {ledger.unsettled} requests of killed runs were perhaps billed")
        for ask in range(protocol.tries):
            left = _ask(judge, client, ledger, left, ask, found) if left else []
    return found


def _ask(
    judge: Judge, client: Client, ledger: Ledger, items: Sequence[Item], ask: int, found: Sequence[Judgements]
) -> list[Item]:
    """Ask for judgements; return the items whose replies cannot be used."""
    items_by: dict[str, list[Item]] = {}
    requests = []
    for item in items:
        request = judge.protocol.request(item.kind, item.texts, judge.settings.model, judge.schema, ask)
        requests.append(request)
        items_by.setdefault(request.digest, []).append(item)
    useless: list[Item] = []

    def keep(request: Request, reply: Reply) -> None:
        for item in items_by[request.digest]:
            judgement = judge.protocol.read(item.kind, reply.text)
            found[item.task].by_name |= dict.fromkeys(item.names, Judged(judgement, reply))
            if judgement.verdict is None and judgement.score is None:
                useless.append(item)
        meter.advance(1)

    with Meter("judging" if not ask else f"judging again ({ask})", len(items_by), "answers") as meter:
        outcome = client.ask_all(requests, ledger, keep)
    for reason in list(outcome.undecided.values())[:1]:
        console.print(f"{len(outcome.undecided)} judgements are undecided, for example: {reason}", markup=False)
    return useless
