"""LLaVA-style JSON and its descendants Valley and ShareGPT: conversations about one media file each.

LLaVA: `id`; `image`, `video` or `audio` (a path; what it is taken for follows from its extension); `conversations`, a
list of `{from: human | gpt, value}`. Source: LLaVA `llava/train/train.py`; tokens of the paper's Figure 4.
Valley: the same, where a video lies in the folder `source`, by default `webvid`, and its name may lack `.mp4`. Source:
Valley `valley/data/dataset.py`.
ShareGPT: `messages`, a list of `{role: user | assistant, content}`, or `conversations`; `images`, `videos`, `audios`,
lists of paths. Source: the data formats of LLaMA-Factory and ms-swift.
"""

from collections.abc import Callable
from dataclasses import dataclass

from featurize.sources.chat import read_turns
from featurize.sources.document import Document
from featurize.sources.files import MediaFiles
from featurize.sources.kinds import guess_kind, kind_of
from featurize.sources.record import LeftOut, Record, Records, Row
from store import Candidate


@dataclass(frozen=True)
class Form:
    """Where a record keeps its parts: the list of messages, speaker and text in each, and the media."""

    messages: str
    speaker: str
    text: str
    media: tuple[str, ...]


LLAVA = Form("conversations", "from", "value", ("image", "video", "audio"))
SHAREGPT = Form("messages", "role", "content", ("images", "videos", "audios"))
SHAREGPT_OLD = Form("conversations", "from", "value", SHAREGPT.media)
Find = Callable[[Row, str, str], Candidate]  # the file of a path in a field of a row


def is_llava(document: Document) -> bool:
    """Whether the records hold `conversations`."""
    return document.has("conversations")


def is_valley(document: Document) -> bool:
    """Whether they do, and a video lies in a `source` folder or has no extension."""
    rows = (row for row in document.records if isinstance(row, dict) and isinstance(row.get("video"), str))
    return is_llava(document) and any("source" in row or not guess_kind(row["video"]) for row in rows)


def is_sharegpt(document: Document) -> bool:
    """Whether the records hold `messages`, or `conversations` with lists of media."""
    return document.has("messages") or (is_llava(document) and any(document.has(name) for name in SHAREGPT.media))


def read_llava(document: Document, files: MediaFiles) -> Records:
    """Conversations whose media paths begin at the root."""
    for row in document.rows():
        yield _record(row, LLAVA, _at(files))


def read_valley(document: Document, files: MediaFiles) -> Records:
    """Conversations whose videos lie in the folder `source` below the root, with or without `.mp4`."""

    def find(row: Row, field: str, path: str) -> Candidate:
        if field != "video":
            return _at(files)(row, field, path)
        return files.named([f"{row.value.get('source') or 'webvid'}/{path}", path], ("video", "image"))

    for row in document.rows():
        yield _record(row, LLAVA, find)


def read_sharegpt(document: Document, files: MediaFiles) -> Records:
    """Conversations of the ShareGPT form."""
    for row in document.rows():
        yield _record(row, SHAREGPT if "messages" in row.value else SHAREGPT_OLD, _at(files))


def _at(files: MediaFiles) -> Find:
    return lambda row, field, path: files.at(path, kind_of(path, f"{row.where}, field {field!r}"))


def _record(row: Row, form: Form, find: Find) -> Record | LeftOut:
    messages = row.value.get(form.messages)
    if not isinstance(messages, list):
        raise row.error(form.messages, f"a list of {{{form.speaker}, {form.text}}}")
    id = str(row.value.get("id", row.number))
    named = {path: field for field in form.media for path in _paths(row, field)}
    if len(named) > 1:
        return LeftOut(id, "several media files; a conversation has one")
    meta = row.rest(*form.media, "id", form.messages)
    if messages and isinstance(messages[0], dict) and messages[0].get(form.speaker) == "system":
        meta["system"], messages = messages[0].get(form.text), messages[1:]
    media = next((find(row, field, path) for path, field in named.items()), None)
    return Record(id, media, read_turns(messages, (form.speaker, form.text), media, row.where), meta)


def _paths(row: Row, field: str) -> list[str]:
    value = row.value.get(field) or []
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise row.error(field, "a path, or a list of paths")
    return paths
