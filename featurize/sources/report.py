"""The join report: the files that a source names against those that exist."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from featurize.sources import LeftOut, Source
from featurize.sources.chat import MAY_BE_TOKEN, lookalike, meant_by
from featurize.sources.copies import find_copies, in_threads
from featurize.sources.kinds import EXTENSIONS
from featurize.sources.spool import Spool
from featurize.sources.table import FIELDS
from store import Kind
from store.console import console
from store.hashes import first_places, hash_keys
from store.items import hash_parts, read_uri
from store.settings import guess

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
        lookalikes: number of turns with a tag that may be meant as a modality token, by tag.
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
    lookalikes: dict[str, int] = field(default_factory=dict)


def join(sources: Sequence[Source], probe: bool = False) -> list[JoinReport]:
    """Compare the files that each source names with those that exist.

    Args:
        sources: as read.
        probe: open each file's header too, and look for copies of the same file, in all sources.
    """
    facts = [_Facts(source.records) for source in sources]
    usable = [_usable(source, known, probe) for source, known in zip(sources, facts, strict=True)]
    reports = [_join(*each) for each in zip(sources, facts, usable, strict=True)]
    if probe:
        _find_copies(reports, [sizes for _, sizes in usable])
    return reports


class _Facts:
    """What is counted of records, in arrays of one element for each.

    Attributes:
        first: whether the record is the first of its source that names its file.
        bytes: size of its file, -1 if it was not found.
        ids: where the first record of the same id stands.
        contents: where the first record with the same file and turns stands.
        parts: number of different parts of files.
        conversations: number of records with turns.
        without_media: number of those that name no file.
        asks: number of turns by modality.
        lookalikes: number of turns with a tag that may be meant as a modality token, by tag.
    """

    def __init__(self, records: Spool) -> None:
        ids, uris, parts, contents, sizes, has_media, is_part = [], [], [], [], [], [], []
        self.conversations = self.without_media = 0
        self.asks: Counter[str] = Counter()
        self.lookalikes: Counter[str] = Counter()
        for batch in records.batches():
            named, bounds = batch.column("uri").is_valid(), [batch.column(name) for name in ("start", "end")]
            ids.append(hash_keys(batch.column("id")))
            uris.append(hash_keys(batch.column("uri")))
            texts = (batch.column("uri").fill_null(""), *bounds)
            parts.append(hash_parts(*(each.to_pylist() for each in texts)))
            contents.append(np.frombuffer(b"".join(batch.column("content").to_pylist()), "<u8").reshape(-1, 2))
            sizes.append(batch.column("bytes").fill_null(-1).to_numpy())
            has_media.append(_numpy(named))
            is_part.append(_numpy(pc.or_(*(each.is_valid() for each in bounds))))
            turns = batch.column("turns")
            has_turns = pc.greater(pc.list_value_length(turns), 0)
            self.conversations += pc.sum(has_turns).as_py()
            self.without_media += pc.sum(pc.and_(has_turns, pc.invert(named))).as_py()
            self.asks.update(turns.flatten().field("modality").to_pylist())
            questions = turns.flatten().field("instruction")
            odd = questions.filter(pc.match_substring_regex(questions, MAY_BE_TOKEN)).to_pylist()
            self.lookalikes.update(filter(None, map(lookalike, odd)))
        self.ids, self.contents = (first_places(_one(hashes, (0, 2))) for hashes in (ids, contents))
        self.first = (first_places(_one(uris, (0, 2))) == np.arange(len(records))) & _one(has_media, 0).astype(bool)
        self.bytes = _one(sizes, 0)
        self.parts = len(np.unique(first_places(_one(parts, (0, 2)))[_one(is_part, 0).astype(bool)]))


def _numpy(values: pa.Array) -> NDArray[Any]:
    return values.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _one(arrays: list[NDArray[Any]], empty: int | tuple[int, int]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(empty, np.uint64)


def _where(records: Spool, name: str, wanted: NDArray[np.bool_]) -> list[Any]:
    """The values of a column in the records that are wanted, in order."""
    values: list[Any] = []
    first = 0
    for batch in records.batches():
        values += batch.column(name).filter(pa.array(wanted[first : first + len(batch)])).to_pylist()
        first += len(batch)
    return values


def _uris(records: Spool, wanted: NDArray[np.bool_]) -> list[str]:
    return list(map(read_uri, _where(records, "uri", wanted)))


def _usable(source: Source, facts: _Facts, probe: bool) -> tuple[dict[str, str], dict[str, int]]:
    """Why files that are there cannot be read, by URI; with `probe` also the sizes of the others."""
    unreadable = dict.fromkeys(_uris(source.records, facts.first & (facts.bytes == 0)), "0 bytes")
    if not probe:
        return unreadable, {}
    found = facts.first & (facts.bytes > 0)
    uris, kinds = _uris(source.records, found), _where(source.records, "kind", found)
    reasons = in_threads(_probe, list(zip(uris, kinds, strict=True)), f"probe {source.name}")
    unreadable |= {uri: reason for uri, reason in zip(uris, reasons, strict=True) if reason}
    sizes = dict(zip(uris, facts.bytes[found].tolist(), strict=True))
    return unreadable, {uri: size for uri, size in sizes.items() if uri not in unreadable}


def _join(source: Source, facts: _Facts, usable: tuple[dict[str, str], dict[str, int]]) -> JoinReport:
    """The report of one source, without copies."""
    media, unreadable = int(facts.first.sum()), usable[0]
    missing = _uris(source.records, facts.first & (facts.bytes < 0))
    rows = np.arange(len(source.records))
    repeated = np.bincount(facts.ids, minlength=len(rows))[: len(rows)] > 1
    return JoinReport(
        source=source.url,
        format=source.format,
        conversations=facts.conversations,
        media=media,
        found=media - len(missing) - len(unreadable),
        missing=missing,
        unreadable=unreadable,
        repeated_ids=_where(source.records, "id", repeated & (facts.ids == rows)),
        repeated_records=_where(source.records, "id", facts.contents != rows),
        copies=[],
        ambiguous=source.ambiguous,
        left_out=source.left_out,
        parts=facts.parts,
        asks=dict(facts.asks.most_common()),
        without_media=facts.without_media,
        unread=source.unread,
        passed_over=source.passed_over,
        numbered=source.numbered,
        lookalikes=dict(facts.lookalikes.most_common()),
    )


def _find_copies(reports: Sequence[JoinReport], sizes: Sequence[dict[str, int]]) -> None:
    """Add each group of copies to the report of the last source that names one of them."""
    last = {uri: number for number, each in enumerate(sizes) for uri in each}
    for group in find_copies({uri: size for each in sizes for uri, size in each.items()}):
        reports[max(last[uri] for uri in group)].copies.append(group)


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
    left_out = list(map(_named, report.left_out))
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


def _named(record: LeftOut) -> str:
    """A record that was left out: by its id, unless that is its place, which its reason tells."""
    place = re.match(rf"((?:record|line) {re.escape(record.id)})[:,] (.*)", record.reason, re.DOTALL)
    return f"{place[1]} ({place[2]})" if place else f"id {record.id!r} ({record.reason})"


def _said(report: JoinReport) -> Iterable[str]:
    """Lines on the modalities of turns, and on what was not read."""
    if report.asks:
        yield f"turns of {report.conversations} conversations ask: {_counts(report.asks)}"
    for tag, count in list(report.lookalikes.items())[:SHOWN]:
        yield f"{count} turns have {tag!r}, which is no modality token; did you mean {meant_by(tag)}?"
    if 2 * report.without_media > report.conversations:
        yield f"most conversations, {report.without_media} of {report.conversations}, name no media file: text only"
    if report.unread:
        where = "records without a media file" if report.without_media else "its records"
        known = FIELDS if report.format == "list" else (*EXTENSIONS, "start", "end")
        meant = "".join(guess(name, known) for name in report.unread)
        yield f"fields of {where} that are not read: {', '.join(report.unread)}{meant}"
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


def _probe(file: tuple[str, Kind]) -> str | None:
    from featurize.media import MediaError
    from featurize.media.probe import probe

    try:
        probe(*file)
    except MediaError as error:
        return error.reason
    return None
