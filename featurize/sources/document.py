"""A parsed annotation file, whatever its format."""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import fsspec

from featurize.sources.record import Row
from store import UserError

SUFFIXES = (".json", ".jsonl", ".csv")
LISTS = ("dialogs", "data")  # the fields under which AVSD and WavCaps keep their records
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A parsed annotation file.

    Attributes:
        url: path or fsspec URL.
        value: the JSON value, or the lines of a CSV file as lists of texts.
        given: all the documents of the command, this one among them: some formats have two files.
    """

    url: str
    value: Any
    given: tuple["Document", ...] = ()

    @property
    def stem(self) -> str:
        """The file's name without its extension."""
        return PurePosixPath(self.url).stem

    @property
    def folder(self) -> str:
        """The folder that the file lies in."""
        return self.url.rpartition("/")[0] or "."

    @property
    def is_csv(self) -> bool:
        """Whether this is a CSV file."""
        return self.url.lower().endswith(".csv")

    @property
    def lines(self) -> list[list[str]]:
        """The lines of a CSV file.

        Raises:
            UserError: this is no CSV file.
        """
        if not self.is_csv:
            raise UserError(f"{self.url}: expected a .csv file")
        lines: list[list[str]] = self.value
        return lines

    @property
    def split(self) -> dict[str, object]:
        """The split that the file's name tells, as meta data; nothing if it tells none."""
        words = re.split(r"[^a-z]+", self.stem.lower())
        return next(({"split": _SPLITS[word]} for word in words if word in _SPLITS), {})

    @cached_property
    def records(self) -> list[Any]:
        """The records: of a list, of an object's list `dialogs` or `data`, or of a CSV file with a header."""
        if self.is_csv:
            header = self.value[0] if self.value else []
            return [dict(zip(header, line, strict=False)) for line in self.value[1:]]
        if isinstance(self.value, dict):
            return next((self.value[name] for name in LISTS if isinstance(self.value.get(name), list)), [])
        return self.value if isinstance(self.value, list) else []

    @property
    def first(self) -> dict[str, Any]:
        """The first record, or nothing where there is none."""
        return self.records[0] if self.records and isinstance(self.records[0], dict) else {}

    def has(self, *fields: str) -> bool:
        """Whether the first record has all the fields."""
        return all(field in self.first for field in fields)

    def rows(self) -> Iterator[Row]:
        """The records with their places, for messages."""
        word, first = ("row", 1) if self.is_csv else ("record", 0)
        for number, value in enumerate(self.records, first):
            yield Row(value, number, f"{self.url}, {word} {number}")

    def sibling(self, name: str) -> str:
        """The path or URL of the file `name` in the same folder."""
        folder, slash, _ = self.url.rpartition("/")
        return f"{folder}{slash}{name}"

    def beside(self, name: str) -> str | None:
        """The text of the file `name` in the same folder, or None if there is no such file."""
        fs, path = fsspec.core.url_to_fs(self.sibling(name))
        return read_text(self.sibling(name)) if fs.isfile(path) else None


def read_text(url: str) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: the file is not UTF-8.
    """
    fs, path = fsspec.core.url_to_fs(url)
    try:
        return bytes(fs.cat_file(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{url}: not UTF-8: {error}") from None


def parse(text: str, url: str) -> Document:
    """Parse a file by its extension: .json, .jsonl or .csv.

    Raises:
        UserError: it is not what its extension says; names the line.
    """
    suffix = PurePosixPath(url).suffix.lower()
    if suffix == ".csv":
        return Document(url, _parse_csv(text, url))
    if suffix == ".jsonl":
        lines = enumerate(text.split("\n"), 1)
        return Document(url, [_parse_json(line, f"{url}, line {n}") for n, line in lines if line.strip()])
    return Document(url, _parse_json(text, url))


def _parse_csv(text: str, url: str) -> list[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        return [line for line in reader if line]
    except csv.Error as error:
        raise UserError(f"{url}, line {reader.line_num}: not CSV: {error}") from None


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON: {error}") from None
