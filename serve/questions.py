"""A file of questions for `avllm serve answer`: one JSON object on each line."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from store import Settings, UserError, parse_settings

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
    id: str | None = None

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
        raise UserError(f"{path}: cannot be read: {error}") from None
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
