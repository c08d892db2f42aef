"""What there is to judge in the answers to a task, and what a judge said."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from curate.ledger import Reply
from serve.evals.answers import Answer
from serve.evals.judge_replies import Judgement
from serve.evals.protocols import Kind
from serve.evals.statistics import Estimate
from serve.evals.tasks import Query, Task

Name = tuple[str, int]  # of a query in its task: id and occurrence
Given = tuple[Query, Answer]
MANY = 20  # judgements after which one reply to all is no accident


@dataclass(frozen=True)
class Judged:
    """What the judge said of an answer."""

    judgement: Judgement
    reply: Reply


@dataclass
class Judgements:
    """The judgements of a task by one judge.

    Attributes:
        protocol: by which.
        model: the judge that was asked.
        prompts: digest of the protocol.
        by_name: the judgements; a query without one is undecided.
        anchors: share of the anchors whose known verdict the judge gave, in percent; None if none was judged.
        anchors_judged: how many that are.
    """

    protocol: str
    model: str
    prompts: str
    by_name: dict[Name, Judged] = field(default_factory=dict)
    anchors: Estimate | None = None
    anchors_judged: int = 0

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


def kind_of(task: Task) -> Kind:
    """How the answers to a task are judged."""
    return task.dimension or "judged"


def items_of(number: int, task: Task, given: Sequence[Given]) -> list[Item]:
    """What there is to judge in the answers to a task: those that were given, and of pairs those with both."""
    groups: dict[str | Name, list[Given]] = {}
    for query, answer in given:
        if not answer.failures:
            groups.setdefault(query.pair or name_of(query), []).append((query, answer))
    size = 2 if task.form == "pair" else 1
    return [_item(number, kind_of(task), group) for group in groups.values() if len(group) == size]


def name_of(query: Query) -> Name:
    """What tells the queries of a task apart."""
    return query.id, query.occurrence


def _item(number: int, kind: Kind, group: Sequence[Given]) -> Item:
    first, answer = group[0]
    texts = {"question": first.question, "answer": " or ".join(first.references), "prediction": answer.reply}
    if len(group) == 2:
        texts |= {"question2": group[1][0].question, "prediction2": group[1][1].reply}
    return Item(number, kind, tuple(name_of(query) for query, _ in group), texts)
