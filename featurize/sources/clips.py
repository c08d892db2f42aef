"""Clips of YouTube videos: how their files are named, and the data sets that list them.

VGGSound: CSV without a header: YouTube id, start second, label, split; clips of 10 s. ACAV100M: `videoID`, `start`,
`end`; it has no text, so its clips are planned without conversations.
"""

import re

from featurize.sources.document import Document
from featurize.sources.files import MediaFiles
from featurize.sources.kinds import stem_of
from featurize.sources.lines import Line
from featurize.sources.record import Record, Records, Row, part_of
from featurize.sources.youtube import YOUTUBE
from store import Candidate, Turn

EVENT = "Identify the event in the video."  # VideoLLaMA2's question for AVSSD
SECONDS = 10
_PART = re.compile(rf"({YOUTUBE})_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)")


def clip_names(id: str, start: float, end: float) -> list[str]:
    """Possible names of a clip's cut file: bounds plain, in six digits, in milliseconds; or the start only."""
    names = [f"{id}_{start:g}_{end:g}", f"{id}_{start:.0f}_{end:.0f}", f"{id}_{start:.3f}_{end:.3f}"]
    names += [f"{id}_{start:06.0f}_{end:06.0f}", f"{id}_{start:06.0f}", f"{id}_{start:g}"]
    return list(dict.fromkeys([*names, f"{id}_{start * 1000:.0f}_{end * 1000:.0f}"]))


def parts_of(name: str) -> tuple[str, float, float] | None:
    """YouTube id, start and end in seconds of a name `<id>_<start>_<end>`, or None if it has no such form."""
    match = _PART.fullmatch(name)
    return (match[1], float(match[2]), float(match[3])) if match else None


def is_vggsound(document: Document) -> bool:
    """Whether this is a CSV file without a header: an id, a second, a label, and `train` or `test`."""
    lines = document.lines if document.is_csv else []
    return len(lines) > 0 and 2 * sum(map(_is_clip, lines)) >= len(lines)


def read_vggsound(document: Document, files: MediaFiles) -> Records:
    """One clip per row, asked for its label by sight and sound."""

    def read(row: Row) -> list[Record]:
        start = row.seconds("start")
        media = _find(files, row.name("youtube_id"), start, start + SECONDS, f"_{start:06.0f}")
        label = row.name("label")
        meta = {**row.rest("label"), "start": start, "end": start + SECONDS, "answer": label}
        id = f"{row.name('youtube_id')}_{start:06.0f}"
        return [Record(id, media, (Turn(EVENT, "audio_visual", label),), meta)]

    return document.headed("youtube_id", "start", "label", "split").each(read)


def is_acav(document: Document) -> bool:
    """Whether the records hold `videoID`, `start`, `end`."""
    return document.has("videoID", "start", "end")


def read_acav(document: Document, files: MediaFiles) -> Records:
    """One clip per row, without a conversation."""

    def read(row: Row) -> list[Record]:
        row.bounds()
        start, end = row.seconds("start"), row.seconds("end")
        media = _find(files, row.name("videoID"), start, end, f"_{start:g}_{end:g}")
        return [Record(f"{row.name('videoID')}_{start:g}_{end:g}", media, (), {"start": start, "end": end})]

    return document.each(read)


def _is_clip(line: Line) -> bool:
    fields = [field.strip() for field in line.fields]
    return len(fields) == 4 and fields[1].isdigit() and fields[3] in ("train", "test")


def _find(files: MediaFiles, id: str, start: float, end: float, usual: str) -> Candidate:
    """The clip's file (the `usual` name first), else the part of the whole video."""
    media = files.named([f"{id}{usual}", *clip_names(id, start, end), id])
    return part_of(media, start, end) if stem_of(media.name).rpartition("/")[2] == id else media
