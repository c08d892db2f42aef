"""A file of questions for `avllm serve answer`: one JSON object on each line."""

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from store import Sense, Settings, UserError, parse_settings
from store.tokens import OURS, TOKENS, split_tokens

TAG = re.compile(r"<(/?)([A-Za-z_]+)>")
SOUND, SIGHT = frozenset({"AUD", "AUDIO", "SOUND", "AV"}), frozenset({"VIS", "VISUAL", "VIDEO", "IMAGE", "AV"})
NEAR = 0.8  # of the letters of a token
EXAMPLE = '{"key": "clip-mp4", "question": "What is seen?"}'


class Line(Settings):
    """A question about one item.

    Attributes:
        question: text; a token in it (<VIS>, <AUD>, <AUD_VIS>) says by which sense it asks; else it asks by every sense
            that the item has.
        key: the item's key in the store.
        media: a raw file instead.
        id: kept with the answer.
    """

    question: Annotated[str, Field(min_length=1)]
    key: str | None = None
    media: str | None = None
    id: str | int | None = None

    @field_validator("question")
    @classmethod
    def _check_question(cls, question: str) -> str:
        check_tokens(question)
        return question

    @model_validator(mode="after")
    def _check(self) -> "Line":
        if (self.key is None) == (self.media is None):
            raise ValueError("expected either key or media")
        return self


def read_questions(path: Path, has_store: bool) -> list[Line]:
    """The questions of a file with one JSON object on each line.

    Raises:
        UserError: a line is none, or names a key where no store is given.
    """
    try:
        texts = path.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UserError(f"{path}: cannot be read: {why}") from None
    lines = []
    for number, text in enumerate(texts[:-1] if texts[-1] == "" else texts, 1):
        where = f"{path}, line {number}"
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}; expected {EXAMPLE}") from None
        if not isinstance(fields, dict):
            raise UserError(f"{where}: expected an object, such as {EXAMPLE}")
        lines.append(parse_settings(Line, fields, where))
        if lines[-1].key and not has_store:
            raise UserError(f"{where}: field 'key': names an item of a store; give --store")
    return lines


def count_answered(path: Path, lines: Sequence[Line]) -> int:
    """How many of the first questions have their answers in a file; a last line that a kill cut does not count.

    Raises:
        UserError: the file cannot be read, or holds answers to other questions.
    """
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    kept = content[: content.rfind(b"\n") + 1].splitlines()
    for number, (text, line) in enumerate(zip(kept, lines, strict=False), 1):
        asked = line.model_dump(exclude_none=True)
        try:
            entry = json.loads(text)
            same = {name: entry.get(name) for name in asked} == asked
        except (ValueError, AttributeError):
            same = False
        if not same:
            raise UserError(f"{path}, line {number}: is not the answer to that question; give another --out")
    if len(kept) > len(lines):
        raise UserError(f"{path}: has {len(kept)} answers to {len(lines)} questions; give another --out")
    return len(kept)


def senses_by_tokens(question: str) -> list[Sense]:
    """The senses that a question's tokens ask by; empty without any."""
    modality = split_tokens(question)[1]
    if modality == "text":
        return []
    return ["visual", "audio"] if modality == "audio_visual" else [modality]


def check_tokens(question: str) -> None:
    """Refuse a question with what is almost a modality token, such as <aud_vis>, since it would pass for text.

    Raises:
        UserError: names it, and the token that is meant.
    """
    for tag in TAG.finditer(question):
        if tag[0] not in TOKENS and not tag[1] and f"</{tag[2]}>" not in question and (meant := _meant(tag[2])):
            raise UserError(f"{tag[0]} is no modality token; did you mean {meant}?")


def _meant(name: str) -> str | None:
    """The token that a name is made of the parts of, or, in capitals, close to."""
    parts = set(name.upper().split("_"))
    if parts <= SOUND | SIGHT:
        return "<AUD_VIS>" if parts & SOUND and parts & SIGHT else "<AUD>" if parts & SOUND else "<VIS>"
    near = difflib.get_close_matches(f"<{name}>", OURS, n=1, cutoff=NEAR) if name.isupper() else []
    return near[0] if near else None
