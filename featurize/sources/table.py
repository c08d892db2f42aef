"""Lists of media files: CSV with a header, or JSON lines. Columns: path (or uri), and optionally id and kind."""

import csv
import io
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, get_args

from featurize.sources.kinds import kind_of
from featurize.sources.locate import candidate
from store import Candidate, Kind, UserError


def read_csv(text: str, where: str, root: str) -> list[Candidate]:
    """The files of a CSV list.

    Raises:
        UserError: a row names no path; names file and row.
    """
    return _rows(csv.DictReader(io.StringIO(text)), where, root)


def parse_json_lines(text: str, where: str) -> list[Any]:
    """The values of a JSON lines file.

    Raises:
        UserError: a line is not JSON; names file and line.
    """
    values = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(f"{where}, line {number}: not JSON: {error}") from None
    return values


def read_rows(rows: list[Any], where: str, root: str) -> list[Candidate]:
    """The files of a list of JSON objects."""
    return _rows(rows, where, root)


def _rows(rows: Iterable[Any], where: str, root: str) -> list[Candidate]:
    return [_row(row, f"{where}, row {number}", root) for number, row in enumerate(rows, 1)]


def _row(row: Any, where: str, root: str) -> Candidate:
    path = (row.get("path") or row.get("uri")) if isinstance(row, dict) else None
    if not path or not isinstance(path, str):
        has = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        wanted = "expected a field 'path' or 'uri' with a file's name, or 'conversations' for LLaVA's form"
        raise UserError(f"{where}: {wanted}; found: {has}")
    kind = row.get("kind") or kind_of(path, where)
    if kind not in get_args(Kind):
        raise UserError(f"{where}: field 'kind': {kind!r}; accepted: {', '.join(get_args(Kind))}")
    found = candidate(path, root, kind)
    return replace(found, name=str(row["id"])) if row.get("id") else found
