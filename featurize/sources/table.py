"""Lists of media files: CSV with a header, or JSON.

Fields: `path` (or `uri`), and optionally `id`, `kind`, `start` and `end` of a part of the file in seconds, and
`caption`, which makes a conversation.
"""

from dataclasses import replace
from typing import get_args

from featurize.sources.document import Document
from featurize.sources.files import MediaFiles
from featurize.sources.kinds import kind_of
from featurize.sources.record import Record, Records, Row, part_of
from store import Candidate, Kind, Modality, Turn

FIELDS = ("path", "uri", "id", "kind", "start", "end", "caption")
DESCRIBE: dict[Kind, str] = {
    "video": "Describe this video in one sentence.",
    "image": "Describe this image in one sentence.",
    "audio": "Describe this sound in one sentence.",
}
SENSES: dict[Kind, Modality] = {"video": "visual", "image": "visual", "audio": "audio"}


def is_list(document: Document) -> bool:
    """Whether the records hold `path` or `uri`."""
    return document.most(lambda record: "path" in record or "uri" in record)


def read_list(document: Document, files: MediaFiles) -> Records:
    """The files of a list, each with a conversation if it has a caption."""

    def read(row: Row) -> list[Record]:
        media = _media(row, files)
        caption = row.text("caption") if row.value.get("caption") is not None else ""
        if not caption:
            return [Record(media.name, media)]
        turn = Turn(document.instruction or DESCRIBE[media.kind], SENSES[media.kind], caption)
        meta = {**row.rest(*FIELDS), **_bounds(media), "captions": [caption], **document.split}
        return [Record(media.name, media, (turn,), meta)]

    return document.each(read)


def _bounds(media: Candidate) -> dict[str, object]:
    return {} if media.start is None and media.end is None else {"start": media.start, "end": media.end}


def _media(row: Row, files: MediaFiles) -> Candidate:
    path = row.name("uri" if row.value.get("path") is None else "path")
    kind = row.value.get("kind") or (files.folder_kind(path) or kind_of(path, row.where))
    if kind not in get_args(Kind):
        raise row.error("kind", f"one of {', '.join(get_args(Kind))}")
    media = part_of(files.at(path, kind), *row.bounds())
    return replace(media, name=str(row.value["id"])) if row.value.get("id") else media
