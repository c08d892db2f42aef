"""The known formats, each with the test that recognises it."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from featurize.sources import captions, choice, clips, coco, llava, qa, savebench, scenes, table
from featurize.sources.document import Document
from featurize.sources.files import MediaFiles
from featurize.sources.record import Records
from store import UserError
from store.settings import guess

NAMES = ("conversations", "messages", "path", "uri")  # fields that alone tell a format


@dataclass(frozen=True)
class Format:
    """A format of annotation files.

    Attributes:
        name: as `--format` takes it.
        detects: whether a document has it.
        read: yields a document's records.
        in_pieces: whether a file is read in pieces: no record of it depends on another.
    """

    name: str
    detects: Callable[[Document], bool]
    read: Callable[[Document, MediaFiles], Records]
    in_pieces: bool = False


FORMATS = {
    format.name: format
    for format in (  # the first match wins, so a special format comes before its general one
        Format("list", table.is_list, table.read_list, in_pieces=True),
        Format("sharegpt", llava.is_sharegpt, llava.read_llava, in_pieces=True),
        Format("valley", llava.is_valley, llava.read_valley, in_pieces=True),
        Format("llava", llava.is_llava, llava.read_llava, in_pieces=True),
        Format("videoinstruct", qa.is_videoinstruct, qa.read_videoinstruct),
        Format("video-chatgpt", qa.is_videochatgpt, qa.read_videochatgpt),
        Format("activitynet-qa", qa.is_two_file_qa, qa.read_two_file_qa),
        Format("msvd-qa", qa.is_numbered_qa, qa.read_numbered_qa),
        Format("nextqa", choice.is_nextqa, choice.read_nextqa),
        Format("mvbench", choice.is_mvbench, choice.read_mvbench),
        Format("music-avqa", scenes.is_music_avqa, scenes.read_music_avqa),
        Format("avsd", scenes.is_avsd, scenes.read_avsd),
        Format("savebench", savebench.is_savebench, savebench.read_savebench),
        Format("coco-captions", coco.is_coco, coco.read_coco),
        Format("vatex", captions.is_vatex, captions.read_vatex),
        Format("valor", captions.is_valor, captions.read_valor),
        Format("audiocaps", captions.is_audiocaps, captions.read_audiocaps),
        Format("wavcaps", captions.is_wavcaps, captions.read_wavcaps),
        Format("vggsound", clips.is_vggsound, clips.read_vggsound),
        Format("acav100m", clips.is_acav, clips.read_acav, in_pieces=True),
    )
}


def choose_format(document: Document, name: str | None) -> Format:
    """The format called `name`, else the one recognised in the document.

    Raises:
        UserError: there is no format `name`, or none fits the document; the message then lists the fields match.
    """
    if name is not None and name not in FORMATS:
        raise UserError(f"--format {name}: no such format{guess(name, FORMATS)}; known are {', '.join(FORMATS)}")
    if name is not None:
        return FORMATS[name]
    match = next((format for format in FORMATS.values() if format.detects(document)), None)
    if match is None:
        raise UserError(f"{document.url}: {_unknown(document)}")
    return match


def _unknown(document: Document) -> str:
    """Why no format fits a document."""
    if not document.records:
        if isinstance(document.value, dict):
            return f"expected a list of records, found one object with {', '.join(document.value) or 'no fields'}"
        return "holds no records" if isinstance(document.value, list) else "expected a list of records"
    if not document.objects:
        return "expected a list of records, each an object with named fields"
    fields = list(map(str, document.objects[0]))
    has = f"no known format; its first record has {', '.join(fields)}"
    for field in fields:
        if near := difflib.get_close_matches(field, NAMES, 1, 0.8):
            return f"{has}; did you mean {near[0]!r} by {field!r}?"
    return f"{has}; known are {', '.join(FORMATS)} (docs/corpora.md)"
