"""The join report: what a source names against the files that are there."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import fsspec
import xxhash
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from featurize.sources import LeftOut, Record, Source
from featurize.sources.kinds import guess_kind
from store import Candidate
from store.console import Meter, console

THREADS = 16
EDGE = 1 << 16  # bytes at either end of a file that are compared; with the size, enough to know a copy
SHOWN = 3
LISTED = 12
T = TypeVar("T")


@dataclass(frozen=True)
class JoinReport:
    """What became of one source.

    Attributes:
        source: its path or URL.
        format: the format that it was read as.
        conversations: how many it holds.
        media: how many different files it names: those found, missing and unreadable together.
        found: how many of them are there and, as far as was looked, readable.
        missing: the URIs of files that are not there.
        unreadable: the reason by URI for files that are there but cannot be read.
        repeated_ids: ids that stand on several records.
        repeated_records: ids of records that equal an earlier one in file and turns.
        copies: groups of URIs whose files are equal (looked for by `--probe` only).
        ambiguous: the files among which one had to be chosen, the chosen one first, by the name looked for.
        left_out: records that cannot become a conversation.
        whole: how many records mean a part of a file that will be read whole.
        asks: how many turns ask by which sense.
        without_media: how many conversations name no file.
        unread: how many records hold a field that nobody reads, by its name.
        passed_over: how many files of a folder are no media, by extension.
    """

    source: str
    format: str
    conversations: int
    media: int
    found: int
    missing: list[str]
    unreadable: dict[str, str]
    repeated_ids: list[str]
    repeated_records: list[str]
    copies: list[list[str]]
    ambiguous: dict[str, list[str]]
    left_out: list[LeftOut]
    whole: int
    asks: dict[str, int] = field(default_factory=dict, compare=False)  # says more than what was joined
    without_media: int = 0
    unread: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)


def join(source: Source, probe: bool = False) -> JoinReport:
    """Compare what a source names with the files that are there.

    Args:
        source: the source, as read.
        probe: open each file's header too, and look for copies of the same file.
    """
    media = {candidate.uri: candidate for candidate in source.media}
    missing = [uri for uri, candidate in media.items() if candidate.bytes is None]
    unreadable = {c.uri: reason for c in media.values() if (reason := _fault(c))}
    usable = [c for c in media.values() if c.bytes is not None and c.uri not in unreadable]
    if probe:
        reasons = _in_threads(_probe, usable, f"probe {source.name}")
        unreadable |= {c.uri: reason for c, reason in zip(usable, reasons, strict=True) if reason}
        usable = [c for c in usable if c.uri not in unreadable]
    return JoinReport(
        source=source.url,
        format=source.format,
        conversations=len(source.conversations),
        media=len(media),
        found=len(usable),
        missing=missing,
        unreadable=unreadable,
        repeated_ids=[id for id, count in Counter(record.id for record in source.records).items() if count > 1],
        repeated_records=_repeated(source.records),
        copies=_copies(usable) if probe else [],
        ambiguous=source.ambiguous,
        left_out=source.left_out,
        whole=sum(record.whole for record in source.records),
        asks=dict(Counter(turn.modality for record in source.records for turn in record.turns).most_common()),
        without_media=sum(record.media is None for record in source.conversations),
        unread=source.unread,
        passed_over=source.passed_over,
    )


def show(reports: Sequence[JoinReport]) -> None:
    """Print reports: a table of counts, then the first names of what is not as it should be."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("source", overflow="fold")
    for head in (
        "format",
        "conver-\nsations",
        "media",
        "found",
        "missing",
        "un-\nreadable",
        "re-\npeated",
        "left\nout",
    ):
        table.add_column(head, justify="left" if head == "format" else "right", no_wrap=True)
    for report in reports:
        repeated = len(report.repeated_ids) + len(report.repeated_records)
        counts = [report.conversations, report.media, report.found, len(report.missing), len(report.unreadable)]
        name = report.source.rstrip("/").rpartition("/")[2]
        table.add_row(escape(name), report.format, *map(str, [*counts, repeated, len(report.left_out)]))
    console.print(table)
    for report in reports:
        for line in _lines(report):
            console.print(f"{report.source}: {line}", markup=False)


