"""Captions in COCO's form: `{images: [{id, file_name}], annotations: [{image_id, caption}]}`.

FAVDBench has its paragraphs so, in `<split>.caption_coco_format.json`; an image's id is then its video's name. Source:
FAVDBench `AVLFormer/src/evalcap/utils_caption_evaluate.py`.
DSTC7's AVSD has the references of its undisclosed answers so, in `<dialogs>_multiref.json`: an image is called
`<video>_<turn>`, and the images are numbered as the dialogs are. Source: `dstc7avsd_eval`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featurize.sources.captions import DESCRIBE
from featurize.sources.document import Document, parse
from featurize.sources.files import MediaFiles
from featurize.sources.kinds import stem_of
from featurize.sources.record import LeftOut, Record, Records, Row
from store import Kind, Modality, Turn, UserError

KINDS: tuple[Kind, ...] = ("video", "image", "audio")
MODALITIES: dict[Kind, Modality] = {"video": "audio_visual", "image": "visual", "audio": "audio"}
# Ends of the names of AVSD's references, as DSTC7 and OneLLM write them.
REFERENCES = ("_multiref.json", "_cococap.json")


@dataclass(frozen=True)
class References:
    """References for the undisclosed answers of a file of dialogs.

    Attributes:
        url: the file they are from.
        by_name: by the video that an image is named after; empty if several images are about one video.
        by_number: by the place of a dialog; empty if the images are not numbered as the dialogs are.
    """

    url: str
    by_name: Mapping[str, list[str]]
    by_number: Mapping[int, list[str]]

    def of(self, number: int, video: str) -> list[str]:
        """The references of the dialog at place `number`, which is about `video`.

        Raises:
            UserError: there are none.
        """
        found = self.by_name.get(video) or self.by_number.get(number)
        if not found:
            raise UserError(f"{self.url}: no references for dialog {number}, about {video!r}")
        return found


def is_coco(document: Document) -> bool:
    """Whether this is an object with a list `annotations`, whose records hold `image_id` and `caption`."""
    listed = isinstance(document.value, dict) and isinstance(document.value.get("annotations"), list)
    return listed and document.has("image_id", "caption")


def read_coco(document: Document, files: MediaFiles) -> Records:
    """One conversation per image, with all its captions; the references of dialogs that are given yield none."""
    if any(_is_about(document, other) for other in document.given):
        return
    names, clips = _names(document), dict[str, list[Row]]()

    def sort(row: Row) -> list[Record | LeftOut]:
        row.name("caption")
        clips.setdefault(row.name("image_id"), []).append(row)
        return []

    yield from document.each(sort)
    for id, rows in clips.items():
        name = names.get(id, id).removeprefix("./")
        media = files.named([name, name.rpartition("/")[2]], KINDS)
        captions = [row.text("caption") for row in rows]
        turn = Turn(DESCRIBE[MODALITIES[media.kind]], MODALITIES[media.kind], captions[0])
        yield Record(id, media, (turn,), {"captions": captions, **document.split})


def find_references(document: Document) -> References | None:
    """The references given with a file of dialogs, or beside it; None if there are none.

    Raises:
        UserError: several files of references are given.
    """
    given = [other for other in document.given if is_coco(other) and _is_about(other, document)]
    if len(given) > 1:
        raise UserError(f"{document.url}: several files of references, {', '.join(other.url for other in given)}")
    urls = [document.sibling(f"{document.stem}{end}") for end in REFERENCES]
    beside = (parse(text, url) for url in urls if (text := document.beside(url.rpartition("/")[2])))
    found = given[0] if given else next(beside, None)
    return _read_references(found, len(document.records)) if found else None


def _is_about(document: Document, other: Document) -> bool:
    """Whether a document's name says that it belongs to the dialogs of another."""
    return other.has("image_id", "dialog") and document.stem.startswith(f"{other.stem}_")


def _read_references(document: Document, dialogs: int) -> References:
    names, by_id = _names(document), dict[str, list[str]]()
    for number, value in enumerate(document.records):
        row = Row(value, number, f"{document.url}, record {number}")
        by_id.setdefault(row.name("image_id"), []).append(row.text("caption"))
    by_name = {_video(names.get(id, id)): captions for id, captions in by_id.items()}
    if len(by_name) < len(by_id):
        by_name = {}
    first = 0 if "0" in by_id else 1
    numbered = set(by_id) == {str(number) for number in range(first, first + dialogs)}
    by_number = {int(id) - first: captions for id, captions in by_id.items()} if numbered else {}
    return References(document.url, by_name, by_number)


def _names(document: Document) -> dict[str, str]:
    """The names of the images, by id."""
    images: Any = document.value.get("images") if isinstance(document.value, dict) else None
    images = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    named = {str(image.get("id")): image.get("name") or image.get("file_name") for image in images}
    return {id: name for id, name in named.items() if isinstance(name, str)}


def _video(name: str) -> str:
    """The video of a name such as `7UPGT_4` or `7UPGT.mp4`."""
    stem = stem_of(name).rpartition("/")[2]
    video, _, turn = stem.rpartition("_")
    return video if video and turn.isdigit() else stem
