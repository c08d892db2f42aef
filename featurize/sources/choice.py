"""Questions with options to choose from.

NExT-QA: CSV `video, frame_count, width, height, question, answer, qid, type, a0 ... a4`; `answer` is an index, `qid`
unique within a video only; `map_vid_vidorID.json` beside it tells each video's path. Source: NExT-QA `dataset/nextqa/`.
MVBench: 20 JSON files, each a task: `video`, `question`, `candidates`, `answer`, some `start` and `end`. Equal names
occur in several of its folders, so each task has its own; one task has folders of frames. Source: MVBench
`mvbench.ipynb`.
"""

import json
from dataclasses import replace

from featurize.sources.document import Document
from featurize.sources.files import MediaFiles
from featurize.sources.kinds import guess_kind
from featurize.sources.record import Record, Records, Row, part_of
from store import Candidate, Turn, UserError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NEXTQA_NAMES = "map_vid_vidorID.json"
OPTIONS = tuple(f"a{i}" for i in range(5))
MVBENCH_FOLDERS = {
    "action_antonym": "ssv2_video",
    "action_count": "perception/videos",
    "action_localization": "sta/sta_video",
    "action_prediction": "star/Charades_v1_480",
    "action_sequence": "star/Charades_v1_480",
    "character_order": "perception/videos",
    "counterfactual_inference": "clevrer/video_validation",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "fine_grained_pose": "nturgbd",
    "moving_attribute": "clevrer/video_validation",
    "moving_count": "clevrer/video_validation",
    "moving_direction": "clevrer/video_validation",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "scene_transition": "scene_qa/video",
    "state_change": "perception/videos",
    "unexpected_action": "FunQA_test/test",
}
MVBENCH_FPS = 3.0  # of its folders of stills; source: `read_frame` of its notebook


def is_nextqa(document: Document) -> bool:
    """Whether this is a CSV file with `video`, `question`, `answer`, `qid` and `a0` ... `a4`."""
    return document.is_csv and document.has("video", "question", "answer", "qid", *OPTIONS)


def read_nextqa(document: Document, files: MediaFiles) -> Records:
    """One question per row; its id is `<video>_<qid>`, as in NExT-QA's own results."""
    paths = _paths(document)

    def read(row: Row) -> list[Record]:
        video = row.name("video")
        media = files.named([*([paths[video]] if video in paths else []), video])
        options = [row.text(name) for name in OPTIONS]
        answer = row.text("answer")
        if answer not in map(str, range(len(options))):
            raise row.error("answer", "an index from 0 to 4")
        meta = {**row.rest(*OPTIONS), **document.split}
        return [choose(f"{video}_{row.label('qid')}", media, row, options, int(answer), meta)]

    return document.each(read)


def is_mvbench(document: Document) -> bool:
    """Whether the records hold `video`, `question`, `candidates`, `answer`."""
    return document.has("video", "question", "candidates", "answer")


def read_mvbench(document: Document, files: MediaFiles) -> Records:
    """One question per record; the file's name is the task, and `<task>-<place>` the id."""
    task = document.stem
    folder = MVBENCH_FOLDERS.get(task)

    def read(row: Row) -> list[Record]:
        video, options = row.name("video"), row.texts("candidates")
        media = files.named([*(files.under(folder, video) if folder else []), video])
        if not guess_kind(media.uri):
            media = replace(media, fps=media.fps or (row.seconds("fps") if "fps" in row.value else MVBENCH_FPS))
        path, media = media.name, part_of(media, *row.bounds())
        if row.text("answer") not in options:
            raise row.error("answer", f"one of the candidates {options}")
        meta = {**row.rest("candidates"), "task": task, "path": path, "split": "test"}
        return [choose(f"{task}-{row.number}", media, row, options, options.index(row.text("answer")), meta)]

    return document.each(read)


def choose(id: str, media: Candidate, row: Row, options: list[str], right: int, meta: dict[str, object]) -> Record:
    """A record that asks for the letter of the right option; `meta` holds question, options and answer separately."""
    question = row.text("question")
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    text = f"Question: {question}\nOptions:\n{listed}\nAnswer with the letter of the right option."
    apart = {"question_id": id, "question": question, "options": options, "answer_index": right}
    turn = Turn(text, "visual", LETTERS[right])
    return Record(id, media, (turn,), {**meta, **apart, "answer": options[right]})


def _paths(document: Document) -> dict[str, str]:
    text = document.beside(NEXTQA_NAMES)
    try:
        return {name: str(path) for name, path in json.loads(text).items()} if text else {}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{document.sibling(NEXTQA_NAMES)}: not a JSON object: {error}") from None
