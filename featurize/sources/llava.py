"""LLaVA-style JSON and its descendants Valley and ShareGPT: conversations about one media file each.

LLaVA: `id`; `image`, `video` or `audio` (a path, whose extension tells its kind); `conversations`, a
list of `{from: human | gpt, value}`. Source: LLaVA `llava/train/train.py`; tokens of the paper's Figure 4.
Valley: the same, where a video lies in the folder `source`, by default `webvid`, and its name may lack `.mp4`. Source:
Valley `valley/data/dataset.py`.
ShareGPT: `messages`, a list of `{role: user | assistant, content}`, or `conversations`; `images`, `videos`, `audios`,
lists of paths. Source: the data formats of LLaMA-Factory and ms-swift.
A record with `start` and `end` in seconds is about that part of its file.
"""

import math
from collections.abc import Callable

from featurize.sources.chat import read_turns
from featurize.sources.document import Document
from featurize.sources.files import MediaFiles
from featurize.sources.kinds import guess_kind, kind_of
from featurize.sources.record import LeftOut, Record, Records, Row, part_of
from store import Candidate

LISTS = ("images", "videos", "audios")
# Fields that data sets of these forms have besides those that are read.
CHATS = frozenset([
    "source", "system", "tools", "model", "split", "data_source", "dataset", "task", "type", "category", "duration",
    "length", "objects", "question_id", "width", "height", "score", "meta", "metadata",
])  # fmt: skip
MEDIA = ("image", "video", "audio", *LISTS)
# Placeholders of a file, by its kind; LLaVA's descendants call a video `<image>` too.
TOKENS = {
    "video": ("<video>", "<image>", "<audio>", "<VIS>", "<AUD>", "<AUD_VIS>"),
    "image": ("<image>", "<VIS>"),
    "audio": ("<audio>", "<AUD>"),
}
Find = Callable[[Row, str, str], Candidate]  # row, field and path to the media file


def is_llava(document: Document) -> bool:
    """Whether the records hold conversations."""
    return document.most(lambda record: "conversations" in record or "messages" in record)


def is_valley(document: Document) -> bool:
    """Whether the records hold conversations, and most videos lie in `source` folders or have no extension."""
    videos = [record for record in document.objects if isinstance(record.get("video"), str)]
    odd = sum("source" in record or not guess_kind(record["video"]) for record in videos)
    return is_llava(document) and odd > 0 and 2 * odd >= len(videos)


def is_sharegpt(document: Document) -> bool:
    """Whether the records hold `messages`, or conversations about media in lists."""
    one, listed = (sum(any(map(record.get, names)) for record in document.objects) for names in (MEDIA[:3], LISTS))
    return document.has("messages") or (is_llava(document) and listed > one)


def read_llava(document: Document, files: MediaFiles) -> Records:
    """Conversations of the LLaVA or ShareGPT form, whose media paths begin at the root."""
    return _read(document, _at(files))


def read_valley(document: Document, files: MediaFiles) -> Records:
    """Conversations whose videos lie in the folder `source` below the root, with or without `.mp4`."""

    def find(row: Row, field: str, path: str) -> Candidate:
        if field != "video":
            return _at(files)(row, field, path)
        names = [*files.under(row.value.get("source") or "webvid", path), path]
        return files.named(names, (guess_kind(path) or "video",))  # never the thumbnail of a missing video

    return _read(document, find)


def _at(files: MediaFiles) -> Find:
    def find(row: Row, field: str, path: str) -> Candidate:
        folder = files.folder_kind(path) if field in ("video", "videos") else None
        return files.at(path, folder or kind_of(path, f"{row.where}, field {field!r}"))

    return find


def _read(document: Document, find: Find) -> Records:
    taken = document.ids("id")
    return document.each(lambda row: [_record(row, row.label("id", taken), find)])


def _record(row: Row, id: str, find: Find) -> Record | LeftOut:
    field, fields = (
        ("messages", ("role", "content")) if "messages" in row.value else ("conversations", ("from", "value"))
    )
    messages = row.value.get(field)
    if not isinstance(messages, list):
        raise row.error(field, f"a list of {{{', '.join(fields)}}}")
    named = {path: name for name in MEDIA if row.value.get(name) for path in _paths(row, name)}
    if len(named) > 1:
        return LeftOut(id, "several media files; a conversation has one")
    meta = row.rest(*MEDIA, "id", field)
    if messages and isinstance(messages[0], dict) and messages[0].get(fields[0]) == "system":
        meta["system"], messages = messages[0].get(fields[1]), messages[1:]
    media = next((find(row, name, path) for path, name in named.items()), None)
    if media and media.kind != "image" and all(map(_is_time, map(row.value.get, ("start", "end")))):
        media = part_of(media, *row.bounds())
    tokens = _tokens(media, set(named.values())) if media else ()
    unread = [str(name) for name in row.rest(*MEDIA, "id", field) if name not in CHATS]
    return Record(id, media, read_turns(messages, fields, media, tokens, row.where, unread), meta)


def _is_time(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _tokens(media: Candidate, fields: set[str]) -> tuple[str, ...]:
    """The placeholder tokens of a file; also `<video>` for a still that is named in a video field."""
    return (*TOKENS[media.kind], *(("<video>",) if media.kind == "image" and fields & {"video", "videos"} else ()))


def _paths(row: Row, field: str) -> list[str]:
    value = row.value[field]
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str | None) for path in paths):
        raise row.error(field, "a path, or a list of paths")
    return [path for path in paths if path]
