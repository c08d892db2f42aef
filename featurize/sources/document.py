"""A parsed annotation file, whatever its format."""

import contextlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, TextIO

import fsspec

from featurize.sources.lines import Line, read_lines, to_records
from featurize.sources.record import Broken, LeftOut, Read, Records, Row
from store import UserError
from store.items import batched

SUFFIXES = (".json", ".jsonl", ".csv")
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # of what other programs call CSV
PIECE = 20_000  # records
LISTS = ("dialogs", "data", "annotations")  # the fields under which AVSD, WavCaps and COCO keep their records
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class Document:
    """A parsed annotation file.

    Attributes:
        url: path or fsspec URL.
        value: the JSON value, or the lines of a CSV file.
        given: all documents of the command, including this one: some formats consist of two files.
        instruction: the question that captions of a list answer; by default chosen by the kind of the file.
        numbers: the line of each record, from 1, of a file with a record on each line.
        first: how many records of the file stand before these, if this is a piece of it.
    """

    url: str
    value: Any
    given: tuple["Document", ...] = ()
    instruction: str | None = None
    numbers: tuple[int, ...] = ()
    first: int = 0

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
    def lines(self) -> list[Line]:
        """The lines of a CSV file.

        Raises:
            UserError: this is no CSV file.
        """
        if not self.is_csv:
            raise UserError(f"{self.url}: expected a .csv file")
        lines: list[Line] = self.value
        return lines

    @property
    def split(self) -> dict[str, object]:
        """The split that the file's name tells, as metadata; empty if it tells none."""
        words = re.split(r"[^a-z]+", self.stem.lower())
        return next(({"split": _SPLITS[word]} for word in words if word in _SPLITS), {})

    def headed(self, *names: str) -> "Document":
        """This CSV file, which has no header, under the header `names`."""
        return replace(self, value=[Line(0, list(names)), *self.lines])

    @cached_property
    def records(self) -> list[Any]:
        """The records: of a list, of an object's `dialogs`, `data` or `annotations`, or of a CSV file with a header.

        A `Broken` takes the place of a record that cannot be parsed.
        """
        if self.is_csv:
            return to_records(self.lines[1:], self.lines[0].fields) if self.lines else []
        if isinstance(self.value, dict):
            return next((self.value[name] for name in LISTS if isinstance(self.value.get(name), list)), [])
        return self.value if isinstance(self.value, list) else []

    @cached_property
    def objects(self) -> list[dict[str, Any]]:
        """The records that are objects."""
        return [record for record in self.records if isinstance(record, dict)]

    def most(self, test: Callable[[dict[str, Any]], bool]) -> bool:
        """Whether at least half of the records pass the test, so that a few odd ones do not decide the format."""
        return bool(self.objects) and 2 * sum(map(test, self.objects)) >= len(self.objects)

    def has(self, *fields: str) -> bool:
        """Whether at least half of the records have all the fields."""
        return self.most(lambda record: all(field in record for field in fields))

    def ids(self, field: str) -> frozenset[str]:
        """All the ids in a field of the records."""
        return frozenset(str(record[field]) for record in self.objects if record.get(field) is not None)

    def each(self, read: Read) -> Records:
        """Read the records one by one; one that cannot be read becomes a `LeftOut`."""
        lines = [line.number for line in self.lines[1:]] if self.is_csv else self.numbers
        word, counted = ("line", lines) if lines else ("record", range(1, len(self.records) + 1))
        for number, (value, at) in enumerate(zip(self.records, counted, strict=True), self.first + self.is_csv):
            try:
                yield from self._read(read, value, number, f"{self.url}, {word} {at}")
            except UserError as error:
                id = value.get("id") if isinstance(value, dict) else None
                yield LeftOut(str(at if id in (None, "") else id), self.place(error), fault=True)

    def place(self, error: UserError) -> str:
        """An error's message without the file's name."""
        return str(error).removeprefix(f"{self.url}, ")

    def _read(self, read: Read, value: Any, number: int, where: str) -> Records:
        if isinstance(value, Broken):
            raise UserError(f"{self.url}, {value.reason}")
        return iter(list(read(Row(value, number, where))))

    def sibling(self, name: str) -> str:
        """The path or URL of the file `name` in the same folder."""
        folder, slash, _ = self.url.rpartition("/")
        return f"{folder}{slash}{name}"

    def beside(self, name: str) -> str | None:
        """The text of the file `name` in the same folder, or None if there is no such file."""
        fs, path = fsspec.core.url_to_fs(self.sibling(name))
        return read_text(self.sibling(name)) if fs.isfile(path) else None


