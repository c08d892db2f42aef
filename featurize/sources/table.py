"""Lists of media files: CSV with a header, or JSON. Fields: `path` (or `uri`), and optionally `id` and `kind`."""

from dataclasses import replace
from typing import get_args

from featurize.sources.document import Document
from featurize.sources.files import MediaFiles
from featurize.sources.kinds import kind_of
from featurize.sources.record import Record, Records, Row
from store import Candidate, Kind


def is_list(document: Document) -> bool:
    """Whether the records hold `path` or `uri`."""
    return document.has("path") or document.has("uri")


def read_list(document: Document, files: MediaFiles) -> Records:
    """The files of a list, without conversations."""
    for row in document.rows():
        media = _media(row, files)
        yield Record(media.name, media)


def _media(row: Row, files: MediaFiles) -> Candidate:
    path = row.name("uri" if row.value.get("path") is None else "path")
    kind = row.value.get("kind") or kind_of(path, row.where)
    if kind not in get_args(Kind):
        raise row.error("kind", f"one of {', '.join(get_args(Kind))}")
    found = files.at(path, kind)
    return replace(found, name=str(row.value["id"])) if row.value.get("id") else found
