"""Read the replies of LLMs: leniently as to form, strictly as to content."""

import json
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal

from curate.curation import Cell
from curate.texts import visible

Form = Literal["json", "lines"]
Exchange = tuple[str, str]  # a question and its answer; the question is empty in descriptions
THOUGHTS = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
FENCE = re.compile(r"\A\s*```\w*\s*\n(.*?)\n?```\s*\Z", re.DOTALL)
LABEL = re.compile(r"^[ \t*_#-]*(Q|A|Question|Answer)[ \t]*\d*[ \t*_]*[:.)][ \t*_]*", re.IGNORECASE | re.MULTILINE)
HEADING = re.compile(r"\A\s*(?:caption|description|reply|answer|A)\s*:\s*", re.IGNORECASE)
LENIENT = json.JSONDecoder(strict=False)
TRIED = 8  # places where JSON may begin
LOOKS_LIKE_JSON = re.compile(r'\A\s*[\[{]|\A\s*"\w+"\s*:')
FORMS: dict[Form, dict[str, str]] = {
    "json": {
        "description": 'Reply with JSON alone: {"description": "..."}',
        "conversation": 'Reply with JSON alone: {"turns": [{"question": "...", "answer": "..."}, ...]}',
        "reasoning": 'Reply with JSON alone: {"question": "...", "answer": "..."}',
    },
    "lines": {
        "description": "Reply with one line that begins with A: and holds the description alone.",
        "conversation": "Reply with lines that begin with Q: and A: in turn, and nothing else.",
        "reasoning": "Reply with one line that begins with Q: and one that begins with A:, and nothing else.",
    },
}


class UnusableError(Exception):
    """A reply that says nothing that can be used; the same may be asked again."""


def read_exchanges(text: str, cell: Cell, turns: tuple[int, int], longest: int) -> tuple[Exchange, ...]:
    """The questions and answers of a reply, as JSON or as lines.

    Args:
        text: the reply.
        cell: what was asked for.
        turns: the fewest and the most questions of a conversation; of more, the first are taken.
        longest: characters of a question or answer.

    Raises:
        UnusableError: there are none, too few, or one is empty or too long.
    """
    body = _body(text)
    found = list(_from_text(body, cell) if (data := _find_json(body)) is None else _from_data(data, cell))
    found = found[: turns[1] if cell.task == "conversation" else 1]
    fewest = turns[0] if cell.task == "conversation" else 1
    if len(found) < fewest:
        raise UnusableError(f"{len(found)} questions with answers, not {fewest}")
    for exchange in found:
        for part in exchange[cell.task == "description" :]:
            if not part or len(part) > longest:
                raise UnusableError("an empty question or answer" if not part else f"more than {longest} characters")
    return tuple(found)


def read_caption(text: str, longest: int) -> str:
    """A caption, on one line.

    Raises:
        UnusableError: there is none, or it is too long.
    """
    body = HEADING.sub("", _body(text)).strip()
    caption = _line(body[1:-1] if body[:1] == body[-1:] == '"' else body)
    if not caption or len(caption) > longest or LOOKS_LIKE_JSON.match(caption):
        raise UnusableError("no caption" if not caption else f"no caption of at most {longest} characters")
    return caption


def write_turns(lines: str, form: Form) -> str:
    """Lines `Q:` and `A:` in the form of a reply.

    Raises:
        ValueError: they are no such lines.
    """
    exchanges = list(_from_lines(lines))
    if not exchanges:
        raise ValueError(f"no questions and answers in {lines!r}")
    if form == "lines":
        return lines
    if len(exchanges) == 1:
        question, answer = exchanges[0]
        return json.dumps({"question": question, "answer": answer} if question else {"description": answer})
    return json.dumps({"turns": [{"question": question, "answer": answer} for question, answer in exchanges]})


def schema_of(cell: Cell) -> dict[str, Any]:
    """The form of a reply, as structured output asks for it."""
    text = {"type": "string"}
    if cell.task == "description":
        whole = _object(description=text)
    else:
        exchange = _object(question=text, answer=text)
        whole = exchange if cell.task == "reasoning" else _object(turns={"type": "array", "items": exchange})
    return {"type": "json_schema", "json_schema": {"name": cell.task, "strict": True, "schema": whole}}


def find_object(text: str) -> dict[str, Any]:
    """The first JSON object of a reply.

    Raises:
        UnusableError: there is none.
    """
    data = _find_json(_body(text))
    if not isinstance(data, dict):
        raise UnusableError("no JSON object")
    return data


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def _body(text: str) -> str:
    """What is meant for the reader: no thoughts, no fence of code around all."""
    text = THOUGHTS.sub("", text)
    fence = FENCE.match(text)
    return fence[1] if fence else text


def _find_json(text: str) -> Any:
    """The first JSON object or list of a text, or None."""
    for match in islice(re.finditer(r"[\[{]", text), TRIED):
        try:
            return LENIENT.raw_decode(text, match.start())[0]
        except (ValueError, RecursionError):
            continue
    return None


def _from_data(data: Any, cell: Cell) -> Iterator[Exchange]:
    """Questions and answers of parsed JSON."""
    if cell.task == "description":
        answer = data.get("description", data.get("answer")) if isinstance(data, dict) else None
        yield "", _line(answer)
        return
    listed = data.get("turns", [data]) if isinstance(data, dict) else data
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and {"question", "answer"} <= entry.keys():
            yield _line(entry["question"]), _line(entry["answer"])


def _from_text(body: str, cell: Cell) -> Iterator[Exchange]:
    """Questions and answers of a text that holds no JSON."""
    if LOOKS_LIKE_JSON.match(body):
        raise UnusableError("JSON that is cut or wrong")
    found = list(_from_lines(body))
    if cell.task == "description":
        yield "", found[0][1] if found else _line(body)
    else:
        yield from found


def _from_lines(text: str) -> Iterator[Exchange]:
    """Questions and answers of lines that begin with Q: and A:; an answer without a question has an empty one."""
    _, *parts = LABEL.split(text)
    question = ""
    for label, content in zip(parts[::2], parts[1::2], strict=True):
        if label[0] in "Qq":
            question = _line(content)
        else:
            yield question, _line(content)
            question = ""


def _line(value: Any) -> str:
    """A text on one line; nothing of anything else."""
    return visible(value) if isinstance(value, str) else ""


def quoted(quote: str, texts: Sequence[str]) -> bool:
    """Whether one of the texts holds a quote, as whole words; case, spaces and punctuation do not count."""
    wanted = _plain(quote)
    return bool(wanted) and any(f" {wanted} " in f" {_plain(text)} " for text in texts)


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
