"""Questions about what is both seen and heard.

MUSIC-AVQA: `video_id`, `question_id`, `type` (a list as a JSON string: sense and kind of question), `question_content`
with places such as `<Object>`, `templ_values` (a list as a JSON string that fills them in order), `anser` (so spelt).
Source: MUSIC-AVQA `net_grd_avst/dataloader_avst.py`.
AVSD: `{dialogs: [{image_id, caption, summary, dialog: [{question, answer}]}]}`, about clips of Charades; in the test
set the last answer is `__UNDISCLOSED__`, and a file of captions in COCO's form has several for it. Source: AVSD of
DSTC7 and DSTC8.
"""

import ast
import re

from featurize.sources.coco import find_references
from featurize.sources.document import Document
from featurize.sources.files import MediaFiles
from featurize.sources.record import LeftOut, Record, Records, Row, ask
from store import Modality, Turn

PLACE = re.compile(r"<[^<>]+>")
SENSES: dict[str, Modality] = {"Audio": "audio", "Visual": "visual", "Audio-Visual": "audio_visual"}
UNDISCLOSED = "__UNDISCLOSED__"


def is_music_avqa(document: Document) -> bool:
    """Whether the records hold `question_content`, `templ_values`, `anser`."""
    return document.has("question_content", "templ_values", "anser")


def read_music_avqa(document: Document, files: MediaFiles) -> Records:
    """One question per record, by the sense that its type names; `meta` holds the type as a list."""
    taken = document.ids("question_id")

    def read(row: Row) -> list[Record]:
        kind, values = _listed(row, "type"), _listed(row, "templ_values")
        if not kind or kind[0] not in SENSES:
            raise row.error("type", f"a list as a JSON string that begins with one of {', '.join(SENSES)}")
        if len(PLACE.findall(row.text("question_content"))) > len(values):
            raise row.error("templ_values", "a value for each place in 'question_content'")
        question = _fill(row.text("question_content"), values)
        id, media = row.label("question_id", taken), files.named([row.name("video_id")])
        meta = {**row.rest("anser"), "question_id": id, "question": question, "type": kind, **document.split}
        return [ask(id, media, question, row.text("anser"), meta, SENSES[kind[0]])]

    return document.each(read)


def is_avsd(document: Document) -> bool:
    """Whether this is an object with a list `dialogs`, whose records hold `image_id` and `dialog`."""
    return document.has("image_id", "dialog")


def read_avsd(document: Document, files: MediaFiles) -> Records:
    """One conversation per dialog, by sight and sound.

    A question whose answer is undisclosed is answered by the first of its references, which are in `meta`; without
    references it is only in `meta`.
    """
    references = find_references(document)

    def read(row: Row) -> list[Record | LeftOut]:
        id, pairs = row.name("image_id"), _pairs(row)
        disclosed = [pair for pair in pairs if pair.value.get("answer") != UNDISCLOSED]
        meta = {**row.rest("image_id", "dialog"), **document.split}
        turns = _turns(disclosed)
        if len(disclosed) < len(pairs):
            meta["undisclosed"] = [pair.text("question") for pair in pairs if pair not in disclosed]
        if references and pairs and pairs[-1] not in disclosed:
            meta["references"] = known = references.of(row.number, id)
            turns = _turns([*disclosed, pairs[-1]], known[0])
        if not turns:
            return [LeftOut(id, "no answer is disclosed")]
        return [Record(id, files.named([id]), turns, meta)]

    return document.each(read)


def _pairs(row: Row) -> list[Row]:
    dialog = row.value.get("dialog")
    if not isinstance(dialog, list):
        raise row.error("dialog", "a list of {question, answer}")
    return [Row(pair, number, f"{row.where}, dialog {number}") for number, pair in enumerate(dialog)]


def _fill(template: str, values: list[str]) -> str:
    filling = iter(values)
    return PLACE.sub(lambda _: next(filling), template)


def _turns(pairs: list[Row], last: str | None = None) -> tuple[Turn, ...]:
    """Only the first question carries the media; `last` takes the place of the last answer."""
    answers = [pair.text("answer") for pair in pairs]
    if last is not None:
        answers[-1] = last
    senses: list[Modality] = ["audio_visual", *(["text"] * (len(pairs) - 1))]  # type: ignore[list-item]
    return tuple(
        Turn(pair.text("question"), sense, answer)
        for pair, sense, answer in zip(pairs, senses, answers, strict=False)  # without pairs, one sense is left
    )


def _listed(row: Row, name: str) -> list[str]:
    """A list written as a string; MUSIC-AVQA's own loader takes Python's quotes too."""
    try:
        value = ast.literal_eval(row.text(name) or "[]")
    except (ValueError, SyntaxError):
        value = None
    if not isinstance(value, list):
        raise row.error(name, "a list as a JSON string")
    return [str(item) for item in value]
