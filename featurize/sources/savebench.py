"""SAVEBench and other files of the SALMONN family: conversations about media of any kind.

`[{image_name, conversation: [{from: human | gpt, value}]}]`; `image_name` (or `image`) is a path or an id. Where it is
a list of a still and a sound of one clip, the clip's video takes their place. Source: SALMONN `example.json` and
`SAVEBench/README.md`.
"""

from featurize.sources.chat import read_turns
from featurize.sources.coco import KINDS, MODALITIES
from featurize.sources.document import Document
from featurize.sources.files import MediaFiles
from featurize.sources.kinds import stem_of
from featurize.sources.llava import TOKENS
from featurize.sources.record import LeftOut, Record, Records, Row
from store import Candidate, Turn

MEDIA = ("image_name", "image")


def is_savebench(document: Document) -> bool:
    """Whether the records hold `conversation`, and `image_name` or `image`."""
    return document.has("conversation") and any(document.has(name) for name in MEDIA)


def read_savebench(document: Document, files: MediaFiles) -> Records:
    """One conversation per record; a video is asked about by sight and sound."""
    taken = document.ids("id")

    def read(row: Row) -> list[Record | LeftOut]:
        id, media = row.label("id", taken), _find(row, files)
        messages = row.value.get("conversation")
        if not isinstance(messages, list):
            raise row.error("conversation", "a list of {from, value}")
        if media is None:
            return [LeftOut(id, "several media files; a conversation has one")]
        turns = read_turns(messages, ("from", "value"), media, TOKENS[media.kind], row.where)
        first = Turn(turns[0].instruction, MODALITIES[media.kind], turns[0].response)
        apart = {} if turns[1:] else {"question": first.instruction, "answer": first.response}
        return [Record(id, media, (first, *turns[1:]), {**row.rest("id", "conversation"), **apart, **document.split})]

    return document.each(read)


def _find(row: Row, files: MediaFiles) -> Candidate | None:
    """The file of a record; None if it names files of several clips."""
    field = next((name for name in MEDIA if row.value.get(name)), MEDIA[0])
    names = [name.removeprefix("./") for name in row.texts(field)]
    if len({_stem(name) for name in names}) > 1:
        return None
    if len(names) > 1:
        return files.named([_stem(names[0])])
    return files.named([names[0], names[0].rpartition("/")[2]], KINDS)


def _stem(name: str) -> str:
    return stem_of(name.rpartition("/")[2])
