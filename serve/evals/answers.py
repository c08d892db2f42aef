"""Answers on disk, a line of JSON for each question: scores are made of these and never ask the model again."""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from serve.evals.tasks import Query, Task
from store import UserError

RANKS = "ranks"  # holds the number of ranks at work, and their lock


class Key(NamedTuple):
    """What identifies an answer: tasks that ask the same of the same conversations share it."""

    conversations: str
    id: str
    occurrence: int
    prompt: str


@dataclass(frozen=True)
class Answer:
    """An answer as it was given, or why the question could not be asked.

    Attributes:
        reply: the raw text, after the task's answer prefix.
        tokens: generated.
        reason: why it ended.
        positions: of the prompt.
        failures: by sense, why the item's features cannot be used; the other fields are then empty.
    """

    reply: str = ""
    tokens: int = 0
    reason: str = ""
    positions: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)


def key_of(task: Task, conversations: str, query: Query) -> Key:
    """The key of a query's answer; its prompt is a digest of all that shapes the answer but the features."""
    shaping = [task.answer_prefix, task.system, task.max_new_tokens, task.temperature, query.key]
    turns = [[turn.instruction, turn.modality, turn.response] for turn in query.turns]
    text = json.dumps([*shaping, *turns])
    return Key(conversations, query.id, query.occurrence, hashlib.sha256(text.encode()).hexdigest()[:16])


def read_answers(folder: Path) -> dict[Key, Answer]:
    """All answers in a folder. The last line about a question counts, since a failure may have been mended.

    Raises:
        UserError: a line is not one of ours; a last line that was cut by a kill is skipped.
    """
    answers: dict[Key, Answer] = {}
    for path in sorted(folder.glob("answers*.jsonl")):
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
            try:
                entry = json.loads(line)
                key = Key(*(entry.pop(name) for name in Key._fields))
                answers[key] = Answer(**entry)
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{path}, line {number}: not an answer of `serve evaluate`; remove the line") from None
    return answers


class AnswerFile:
    """The answers of one rank, written as they come. A context manager; a file has one writer at a time.

    Args:
        folder: of the evaluation.
        rank: of this process.
        ranks: processes that share the questions.

    Raises:
        UserError: another process writes the same answers.
    """

    def __init__(self, folder: Path, rank: int, ranks: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._turn = _take_part(folder, ranks)
        name = "answers.jsonl" if ranks == 1 else f"answers-{rank}of{ranks}.jsonl"
        self._file = open(folder / name, "a+b", buffering=0)  # noqa: SIM115 closed in __exit__
        if not _lock(self._file, fcntl.LOCK_EX):
            raise UserError(f"{folder / name}: another process is writing it")
        self._cut_last_line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        self._turn.close()

    def write(self, key: Key, answer: Answer) -> None:
        """Append an answer; a process that is killed later keeps it."""
        entry = key._asdict() | {name: value for name, value in asdict(answer).items() if value}
        self._file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")

    def _cut_last_line(self) -> None:
        """Remove what a kill left of a line."""
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)


def _take_part(folder: Path, ranks: int) -> IO[str]:
    """Hold a lock that all ranks of one evaluation share; it holds their number."""
    file = open(folder / RANKS, "a+")  # noqa: SIM115 closed by the caller
    if _lock(file, fcntl.LOCK_EX):
        file.truncate(0)
        file.write(str(ranks))
        file.flush()
    fcntl.flock(file, fcntl.LOCK_SH)
    file.seek(0)
    if (others := file.read()) != str(ranks):
        raise UserError(f"{folder}: {others} processes share these questions; wait for them, or start the same number")
    return file


def _lock(file: IO[Any], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def share(count: int, rank: int, ranks: int) -> range:
    """The numbers of the questions that a rank asks: a run of neighbours, since these are about the same clips."""
    return range(rank * count // ranks, (rank + 1) * count // ranks)


def limited(count: int, limit: int | None) -> Sequence[int]:
    """The numbers of at most `limit` questions, spread evenly over all."""
    return range(count) if limit is None or limit >= count else [n * count // limit for n in range(limit)]