def read_pieces(url: str) -> Iterator[Document]:
    """A file in pieces of at most `PIECE` records; a .json file, and an empty one, is one piece.

    Raises:
        UserError: the text does not match the file's extension, or is not UTF-8; names the line.
    """
    suffix = PurePosixPath(url).suffix.lower()
    if suffix == ".json":
        yield parse(read_text(url), url)
        return
    with _opened(url, newline="" if suffix == ".csv" else "\n") as text:
        yield from _csv_pieces(text, url) if suffix == ".csv" else _jsonl_pieces(text, url)


def joined(first: Document, others: Iterable[Document]) -> Document:
    """The pieces of a file as one document."""
    pieces = [first, *others]
    values = [value for piece in pieces for value in piece.value[int(piece.is_csv and piece is not first) :]]
    return replace(first, value=values, numbers=tuple(number for piece in pieces for number in piece.numbers))


@contextlib.contextmanager
def _opened(url: str, newline: str) -> Iterator[TextIO]:
    fs, path = fsspec.core.url_to_fs(url)
    try:
        with fs.open(path, "rb") as file, io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text:
            yield text
    except UnicodeDecodeError as error:
        raise UserError(f"{url}: not UTF-8: {error}") from None


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
        UserError: the text does not match its extension; names the line.
    """
    suffix = PurePosixPath(url).suffix.lower()
    if suffix == ".json":
        return Document(url, _parse_json(text, url))
    lines = io.StringIO(text, newline="" if suffix == ".csv" else "\n")
    first, *others = _csv_pieces(lines, url) if suffix == ".csv" else _jsonl_pieces(lines, url)
    return joined(first, others)


def _csv_pieces(text: TextIO, url: str) -> Iterator[Document]:
    lines = read_lines(text)
    header = list(itertools.islice(lines, 1))
    for line in header:
        _check_header(line, url)
    count = 0
    for rows in batched(lines, PIECE):
        yield Document(url, header + rows, first=count)
        count += len(rows)
    if not count:
        yield Document(url, header)


def _check_header(line: Line, url: str) -> None:
    where = f"{url}, line {line.number}"
    if line.fault:
        raise UserError(f"{where}: {line.fault}")
    if len(line.fields) == 1 and (found := [name for mark, name in SEPARATORS.items() if mark in line.fields[0]]):
        raise UserError(f"{where}: expected fields separated by commas, found {found[0]}: {line.fields[0][:200]!r}")


def _jsonl_pieces(text: TextIO, url: str) -> Iterator[Document]:
    count = 0
    filled = ((number, line) for number, line in enumerate(text, 1) if line.strip())  # blank lines are skipped
    for lines in batched(filled, PIECE):
        if not count and lines[0][1].lstrip().startswith("["):
            raise UserError(f"{url}: expected a JSON object on each line; found a list: call the file .json")
        values = [_parse_line(line, number) for number, line in lines]
        if not count and isinstance(values[0], Broken) and all(isinstance(value, Broken) for value in values):
            raise UserError(f"{url}, {values[0].reason}")
        yield Document(url, values, numbers=tuple(number for number, _ in lines), first=count)
        count += len(values)
    if not count:
        yield Document(url, [])


def _parse_line(line: str, number: int) -> Any:
    try:
        return _loads(line)
    except ValueError as error:
        return Broken(f"line {number}: not JSON: {error}")


def _parse_json(text: str, url: str) -> Any:
    try:
        return _loads(text)
    except ValueError as error:
        if not text.strip():
            raise UserError(f"{url}: the file is empty; expected a list of records") from None
        if isinstance(error, json.JSONDecodeError) and (
            error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        ):
            raise UserError(
                f"{url}: not JSON: the file ends in the middle of a record, in line {len(text.splitlines())}"
            ) from None
        hint = "; with an object on each line, call the file .jsonl" if _is_lines(text) else ""
        raise UserError(f"{url}: not JSON: {error}{hint}") from None


def _is_lines(text: str) -> bool:
    try:
        return isinstance(_loads(text.lstrip().partition("\n")[0]), dict)
    except ValueError:
        return False


def _loads(text: str) -> Any:
    """A JSON value; NaN and the infinities, which pandas writes for missing values, become null."""
    return json.loads(text, parse_constant=lambda _: None)
