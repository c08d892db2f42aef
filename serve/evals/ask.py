"""Ask tasks: the questions of a rank go to the engine, and each answer to disk as it comes."""

import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from featurize.media import MediaError
from serve.assistant import Assistant, Question
from serve.engine import Limits, Piece
from serve.evals.answers import Answer, Key, key_of
from serve.evals.tasks import Query, Task, senses_needed
from serve.features import Features
from store import Sense, UserError

AHEAD = 2  # questions that wait for the engine, for each that it answers at once


@dataclass(frozen=True)
class Asked:
    """A query of a task, as it is asked."""

    task: Task
    query: Query
    key: Key


def all_asked(tasks: Sequence[tuple[Task, str, Sequence[Query]]]) -> list[Asked]:
    """The questions of some tasks, each once; every task comes with the name of its conversations."""
    asked = [Asked(task, query, key_of(task, name, query)) for task, name, made in tasks for query in made]
    return list({each.key: each for each in asked}.values())


def ask(
    assistant: Assistant,
    store: str,
    asked: Sequence[Asked],
    write: Callable[[Key, Answer], None],
) -> None:
    """Ask questions; each answer is written as it comes, in any order.

    Args:
        assistant: answers.
        store: holds the features.
        asked: the questions.
        write: keeps an answer. A question whose features cannot be used has one with the reasons.

    Raises:
        UserError: the store lacks a column of the checkpoint.
        Exception: whatever generation raised; answers written before are kept.
    """
    for sense in sorted({sense for each in asked for sense in senses_needed(each.query)}):
        assistant.features.open(store, sense)
    done: queue.SimpleQueue[tuple[Asked, Answer | Exception]] = queue.SimpleQueue()
    under_way, cancels = 0, dict[Key, Callable[[], None]]()

    def settle() -> None:
        each, answer = done.get()
        cancels.pop(each.key, None)
        if isinstance(answer, Exception):
            raise answer
        write(each.key, answer)

    try:
        for each, features in _with_features(assistant, store, asked):
            cancels[each.key] = _submit(assistant, each, features, done)
            under_way += 1
            while under_way > AHEAD * assistant.engine.at_once or not done.empty():
                settle()
                under_way -= 1
        for _ in range(under_way):
            settle()
    finally:
        for cancel in cancels.values():
            cancel()


def _submit(
    assistant: Assistant, each: Asked, features: Features, done: "queue.SimpleQueue[tuple[Asked, Answer | Exception]]"
) -> Callable[[], None]:
    if features.failures:
        failures: dict[str, str] = {sense: f"{error.code}: {error}" for sense, error in features.failures.items()}
        done.put((each, Answer(failures=failures)))
        return lambda: None
    pieces: list[Piece] = []

    def deliver(piece: Piece) -> None:
        pieces.append(piece)
        if piece.error:
            done.put((each, piece.error))
        elif piece.reason:
            text = "".join(piece.text for piece in pieces).removeprefix(" ")  # which the prompt's form asks for
            done.put((each, Answer(text, piece.tokens, piece.reason, len(rows))))

    task = each.task
    question = Question(each.query.turns, features.arrays, task.system, task.answer_prefix)
    limits = Limits(task.max_new_tokens, task.temperature, seed=int(each.key.prompt, 16) >> 1)
    try:
        rows = assistant.prompts.embed(question)
        return assistant.engine.submit(rows, limits, deliver)
    except UserError as error:
        raise UserError(f"task {task.name}, question {each.query.id!r} about {each.query.key}: {error}") from None


def _with_features(assistant: Assistant, store: str, asked: Sequence[Asked]) -> Iterator[tuple[Asked, Features]]:
    """Each question with the features that it asks by; neighbours about one clip share a read."""
    last: tuple[str, list[Sense]] | None = None
    features = Features()
    for each in asked:
        wanted = (each.query.key, senses_needed(each.query))
        if wanted != last:
            features, last = _load(assistant, store, *wanted), wanted
        yield each, features


def _load(assistant: Assistant, store: str, key: str, senses: Sequence[Sense]) -> Features:
    readers = {sense: assistant.features.open(store, sense) for sense in senses}
    lacking = [s for s, reader in readers.items() if key not in reader and key not in reader.failed]
    if lacking:
        return Features(failures=dict.fromkeys(lacking, MediaError("missing", "not featurized")))
    return assistant.features.load(store, key, senses)
