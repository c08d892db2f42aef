"""Sources: annotation files of any known format, and folders of media files."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import fsspec

from featurize.sources.document import SUFFIXES, Document, joined, read_pieces
from featurize.sources.files import MediaFiles
from featurize.sources.formats import choose_format
from featurize.sources.kinds import guess_kind, is_hidden
from featurize.sources.record import LeftOut, Record
from featurize.sources.spool import Spool
from featurize.sources.unread import Unread
from store import UserError


@dataclass(frozen=True)
class Source:
    """What one source names.

    Attributes:
        url: path or fsspec URL.
        format: the format that it was read as.
        records: its media files and conversations, in its order, on disk.
        left_out: the records that cannot become a conversation.
        ambiguous: candidate files by the name looked for, the chosen one first.
        passed_over: number of files of a folder that are no media, by extension.
        numbered: folders of numbered stills that are planned as stills, though they may be films.
        unread: number of records with a field that no reader takes, by field name.
    """

    url: str
    format: str
    records: Spool = field(default_factory=Spool)
    left_out: list[LeftOut] = field(default_factory=list)
    ambiguous: dict[str, list[str]] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    numbered: list[str] = field(default_factory=list)
    unread: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of its path, without an extension."""
        return PurePosixPath(self.url.rstrip("/")).stem


def read_sources(
    urls: Iterable[str],
    media_root: str | None,
    format: str | None = None,
    *,
    instruction: str | None = None,
    strict: bool = False,
    fps: float | None = None,
) -> list[Source]:
    """Read sources: folders of media files, annotation files, and folders of annotation files.

    Args:
        urls: paths or fsspec URLs.
        media_root: folder of relative media paths and of files searched by name; by default the annotations' folder.
        format: the format of every annotation file; by default recognised for each file.
        instruction: the question that the captions of a list answer.
        fps: stills per second; if given, folders of numbered stills in a source that is a folder are films.
        strict: stop at the first record that cannot be used, instead of leaving it out.

    Raises:
        UserError: nothing is at a URL, its format is unknown, or none of its records can be used.
    """
    sources = [part for url in urls for part in _expand(url, format)]
    opened = [None if _is_folder(url) else _Opened(url, format) for url in sources]
    given = tuple(file.document for file in opened if file)
    files: dict[str, MediaFiles] = {}
    read = []
    for url, file in zip(sources, opened, strict=True):
        if file is None:
            read.append(_read_folder(url, fps))
            continue
        root = media_root or file.document.folder
        pieces = (replace(piece, given=given, instruction=instruction) for piece in file.pieces())
        read.append(_read(pieces, files.setdefault(root, MediaFiles(root, fps)), format, strict))
    return read


class _Opened:
    """An annotation file. Its first piece is read at once; the others too, unless the format is read in pieces."""

    def __init__(self, url: str, format: str | None) -> None:
        self._coming = read_pieces(url)
        self.document = next(self._coming)
        second = next(self._coming, None)
        self._coming = itertools.chain(filter(None, [second]), self._coming)
        if second and not choose_format(self.document, format).in_pieces:
            self.document = joined(self.document, self._coming)

    def pieces(self) -> Iterator[Document]:
        return itertools.chain([self.document], self._coming)


def _read_folder(url: str, fps: float | None) -> Source:
    files = MediaFiles(url, fps)
    numbered = [] if fps else files.numbered()
    source = Source(url, "folder", passed_over=files.passed_over(), numbered=numbered)
    for candidate in files.all():
        source.records.append(Record(candidate.name, candidate))
    return source


def _read(pieces: Iterator[Document], files: MediaFiles, format: str | None, strict: bool) -> Source:
    document = next(pieces)
    chosen = choose_format(document, format)
    source, unread = Source(document.url, chosen.name), Unread(chosen.name)
    files.ambiguous = source.ambiguous
    for piece in itertools.chain([document], pieces):
        unread.read(piece)
        for item in chosen.read(piece, files):
            kept = item if isinstance(item, LeftOut) else _checked(item)
            if isinstance(kept, Record):
                unread.kept(kept)
                source.records.append(kept)
            elif kept.fault and strict:
                raise UserError(f"{piece.url}, {kept.reason}")
            else:
                source.left_out.append(kept)
    _check_any(source)
    return replace(source, unread=unread.counts)


def _checked(record: Record) -> Record | LeftOut:
    try:
        "".join([record.id, *(turn.instruction + turn.response for turn in record.turns)]).encode()
    except UnicodeEncodeError:
        reason = f"record {record.id!a}: its text holds half a character (a lone surrogate)"
        return LeftOut(ascii(record.id)[1:-1], reason, fault=True)
    return record


def _check_any(source: Source) -> None:
    """Refuse a file without a usable record: it has another format, or none."""
    faults = [skipped for skipped in source.left_out if skipped.fault]
    if faults and not source.records:
        more = f" (and {len(faults) - 1} more like it)" if faults[1:] else ""
        raise UserError(f"{source.url}, {faults[0].reason}{more}")


def _expand(url: str, format: str | None) -> Sequence[str]:
    """The source itself; or the annotation files in a folder that holds no media, or for which a format was given."""
    if not _is_folder(url):
        if not _exists(url):
            raise UserError(f"{url}: no such file or folder; give a folder of media, or a file of annotations or paths")
        if PurePosixPath(url).suffix.lower() not in SUFFIXES:
            raise UserError(f"{url}: expected a folder, or a file that ends in {', '.join(SUFFIXES)}")
        return [url]
    fs, path = fsspec.core.url_to_fs(url)
    names = sorted(str(name).rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))
    visible = [name for name in names if not is_hidden(name)]
    annotations = [f"{url.rstrip('/')}/{name}" for name in visible if name.lower().endswith(SUFFIXES)]
    below = (str(name).removeprefix(path).lstrip("/") for name in fs.find(path))
    if annotations and (format or not any(guess_kind(name) and not is_hidden(name) for name in below)):
        return annotations
    return [url]


def _exists(url: str) -> bool:
    fs, path = fsspec.core.url_to_fs(url)
    return bool(fs.exists(path))


def _is_folder(url: str) -> bool:
    fs, path = fsspec.core.url_to_fs(url)
    return bool(fs.isdir(path))
