"""The join report: the files that a source names against those that exist."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from featurize.sources import LeftOut, Record, Source
from featurize.sources.copies import find_copies, in_threads
from store import Candidate, Part
from store.console import console

SHOWN = 3
LISTED = 12


@dataclass(frozen=True)
class JoinReport:
    """The result of joining one source with its files.

    Attributes:
        source: its path or URL.
        format: the format that it was read as.
        conversations: how many it holds.
        media: number of distinct files it names: found, missing and unreadable together.
        found: number of them that exist and, as far as checked, are readable.
        missing: the URIs of files that are not there.
        unreadable: the reason by URI for files that are there but cannot be read.
        repeated_ids: ids that several records share.
        repeated_records: ids of records that equal an earlier one in file and turns.
        copies: groups of URIs of equal files (only with `--probe`), possibly across sources.
        ambiguous: candidate files by the name looked for, the chosen one first.
        left_out: records that cannot become a conversation.
        parts: number of media that are parts of a file.
        asks: number of turns by modality.
        without_media: number of conversations that name no file.
        unread: number of records with a field that no reader takes, by field name.
        passed_over: number of files of a folder that are no media, by extension.
        numbered: folders of numbered stills that are planned as stills, though they may be films.
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
    parts: int
    asks: dict[str, int] = field(default_factory=dict, compare=False)  # no part of the join itself
    without_media: int = 0
    unread: dict[str, int] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    numbered: list[str] = field(default_factory=list)


def join(sources: Sequence[Source], probe: bool = False) -> list[JoinReport]:
    """Compare the files that each source names with those that exist.

    Args:
        sources: as read.
        probe: open each file's header too, and look for copies of the same file, in all sources.
    """
    usable: dict[str, int] = {}
    reports = [_join(source, probe, usable) for source in sources]
    if probe:
        for group in find_copies(usable):
            last = max(
                n for n, source in enumerate(sources) if any(candidate.uri in group for candidate in source.media)
            )
            reports[last].copies.append(group)
    return reports


def _join(source: Source, probe: bool, usable: dict[str, int]) -> JoinReport:
    """The report of one source, without copies; the sizes of its usable files are added to `usable`, by URI."""
    media = {candidate.uri: candidate for candidate in source.media}
    missing = [uri for uri, candidate in media.items() if candidate.bytes is None]
    unreadable = {uri: "0 bytes" for uri, candidate in media.items() if candidate.bytes == 0}
    found = [candidate for candidate in media.values() if candidate.bytes]
    if probe:
        reasons = in_threads(_probe, found, f"probe {source.name}")
        unreadable |= {c.uri: reason for c, reason in zip(found, reasons, strict=True) if reason}
    sizes = {candidate.uri: candidate.bytes or 0 for candidate in found if candidate.uri not in unreadable}
    usable |= sizes
    return JoinReport(
        source=source.url,
        format=source.format,
        conversations=len(source.conversations),
        media=len(media),
        found=len(sizes),
        missing=missing,
        unreadable=unreadable,
        repeated_ids=[id for id, count in Counter(record.id for record in source.records).items() if count > 1],
        repeated_records=_repeated(source.records),
        copies=[],
        ambiguous=source.ambiguous,
        left_out=source.left_out,
        parts=len({candidate.part for candidate in source.media if candidate.part != Part(candidate.uri)}),
        asks=dict(Counter(turn.modality for record in source.records for turn in record.turns).most_common()),
        without_media=sum(record.media is None for record in source.conversations),
        unread=source.unread,
        passed_over=source.passed_over,
        numbered=source.numbered,
    )


def show(reports: Sequence[JoinReport]) -> None:
    """Print reports: a table of counts, then the first names of each problem."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=0)
    table.add_column("source", overflow="fold")
    for head in ("conversations", "media", "found", "missing", "unreadable", "repeated", "left\nout"):
        table.add_column(head, justify="right", no_wrap=True)
    for report in reports:
        repeated = len(report.repeated_ids) + len(report.repeated_records)
        counts = [report.conversations, report.media, report.found, len(report.missing), len(report.unreadable)]
        name = report.source.rstrip("/").rpartition("/")[2]
        table.add_row(escape(name), *map(str, [*counts, repeated, len(report.left_out)]))
    console.print(table)
    for report in reports:
        if report.format != "folder":
            console.print(f"{report.source}: read as {report.format}", markup=False)
        for line in _lines(report):
            console.print(f"{report.source}: {line}", markup=False)


def _lines(report: JoinReport) -> Iterable[str]:
    reasons = [f"{uri} ({reason})" for uri, reason in report.unreadable.items()]
    left_out = [f"{record.id} ({record.reason})" for record in report.left_out]
    for what, names in (
        ("not found", report.missing),
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
    if report.parts:
        yield f"{report.parts} parts of files, from `start` to `end`"


def _said(report: JoinReport) -> Iterable[str]:
    """Lines on the modalities of turns, and on what was not read."""
    if report.asks:
        yield f"turns ask: {_counts(report.asks)}"
    if 2 * report.without_media > report.conversations:
        yield f"most conversations, {report.without_media} of {report.conversations}, name no media file: text only"
    if report.unread:
        where = "records without a media file" if report.without_media else "its records"
        yield f"fields of {where} that are not read: {', '.join(report.unread)}"
    if report.passed_over:
        yield f"{sum(report.passed_over.values())} files passed over: {_counts(report.passed_over)}"
    if report.numbered:
        yield (
            f"{len(report.numbered)} folders of numbered stills are planned as stills: "
            f"{', '.join(report.numbered[:SHOWN])}; with --fps each is a film"
        )


def _counts(counts: dict[str, int]) -> str:
    shown = list(counts.items())[:LISTED]
    return ", ".join(f"{count} {what}" for what, count in shown) + (" ..." if len(counts) > LISTED else "")


def _repeated(records: Iterable[Record]) -> list[str]:
    seen = set()
    repeated = []
    for record in records:
        content = (record.media.part if record.media else None, record.turns)
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
