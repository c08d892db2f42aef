"""The records that every reader yields, and the rows that it takes fields from."""

import math
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from typing import Any, Never

from featurize.sources.kinds import guess_kind
from store import Candidate, Modality, Turn, UserError


@dataclass(frozen=True)
class Record:
    """A media file that a source names, with the conversation about it.

    Attributes:
        id: the source's own id.
        media: the file, or None for text only.
        turns: the conversation; none if the source only names the file.
        meta: whatever else the source says, JSON values by name (docs/corpora.md).
    """

    id: str
    media: Candidate | None
    turns: tuple[Turn, ...] = ()
    meta: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A record that does not become a conversation.

    Attributes:
        id: its own id, or its place where it has none.
        reason: why; with its place if something is wrong with it.
        fault: something is wrong with it, so `--strict` stops at it.
    """

    id: str
    reason: str
    fault: bool = False


@dataclass(frozen=True)
class Broken:
    """Takes the place of a record that cannot be parsed; `reason` names its line."""

    reason: str


Records = Iterator[Record | LeftOut]
Read = Callable[["Row"], Iterable[Record | LeftOut]]  # turns one row of a file into records


def ask(
    id: str, media: Candidate, question: str, answer: str, meta: dict[str, object], modality: Modality = "visual"
) -> Record:
    """A record of one question and its answer; both are also in `meta`, so that evaluation may word its own prompt."""
    return Record(id, media, (Turn(question, modality, answer),), {"question": question, "answer": answer, **meta})


def part_of(media: Candidate, start: float | None, end: float | None) -> Candidate:
    """The part of a video or sound from `start` to `end` seconds, with the bounds added to its name.

    Raises:
        UserError: it is a still, or a folder of stills whose `fps` is unknown.
    """
    if start is None and end is None:
        return media
    if media.kind == "image":
        raise UserError(f"{media.name}: a still has no part from {start or 0:g} s on")
    if media.bytes and not guess_kind(media.uri) and media.fps is None:
        raise UserError(f"{media.name}: a part of a folder of stills; --fps says how many make a second")
    root, _, suffix = media.name.rpartition(".") if guess_kind(media.name) else (media.name, "", "")
    bounds = f"{start or 0:g}_{'end' if end is None else f'{end:g}'}"
    return replace(media, name=f"{root}_{bounds}{suffix and f'.{suffix}'}", start=start, end=end)


class Row:
    """The fields of one record of a file.

    Attributes:
        value: the fields by name.
        number: its place in the file, from 0 or, in CSV, from 1; it makes ids, so it never changes.
        where: file and place, for messages.
    """

    def __init__(self, value: Any, number: int, where: str) -> None:
        if not isinstance(value, dict):
            raise UserError(f"{where}: expected an object, found {type(value).__name__}")
        self.value: dict[str, Any] = value
        self.number, self.where = number, where

    def error(self, name: str, expected: str) -> UserError:
        """The error for a field that is not as expected."""
        actual = repr(self.value[name]) if name in self.value else f"fields {', '.join(map(str, self.value))}"
        return UserError(f"{self.where}, field {name!r}: expected {expected}; found {actual[:200]}")

    def label(self, name: str, taken: Set[str] = frozenset()) -> str:
        """An id as text; if null or empty, the record's place, prefixed where that id is `taken`."""
        if self.value.get(name) in (None, ""):
            return f"record-{self.number}" if str(self.number) in taken else str(self.number)
        return str(self.value[name]).strip()

    def text(self, name: str) -> str:
        """A text, or a number as text, stripped of blanks; it may be empty. Null is not a text, nor is NaN."""
        value = self.value.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.error(name, "text")
        return str(value).strip()

    def name(self, name: str) -> str:
        """A text that is not empty."""
        return self.text(name) or self._fail(name, "a name or id")

    def texts(self, name: str) -> list[str]:
        """A list of at least one text, with nulls dropped; a single text becomes a list of one."""
        value = self.value.get(name)
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list):
            texts = [text for text in texts if text is not None]
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str | int | float) for t in texts):
            raise self.error(name, "a list of texts")
        return [str(text).strip() for text in texts]

    def seconds(self, name: str) -> float:
        """A time in seconds."""
        try:
            seconds = float(self.value[name])
        except (KeyError, TypeError, ValueError):
            seconds = math.nan
        return seconds if math.isfinite(seconds) else self._fail(name, "seconds")

    def bounds(self) -> tuple[float | None, float | None]:
        """`start` and `end` of the part of a file, in seconds; None for one that is not given."""
        given = [name for name in ("start", "end") if self.value.get(name) not in (None, "")]
        start, end = (self.seconds(name) if name in given else None for name in ("start", "end"))
        if start is not None and start < 0:
            raise self.error("start", "seconds from the file's beginning")
        if end is not None and end <= (start or 0.0):
            raise self.error("end", f"seconds after {start or 0:g}, where the part starts")
        return start, end

    def rest(self, *used: str) -> dict[str, object]:
        """All fields but those `used`."""
        return {name: value for name, value in self.value.items() if name not in used}

    def _fail(self, name: str, expected: str) -> Never:
        raise self.error(name, expected)
