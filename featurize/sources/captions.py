"""Captions: one conversation for each clip, with all its captions as references.

VATEX: `videoID` (`<youtube id>_<start>_<end>`), `enCap`, `chCap`. VALOR-32K: `video_id`, `desc`. AudioCaps: CSV
`audiocap_id, youtube_id, start_time, caption`, several rows for a clip of its test and validation sets. WavCaps:
`{data: [{id, caption or caption_1 ..., duration, audio}]}`, or the bare list.
"""

import re

from featurize.sources.clips import clip_names, parts_of
from featurize.sources.document import Document
from featurize.sources.files import MediaFiles
from featurize.sources.kinds import guess_kind, stem_of
from featurize.sources.record import LeftOut, Record, Records, Row, part_of
from store import Candidate, Kind, Modality, Turn, UserError

DESCRIBE: dict[str, str] = {
    "visual": "Describe this video in one sentence.",
    "audio": "Describe this sound in one sentence.",
    "audio_visual": "Describe what is seen and heard in this video.",
}
SOUND: tuple[Kind, ...] = ("audio", "video")
NUMBERED = re.compile(r"caption_\d+")
SECONDS = 10  # of a clip of AudioSet, which AudioCaps is taken from


def is_vatex(document: Document) -> bool:
    """Whether the records hold `videoID`, `enCap`."""
    return document.has("videoID", "enCap")


def read_vatex(document: Document, files: MediaFiles) -> Records:
    """One clip per record, asked by sight: its own file, or the part of the whole video."""
    return document.each(lambda row: [_clip(row, "videoID", files, "visual", "enCap", document)])


def is_valor(document: Document) -> bool:
    """Whether the records hold `video_id`, `desc`."""
    return document.has("video_id", "desc")


def read_valor(document: Document, files: MediaFiles) -> Records:
    """One clip per record, asked by sight and sound."""
    return document.each(lambda row: [_clip(row, "video_id", files, "audio_visual", "desc", document)])


def is_audiocaps(document: Document) -> bool:
    """Whether this is a CSV file with `audiocap_id`, `youtube_id`, `start_time`, `caption`."""
    return document.is_csv and document.has("audiocap_id", "youtube_id", "start_time", "caption")


def read_audiocaps(document: Document, files: MediaFiles) -> Records:
    """One clip of 10 s for all rows that caption it, with the first row's id."""
    clips: dict[tuple[str, float], list[Row]] = {}

    def sort(row: Row) -> list[Record | LeftOut]:
        row.name("caption")
        clips.setdefault((row.name("youtube_id"), row.seconds("start_time")), []).append(row)
        return []

    yield from document.each(sort)
    for (video, start), rows in clips.items():
        try:
            yield _sound(document, files, video, start, rows)
        except UserError as error:
            yield LeftOut(rows[0].label("audiocap_id"), str(error), fault=True)


def is_wavcaps(document: Document) -> bool:
    """Whether the records hold `id` and `caption` or `caption_1`, with a `duration` or an `audio` file."""
    captioned = document.has("caption") or document.has("caption_1")
    return captioned and document.has("id") and (document.has("duration") or document.has("audio"))


def read_wavcaps(document: Document, files: MediaFiles) -> Records:
    """One sound per record; its file is the one in `audio`, or is named by the id."""
    return document.each(lambda row: [_wavcap(document, files, row)])


def _wavcap(document: Document, files: MediaFiles, row: Row) -> Record:
    audio = row.value.get("audio")
    named = [audio] if isinstance(audio, str) and guess_kind(audio) else []
    id = row.label("id") if named else row.name("id")
    numbered = [name for name, value in row.value.items() if NUMBERED.fullmatch(name) and value is not None]
    captions = [row.name(name) for name in numbered] or row.texts("caption")
    meta = {**row.rest("id", "caption", *numbered), **document.split}
    return _record(id, files.named([*named, id], SOUND), "audio", captions, meta)


def _sound(document: Document, files: MediaFiles, video: str, start: float, rows: list[Row]) -> Record:
    end, ids = start + SECONDS, [row.label("audiocap_id") for row in rows]
    media = files.named([*clip_names(video, start, end), *ids, f"Y{video}", video], SOUND)
    meta = {**rows[0].rest("caption", "start_time"), "start": start, "end": end, **document.split}
    captions = [row.text("caption") for row in rows]
    if stem_of(media.name).rpartition("/")[2] == video:
        media = part_of(media, start, end)
    return _record(ids[0], media, "audio", captions, meta)


def _clip(row: Row, field: str, files: MediaFiles, modality: Modality, text: str, document: Document) -> Record:
    """A clip whose id tells its part of a video: the id names the cut file, the YouTube id the whole video."""
    id, captions, meta = row.name(field), row.texts(text), row.rest(text) | document.split
    parts = parts_of(id)
    media = files.named([id, parts[0]] if parts else [id])
    if parts:
        meta = {"start": parts[1], "end": parts[2], **meta}
        if stem_of(media.name).rpartition("/")[2] != id and parts[1] < parts[2]:
            media = part_of(media, *parts[1:])
    return _record(id, media, modality, captions, meta)


def _record(id: str, media: Candidate, modality: Modality, captions: list[str], meta: dict[str, object]) -> Record:
    turn = Turn(DESCRIBE[modality], modality, captions[0])
    return Record(id, media, (turn,), {**meta, "captions": captions})
