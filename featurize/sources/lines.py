"""Read CSV strictly: a row of another width than the header's is reported, never cut or padded."""

import csv
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from featurize.sources.kinds import guess_kind
from featurize.sources.record import Broken


@dataclass(frozen=True)
class Line:
    """A row of a CSV file.

    Attributes:
        number: the line of the file that it begins in, from 1.
        fields: its fields; none if it cannot be read.
        fault: why it cannot be read.
    """

    number: int
    fields: list[str]
    fault: str = ""


def read_lines(physical: Iterable[str]) -> Iterator[Line]:
    """The rows of a CSV file, from its lines; blank lines are skipped.

    A row that cannot be read ends with its first line, so that it swallows no others.
    """
    coming, again = iter(physical), deque[str]()
    number = 0
    row: list[str] = []  # the lines of the row that is being read

    def feed() -> Iterator[str]:
        while (line := again.popleft() if again else next(coming, None)) is not None:
            row.append(line)
            yield line

    reader = csv.reader(feed(), strict=True)
    while True:
        row.clear()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Line(number + 1, [], f"not CSV: {error}")
            number += 1
            again.extendleft(reversed(row[1:]))
            reader = csv.reader(feed(), strict=True)
            continue
        if any(field.strip() for field in fields) or row[0].strip():
            yield Line(number + 1, fields)
        number += len(row)


def to_records(lines: Sequence[Line], header: Sequence[str]) -> list[dict[str, str] | Broken]:
    """Rows as fields by name; a row that has more or fewer fields than the header is broken.

    A line break without quotes cuts a row in two. If it cuts the last field, the first half is as wide as the header:
    that half is broken too if the next line is a single field unlike those of the first column.
    """
    whole = [len(line.fields) == len(header) for line in lines]
    first = {_shape(line.fields[0]) for line, is_whole in zip(lines, whole, strict=True) if is_whole}
    records: list[dict[str, str] | Broken] = []
    for line, is_whole in zip(lines, whole, strict=True):
        if is_whole:
            records.append(dict(zip(header, line.fields, strict=True)))
            continue
        if _is_rest(line, len(header), first) and records and not isinstance(records[-1], Broken):
            records[-1] = Broken(f"line {line.number - 1}: cut by a line break without quotes")
        records.append(Broken(f"line {line.number}: {line.fault or _width(line, len(header))}"))
    return records


def _width(line: Line, expected: int) -> str:
    return f"expected {expected} fields, found {len(line.fields)}; a comma or line break in a field needs quotes"


def _is_rest(line: Line, width: int, first: set[tuple[bool, bool, bool]]) -> bool:
    return width > 1 and len(line.fields) == 1 and _shape(line.fields[0]) not in first


def _shape(value: str) -> tuple[bool, bool, bool]:
    """Features that tell a file name, a number and a phrase apart."""
    value = value.strip()
    return guess_kind(value) is not None, value.isdigit(), " " in value
