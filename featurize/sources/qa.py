"""Questions with free answers about videos that are named by an id.

VideoInstruct100K: `video_id`, `q`, `a`. Video-ChatGPT benchmark: `video_name`, `Q`, `A`, or `Q1`, `Q2`, `A` for
consistency. Source: Video-ChatGPT `quantitative_evaluation/`.
ActivityNet-QA, and MSVD-QA and MSRVTT-QA in their zero-shot form: questions `video_name`, `question`, `question_id` in
`*_q.json`, answers `answer`, `type`, `question_id` in `*_a.json`. Source: ActivityNet-QA `dataset/README.md`.
MSVD-QA and MSRVTT-QA, original: `video_id` (a number), `question`, `answer`, `id`; MSVD's clips have other names, which
`youtube_mapping.txt` tells (`<youtube id>_<start>_<end> vid<number>`).
"""

import re
from collections import deque
from collections.abc import Iterator

from featurize.sources.document import Document, parse
from featurize.sources.files import MediaFiles
from featurize.sources.record import Record, Records, Row, ask
from store import UserError

MSVD_NAMES = "youtube_mapping.txt"


def is_videoinstruct(document: Document) -> bool:
    """Whether the records hold `video_id`, `q`, `a`."""
    return document.has("video_id", "q", "a")


def read_videoinstruct(document: Document, files: MediaFiles) -> Records:
    """One question per record; its id is its place in the file."""

    def read(row: Row) -> list[Record]:
        media = files.named(video_names(row.name("video_id")))
        return [ask(str(row.number), media, row.text("q"), row.text("a"), row.rest("q", "a") | document.split)]

    return document.each(read)


def is_videochatgpt(document: Document) -> bool:
    """Whether the records hold `video_name` with `Q` or `Q1`, `Q2`, and `A`."""
    return document.has("video_name", "A") and (document.has("Q") or document.has("Q1", "Q2"))


def read_videochatgpt(document: Document, files: MediaFiles) -> Records:
    """One question per record; the two on consistency become two conversations with the same `question_id`."""

    def read(row: Row) -> Iterator[Record]:
        media = files.named(video_names(row.name("video_name")))
        for field in ("Q",) if "Q" in row.value else ("Q1", "Q2"):
            id = f"{document.stem}-{row.number}"
            meta = {**row.rest("Q", "A"), "question_id": id, "split": "test"}
            yield ask(id if field == "Q" else f"{id}-{field}", media, row.text(field), row.text("A"), meta)

    return document.each(read)


def is_two_file_qa(document: Document) -> bool:
    """Whether this is a file of questions or one of answers that are joined by `question_id`."""
    return document.has("video_name", "question", "question_id") or _is_answers(document)


def read_two_file_qa(document: Document, files: MediaFiles) -> Records:
    """One question per record, with its answer from the other file; a file of answers alone yields nothing.

    Raises:
        UserError: there is no file of answers, or it lacks one.
    """
    if _is_answers(document):
        if all(_is_answers(other) for other in document.given):
            raise UserError(f"{document.url}: these are answers; give their questions, a file of question_id, question")
        return iter(())
    answers = _answers(document)

    def read(row: Row) -> list[Record]:
        id = row.name("question_id")
        if id not in answers:
            raise UserError(f"{row.where}, field 'question_id': no answer to {id!r}")
        media = files.named(video_names(row.name("video_name")))
        meta = {**row.rest(), **answers[id].rest(), **document.split}
        return [ask(id, media, row.text("question"), answers[id].text("answer"), meta)]

    return document.each(read)


def is_numbered_qa(document: Document) -> bool:
    """Whether the records hold `video_id`, `question`, `answer`, `id`."""
    return document.has("video_id", "question", "answer", "id")


def read_numbered_qa(document: Document, files: MediaFiles) -> Records:
    """One question per record, about the clip `video<number>`, `vid<number>`, or as `youtube_mapping.txt` says."""
    lines = (line.split() for line in (document.beside(MSVD_NAMES) or "").splitlines())
    clips = {line[1]: line[0] for line in lines if len(line) == 2}
    taken = document.ids("id")

    def read(row: Row) -> list[Record]:
        number, id = row.name("video_id"), row.label("id", taken)
        known = clips.get(f"vid{number}")
        media = files.named([*([known] if known else []), f"video{number}", f"vid{number}"])
        meta = {**row.rest("id"), "question_id": id, **document.split}
        return [ask(id, media, row.text("question"), row.text("answer"), meta)]

    return document.each(read)


def video_names(id: str) -> list[str]:
    """Possible names of a video: ActivityNet's files begin with `v_`, and annotations may or may not say so."""
    return [id, id.removeprefix("v_") if id.startswith("v_") else f"v_{id}"]


def _is_answers(document: Document) -> bool:
    return document.has("answer", "question_id") and not document.has("question")


def _answers(document: Document) -> dict[str, Row]:
    """Answers by question id, from the given file whose name fits, the only one given, or the one beside it."""
    name = re.sub(r"_q(?=\.jsonl?$)", "_a", document.url.rpartition("/")[2])
    given = [other for other in document.given if _is_answers(other)]
    fitting = [other for other in given if other.url == document.sibling(name)] or given
    if len(fitting) > 1:
        raise UserError(f"{document.url}: no file of answers given is called {name}; give one pair at a time")
    text = None if fitting or document.sibling(name) == document.url else document.beside(name)
    if not fitting and text is None:
        raise UserError(f"{document.url}: questions without answers; give their file too, or call it {name} beside it")
    answers = fitting[0] if fitting else parse(text or "", document.sibling(name))
    by_question: dict[str, Row] = {}

    def keep(row: Row) -> list[Record]:
        by_question[row.name("question_id")] = row
        return []

    deque(answers.each(keep), 0)  # an unusable answer leaves out its question, which is reported
    return by_question
