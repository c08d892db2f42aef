"""`avllm serve answer`: a file of questions in, a file of answers out, line by line."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, NamedTuple

from serve.assistant import Assistant, Question
from serve.engine import EngineError, Limits, Piece, reply, until_end
from serve.features import available_modality
from serve.questions import Line, count_answered, senses_by_tokens
from store import Turn, UserError
from store.console import Meter, console
from store.tokens import split_tokens

AHEAD = 2  # questions that wait for the engine, for each that it answers at once
Answer = dict[str, Any]


def answer_lines(assistant: Assistant, lines: Sequence[Line], answers: Path, store: str | None, limits: Limits) -> None:
    """Write the answer to each question as a line; a file that is there already is gone on with.

    Args:
        assistant: answers.
        lines: the questions.
        answers: the file. A question that cannot be answered has an `error` instead.
        store: holds the features of keys.
        limits: of each answer; the number of the line is added to the seed.

    Raises:
        UserError: a file cannot be used, or the store lacks a column of the checkpoint.
        EngineError: the engine failed; answers before it are kept.
    """
    if store:
        for sense in assistant.features.senses:
            assistant.features.open(store, sense)
    answers.parent.mkdir(parents=True, exist_ok=True)
    with open(answers, "a+b", buffering=0) as file:
        done, failed = count_answered(answers, lines), 0
        _cut_last_line(file)
        with Meter("answers", len(lines), "answers", before=done) as meter:
            given = _answers(assistant, lines, done, store, limits)
            for line, answer in zip(lines[done:], given, strict=True):
                entry = line.model_dump(exclude_none=True) | answer
                file.write(json.dumps(entry, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
                failed += "error" in answer
                meter.advance(1, f"{failed} failed" if failed else "")
    said = f"{answers}: {len(lines) - done - failed} questions answered"
    if done:
        said += f", {done} more were before"
    if failed:
        said += f"; {failed} could not be answered, and have the field 'error'"
    console.print(said, markup=False)


def _cut_last_line(file: IO[bytes]) -> None:
    """Remove what a kill left of a line."""
    file.seek(0)
    file.truncate(file.read().rfind(b"\n") + 1)


class _UnderWay(NamedTuple):
    """A question that was submitted."""

    cancel: Callable[[], None]
    wait: Callable[[], Answer]


def _answers(
    assistant: Assistant, lines: Sequence[Line], first: int, store: str | None, limits: Limits
) -> Iterator[Answer]:
    """The answers to the lines from `first` on, in order; some questions are under way at once."""
    waiting: deque[_UnderWay] = deque()
    try:
        for number in range(first, len(lines)):
            waiting.append(_submit(assistant, lines[number], store, replace(limits, seed=limits.seed + number)))
            if len(waiting) > AHEAD * assistant.engine.at_once:
                yield waiting.popleft().wait()
        while waiting:
            yield waiting.popleft().wait()
    finally:
        for asked in waiting:
            asked.cancel()


def _submit(assistant: Assistant, line: Line, store: str | None, limits: Limits) -> _UnderWay:
    pieces: SimpleQueue[Piece] = SimpleQueue()
    try:
        cancel = assistant.engine.submit(assistant.prompts.embed(_question(assistant, line, store)), limits, pieces.put)
    except EngineError:
        raise
    except UserError as error:
        failure = {"error": str(error)}
        return _UnderWay(lambda: None, lambda: failure)

    def wait() -> Answer:
        answer = reply(list(until_end(pieces)))
        return {"answer": answer.text, "tokens": answer.tokens, "reason": answer.reason}

    return _UnderWay(cancel, wait)


def _question(assistant: Assistant, line: Line, store: str | None) -> Question:
    instruction, modality = split_tokens(line.question)
    chosen = senses_by_tokens(line.question)
    arrays = assistant.features.perceive(line.media, store, line.key, chosen)
    modality = modality if chosen else available_modality(arrays)
    return Question((Turn(instruction, modality, ""),), arrays)