def _lines(report: JoinReport) -> Iterable[str]:
    reasons = [f"{uri} ({reason})" for uri, reason in report.unreadable.items()]
    left_out = [f"{each.id} ({each.reason})" for each in report.left_out]
    for what, names in (
        ("not found now", report.missing),
        ("unreadable", reasons),
        ("ids on several records", report.repeated_ids),
        ("records like an earlier one", report.repeated_records),
        ("copies of a file", [" = ".join(group) for group in report.copies]),
        ("one of several files taken", [paths[0] for paths in report.ambiguous.values()]),
        ("left out", left_out),
    ):
        if names:
            yield f"{len(names)} {what}: {', '.join(names[:SHOWN])}{' ...' if names[SHOWN:] else ''}"
    yield from _said(report)
    if report.whole:
        yield f"{report.whole} mean a part of a file that will be read whole; cut the clips beforehand to avoid it"


def _said(report: JoinReport) -> Iterable[str]:
    """What was made of the records, and what was not read."""
    if report.asks:
        yield f"turns ask: {_counts(report.asks)}"
    if 2 * report.without_media > report.conversations:
        yield f"most conversations, {report.without_media} of {report.conversations}, name no media file: text only"
    if report.unread:
        where = "records without a media file" if report.without_media else "its records"
        yield f"fields of {where} that are not read: {', '.join(report.unread)}"
    if report.passed_over:
        yield f"{sum(report.passed_over.values())} files passed over: {_counts(report.passed_over)}"


def _counts(counts: dict[str, int]) -> str:
    shown = list(counts.items())[:LISTED]
    return ", ".join(f"{count} {what}" for what, count in shown) + (" ..." if len(counts) > LISTED else "")


def _fault(candidate: Candidate) -> str | None:
    if candidate.bytes == 0:
        return "0 bytes"
    if candidate.bytes and not guess_kind(candidate.uri) and _is_folder(candidate.uri):
        return "a folder of stills; only files can be encoded"
    return None


def _is_folder(uri: str) -> bool:
    fs, path = fsspec.core.url_to_fs(uri)
    return bool(fs.isdir(path))


def _repeated(records: Iterable[Record]) -> list[str]:
    seen = set()
    repeated = []
    for record in records:
        content = (record.media.uri if record.media else None, record.turns)
        if content in seen:
            repeated.append(record.id)
        seen.add(content)
    return repeated


def _probe(candidate: Candidate) -> str | None:
    from featurize.media import MediaError
    from featurize.media.probe import probe

    try:
        probe(candidate.uri, candidate.kind)
    except MediaError as error:
        return error.reason
    return None


def _copies(candidates: Iterable[Candidate]) -> list[list[str]]:
    """Groups of files of equal size, head and tail."""
    by_size: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        by_size.setdefault(candidate.bytes or 0, []).append(candidate)
    alike = [candidate for group in by_size.values() if len(group) > 1 for candidate in group]
    groups: dict[tuple[int, str], list[str]] = {}
    for candidate, digest in zip(alike, _in_threads(_digest, alike, "compare"), strict=True):
        groups.setdefault((candidate.bytes or 0, digest), []).append(candidate.uri)
    return [uris for uris in groups.values() if len(uris) > 1]


def _digest(candidate: Candidate) -> str:
    fs, path = fsspec.core.url_to_fs(candidate.uri)
    size = candidate.bytes or 0
    head = fs.cat_file(path, start=0, end=min(EDGE, size))
    tail = fs.cat_file(path, start=max(0, size - EDGE), end=size)
    return xxhash.xxh3_128_hexdigest(head + tail)


def _in_threads(work: Callable[[Candidate], T], candidates: Sequence[Candidate], what: str) -> list[T]:
    results: list[T] = []
    if not candidates:
        return results
    with ThreadPoolExecutor(THREADS) as pool, Meter(what, len(candidates), "files") as meter:
        for result in pool.map(work, candidates):
            results.append(result)
            meter.advance(1)
    return results
