"""The judge: an outside LLM reads each answer beside the right one. Every reply is kept in a ledger.

A reply that can be read is never asked for again; one that cannot is, as often as the protocol says.
What is asked and how replies are read is a protocol (protocols.py). What the judge could not be asked stays undecided:
it is neither right nor wrong, and the next run asks it. Several judges may read the same answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.batch import BatchFolder
from curate.client import Client
from curate.ledger import Ledger, Reply, Request
from serve.evals.anchors import Anchor, by_kind, compare, load_anchors
from serve.evals.judge_settings import JudgeFile, JudgeSettings
from serve.evals.judgements import Given, Item, Judged, Judgements, items_of, kind_of
from serve.evals.protocols import ProtocolName
from serve.evals.tasks import Task
from store import UserError, load_settings, parse_settings
from store.console import Meter, console
from store.settings import override

LEDGER = "judgements.jsonl"


@dataclass(frozen=True)
class Judging:
    """Who judges, and where replies are kept.

    Attributes:
        judges: each asked about every answer.
        ledger: file of replies, which other evaluations may share; None for one beside the answers.
        batch: folder of batch files in place of asking servers; None asks.
        anchors: answers with known verdicts, which are judged along.
    """

    judges: tuple[JudgeSettings, ...]
    ledger: Path | None = None
    batch: Path | None = None
    anchors: tuple[Anchor, ...] = ()

    def path(self, folder: Path) -> Path:
        """The ledger of an evaluation."""
        return self.ledger or folder / LEDGER


def make_judging(
    urls: Sequence[str],
    model: str | None,
    overrides: Sequence[str] = (),
    protocol: ProtocolName = "avllm",
    *,
    file: Path | None = None,
    ledger: Path | None = None,
    batch: Path | None = None,
    anchors: Path | None = None,
) -> Judging:
    """The judges that a command names.

    Args:
        urls: of servers of one judge.
        model: as they call it.
        overrides: `field=value` of its other settings.
        protocol: what it is asked.
        file: YAML of judges, in place of all before.
        ledger: file of replies; None for one beside the answers.
        batch: folder of batch files; None asks servers.
        anchors: YAML of answers with known verdicts; None takes the built-in ones.

    Raises:
        UserError: the model is not named, a setting is wrong, or a file cannot be read.
    """
    if file:
        judges = load_settings(JudgeFile, file).judges
    elif not model:
        raise UserError("--judge needs --judge-model: the judge, as its server calls it")
    else:
        data: dict[str, Any] = {"urls": list(urls), "model": model, "protocol": protocol}
        for word in overrides:
            override(data, word)
        judges = (parse_settings(JudgeSettings, data, "--judge-set"),)
    return Judging(judges, ledger, batch, load_anchors(anchors))


def judge_all(judging: Judging, tasks: Sequence[tuple[Task, Sequence[Given]]], folder: Path) -> list[list[Judgements]]:
    """Judge the answers to tasks, and anchors of their kinds; what the ledger knows is not asked.

    Args:
        judging: who judges.
        tasks: each with its answers.
        folder: of the answers, for a ledger that has no place of its own.

    Returns:
        By judge, the judgements of each task.

    Raises:
        UserError: as `Client.ask_all`; judgements that came before are kept.
    """
    return [_judge(judging, judge, tasks, folder) for judge in judging.judges]


def _judge(
    judging: Judging, judge: JudgeSettings, tasks: Sequence[tuple[Task, Sequence[Given]]], folder: Path
) -> list[Judgements]:
    """The judgements of each task by one judge."""
    kinds = [kind_of(task) for task, _ in tasks]
    anchors = {kind: known for kind, known in by_kind(judging.anchors).items() if kind in kinds}
    found = [Judgements(judge.protocol, judge.model, judge.asked_by.digest) for _ in (*tasks, *anchors)]
    left = [item for number, (task, given) in enumerate(tasks) for item in items_of(number, task, given)]
    if left:
        left += [a.item(n, i) for n, known in enumerate(anchors.values(), len(tasks)) for i, a in enumerate(known)]
    asker = BatchFolder(judging.batch, judge) if judging.batch else Client(judge)
    with Ledger(judging.path(folder), judge.limit) as ledger:
        if ledger.unsettled:
            console.print(f"{ledger.path}: {ledger.unsettled} requests of killed runs were perhaps billed")
        for ask in range(judge.asked_by.tries):
            left = _ask(judge, asker, ledger, left, ask, found) if left else []
    for (kind, known), judged in zip(anchors.items(), found[len(tasks) :], strict=True):
        compare(known, judged, [found[number] for number, own in enumerate(kinds) if own == kind])
    return found[: len(tasks)]


def _ask(
    judge: JudgeSettings,
    asker: Client | BatchFolder,
    ledger: Ledger,
    items: Sequence[Item],
    ask: int,
    found: Sequence[Judgements],
) -> list[Item]:
    """Ask for judgements; return the items whose replies cannot be used."""
    items_by: dict[str, list[Item]] = {}
    requests = []
    for item in items:
        request = judge.request(item, ask)
        requests.append(request)
        items_by.setdefault(request.digest, []).append(item)
    useless: list[Item] = []

    def keep(request: Request, reply: Reply) -> None:
        for item in items_by[request.digest]:
            judgement = judge.asked_by.read(item.kind, reply.text)
            found[item.task].by_name |= dict.fromkeys(item.names, Judged(judgement, reply))
            if judgement.verdict is None and judgement.score is None:
                useless.append(item)
        meter.advance(1)

    told = f"judging by {judge.model}" if not ask else f"judging again by {judge.model} ({ask})"
    with Meter(told, len(items_by), "answers") as meter:
        outcome = asker.ask_all(requests, ledger, keep)
    for reason in list(outcome.undecided.values())[:1]:
        console.print(f"{len(outcome.undecided)} judgements are undecided, for example: {reason}", markup=False)
    return useless
