"""Small sets in the form in which each benchmark is published, about real media files.

Each function writes its annotation files and media into a folder, and returns the words for `featurize plan` (without
`--store`). `SETS` has them by the task that reads them; tests get this file as the fixture `published`.
"""

import csv
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Write = Callable[[Path, Path], list[str]]


def msrvtt_qa(folder: Path, media: Path) -> list[str]:
    """The zero-shot form: questions and answers in two files."""
    _clips(folder, media, {"TestVideo/video7010.mp4": "red-loud.mp4", "TestVideo/video7011.mp4": "silent.mp4"})
    questions = [
        {"video_name": "video7010", "question": "what is red?", "question_id": 158581},
        {"video_name": "video7010", "question": "who is {there}?", "question_id": 158582},
        {"video_name": "video7011", "question": "what is green?", "question_id": 158583},
    ]
    answers = [
        {"answer": "screen", "type": "what", "question_id": 158581},
        {"answer": "nobody", "type": "who", "question_id": 158582},
        {"answer": "screen", "type": "what", "question_id": 158583},
    ]
    _json(folder, "test_q.json", questions)
    _json(folder, "test_a.json", answers)
    return _words(folder, "msrvtt-qa", "test_q.json")


def msvd_qa(folder: Path, media: Path) -> list[str]:
    """The original form, whose clips have other names than the questions give."""
    _clips(folder, media, {"YouTubeClips/-4wsuPCjDBc_5_15.mp4": "silent.mp4", "YouTubeClips/vid1202.mp4": "short.mp4"})
    questions = [
        {"answer": "green", "id": 30933, "question": "what fills the screen?", "video_id": 1201},
        {"answer": "three", "id": 30934, "question": "how many colors are shown?", "video_id": 1202},
    ]
    _json(folder, "test_qa.json", questions)
    (folder / "youtube_mapping.txt").write_text("-4wsuPCjDBc_5_15 vid1201\nmv89psg6zh4_33_46 vid1202\n")
    return _words(folder, "msvd-qa", "test_qa.json")


def activitynet_qa(folder: Path, media: Path) -> list[str]:
    """Two files joined by an id; the names of videos lack `v_`."""
    _clips(folder, media, {"all/v_1QIUV7WYKXg.mp4": "red-loud.mp4", "all/v_2QIUV7WYKXg.mp4": "blue-loud.mp4"})
    questions = [
        {"video_name": "1QIUV7WYKXg", "question": "is the screen red", "question_id": "v_1QIUV7WYKXg_3"},
        {"video_name": "2QIUV7WYKXg", "question": "what color is it", "question_id": "v_2QIUV7WYKXg_1"},
    ]
    answers = [
        {"answer": "yes", "type": 3, "question_id": "v_1QIUV7WYKXg_3"},
        {"answer": "blue", "type": 4, "question_id": "v_2QIUV7WYKXg_1"},
    ]
    _json(folder, "test_q.json", questions)
    _json(folder, "test_a.json", answers)
    return _words(folder, "activitynet-qa", "test_q.json")


def avsd(folder: Path, media: Path) -> list[str]:
    """Whole dialogs, as AVSD's validation set has them."""
    _clips(folder, media, {"Charades_v1_480/7UPGT.mp4": "red-loud.mp4", "Charades_v1_480/8UPGT.mp4": "blue-loud.mp4"})
    dialogs = [
        _dialog("7UPGT", ("what color is it?", "red, then green"), ("is there a sound?", "yes, a tone")),
        _dialog("8UPGT", ("does the color change?", "no")),
    ]
    _json(folder, "valid_set4DSTC7-AVSD.json", {"type": "valid", "version": "0.1", "dialogs": dialogs})
    return _words(folder, "avsd", "valid_set4DSTC7-AVSD.json")


def avsd_savebench(folder: Path, media: Path) -> list[str]:
    """Dialogs of SAVEBench."""
    _clips(folder, media, {"charades/7UPGT.mp4": "red-loud.mp4"})
    talk = _talk("what color is it?", "red, then green", "is there a sound?", "yes, a tone")
    _json(folder, "avsd.json", [{"image_name": "charades/7UPGT.mp4", "conversation": talk}])
    return _words(folder, "avsd-savebench", "avsd.json")


def avsd_videollama(folder: Path, media: Path) -> list[str]:
    """One question a record, as VideoLLaMA2 reads them; ids are the videos'."""
    _clips(folder, media, {"7UPGT.mp4": "red-loud.mp4"})
    asked = [("what color is it?", "red, then green"), ("is there a sound?", "yes, a tone")]
    records = [
        {"id": "7UPGT", "video": "7UPGT.mp4", "conversations": _talk(f"<video>\n{question}", answer)}
        for question, answer in asked
    ]
    _json(folder, "instruction_val.json", records)
    return _words(folder, "avsd-videollama", "instruction_val.json")


def avssd(folder: Path, media: Path) -> list[str]:
    """VGGSound's table: two clips of the test set and one of the training set, each ten seconds at most."""
    names = ["---g-f_I2yQ_000001.mp4", "--0PQM4-hqg_000030.mp4", "--PG66A3lo4_000006.mp4"]
    _clips(folder, media, {names[0]: "red-loud.mp4", names[1]: "blue-loud.mp4", names[2]: "red-loud.mp4"})
    rows = [
        ["---g-f_I2yQ", 1, "people marching", "test"],
        ["--0PQM4-hqg", 30, "waterfall burbling, loud", "test"],
        ["--PG66A3lo4", 6, "female singing", "train"],
    ]
    _csv(folder, "vggsound.csv", rows)
    return _words(folder, "avssd", "vggsound.csv")


def avssd_savebench(folder: Path, media: Path) -> list[str]:
    """SAVEBench names a still and a sound of each clip; the clip is a video."""
    _clips(folder, media, {"vggss/---g-f_I2yQ_000001.mp4": "red-loud.mp4"})
    names = ["vggss/---g-f_I2yQ_000001.jpg", "vggss/---g-f_I2yQ_000001.wav"]
    talk = _talk("What is the source of the sound?", "People are marching.")
    _json(folder, "testdata_formatted.json", [{"image_name": names, "conversation": talk}])
    return _words(folder, "avssd-savebench", "testdata_formatted.json")


def music_avqa(folder: Path, media: Path) -> list[str]:
    """Types and template values are lists as JSON strings; an id stands twice, as in the first test file."""
    _clips(folder, media, {"MUSIC-AVQA-videos-Real/00000093.mp4": "red-loud.mp4"})
    rows = [
        (9, ["Audio-Visual", "Location"], "Where is the <LR> <Object>?", ["left", "flute"], "right"),
        (10, ["Audio", "Counting"], "How many sounds?", [], "two"),
        (10, ["Visual", "Counting"], "How many <Object> are there?", ["violin"], "more than ten"),
    ]
    _json(folder, "avqa-test.json", [_music(*row) for row in rows])
    return _words(folder, "music-avqa", "avqa-test.json")


def vatex(folder: Path, media: Path) -> list[str]:
    """Ten captions a clip when published, here two."""
    _clips(
        folder, media, {"Ptf_2VRj-V0_000122_000132.mp4": "red-loud.mp4", "-----------_000001_000011.mp4": "silent.mp4"}
    )
    clips = [
        {"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["Red turns green.", "A red screen."], "chCap": ["红"]},
        {"videoID": "-----------_000001_000011", "enCap": ["A green screen.", "All is green."], "chCap": ["绿"]},
    ]
    _json(folder, "vatex_public_test_english_v1.1.json", clips)
    return _words(folder, "vatex", "vatex_public_test_english_v1.1.json")


def valor(folder: Path, media: Path) -> list[str]:
    """One description a clip."""
    _clips(
        folder,
        media,
        {"x-2Abohj8VY_30.000_40.000.mp4": "red-loud.mp4", "y-2Abohj8VY_0.000_10.000.mp4": "blue-loud.mp4"},
    )
    clips = [
        {"video_id": "x-2Abohj8VY_30.000_40.000", "desc": "With a low tone, red turns green."},
        {"video_id": "y-2Abohj8VY_0.000_10.000", "desc": "With a high tone, the screen is blue."},
    ]
    _json(folder, "desc_test.json", clips)
    return _words(folder, "valor", "desc_test.json")


def avsd_comp(folder: Path, media: Path) -> list[str]:
    """DSTC7's test set: the last answer is undisclosed, and its references are in a file of captions."""
    _clips(folder, media, {"Charades_v1_480/7UPGT.mp4": "red-loud.mp4", "Charades_v1_480/8UPGT.mp4": "blue-loud.mp4"})
    hidden = "__UNDISCLOSED__"
    dialogs = [
        _dialog("7UPGT", ("what color is it?", "red, then green"), ("is there a sound?", hidden)),
        _dialog("8UPGT", ("does the color change?", hidden)),
    ]
    references = [(1, "yes, a tone"), (1, "there is a tone"), (2, "no"), (2, "it stays blue")]
    captions = [{"image_id": image, "id": n, "caption": text} for n, (image, text) in enumerate(references)]
    images = [{"id": 1, "name": "7UPGT_1"}, {"id": 2, "name": "8UPGT_0"}]
    _json(folder, "test_set4DSTC7-AVSD.json", {"type": "test", "version": "0.1", "dialogs": dialogs})
    _json(folder, "test_set4DSTC7-AVSD_multiref.json", {"images": images, "annotations": captions})
    return _words(folder, "avsd-comp", "test_set4DSTC7-AVSD.json")


def favdbench(folder: Path, media: Path) -> list[str]:
    """One paragraph a clip: a summary, sentences on what is seen, and one or two on what is heard."""
    _clips(folder, media, {"videos/x1.mp4": "red-loud.mp4", "videos/x2.mp4": "blue-loud.mp4"})
    paragraphs = {
        "test/x1.mp4": "A screen changes color. It is red at first. Then it is green. A low tone sounds all along.",
        "test/x2.mp4": "A screen is blue. Nothing moves on it. A high tone sounds all along.",
    }
    annotations = [{"image_id": name, "id": n, "caption": text} for n, (name, text) in enumerate(paragraphs.items())]
    images = [{"id": name, "file_name": name} for name in paragraphs]
    content = {"type": "captions", "info": "dummy", "images": images, "annotations": annotations}
    _json(folder, "test.caption_coco_format.json", content)
    return _words(folder, "favdbench", "test.caption_coco_format.json")


def next_qa(folder: Path, media: Path) -> list[str]:
    """A table with five options, and a map of the videos' paths."""
    _clips(
        folder, media, {"NExTVideo/1164/4010069381.mp4": "red-loud.mp4", "NExTVideo/1001/4882821564.mp4": "silent.mp4"}
    )
    head = [
        "video",
        "frame_count",
        "width",
        "height",
        "question",
        "answer",
        "qid",
        "type",
        *(f"a{i}" for i in range(5)),
    ]
    rows = [
        head,
        [
            4010069381,
            16,
            64,
            64,
            "how does it turn green",
            0,
            6,
            "CH",
            "at once",
            "slowly",
            "never",
            "twice",
            "in part",
        ],
        [4010069381, 16, 64, 64, "what was there before green", 2, 7, "TP", "blue", "grey", "red", "black", "white"],
        [4882821564, 12, 64, 64, "what color is it", 4, 6, "DO", "blue", "grey", "red", "black", "green"],
    ]
    _csv(folder, "val.csv", rows)
    _json(folder, "map_vid_vidorID.json", {"4010069381": "1164/4010069381", "4882821564": "1001/4882821564"})
    return _words(folder, "next-qa", "val.csv")


def mvbench(folder: Path, media: Path) -> list[str]:
    """A file a task: bounds of a part, an answer that is a number, and a folder of frames."""
    frames = "video/tvqa/frames_fps3_hq/friends_s03e09_seg02_clip_07"
    clips = {
        "video/star/Charades_v1_480/ZS9XR.mp4": "red-loud.mp4",
        "video/clevrer/video_validation/video_1.mp4": "silent.mp4",
        **{f"{frames}/0000{number}.jpg": "red.jpg" for number in range(1, 7)},
    }
    _clips(folder, media, clips)
    part = {"video": "ZS9XR.mp4", "question": "What happened?", "candidates": ["It was red.", "It was blue."]}
    late = {"video": "ZS9XR.mp4", "question": "What came last?", "candidates": ["Red.", "Green.", "Blue."]}
    film = {"video": frames.rpartition("/")[2], "question": "Why?", "candidates": ["x", "y"], "answer": "x", "fps": 3}
    count = {"video": "video_1.mp4", "question": "How many?", "candidates": [0, 1], "answer": 1}
    (folder / "json").mkdir()
    sequence = [
        {**part, "answer": "It was red.", "start": 0.1, "end": 0.7},
        {**late, "answer": "Green.", "start": 0.9, "end": 1.5},
    ]
    _json(folder, "json/action_sequence.json", sequence)
    _json(folder, "json/episodic_reasoning.json", [{**film, "start": 0, "end": 1}])
    _json(folder, "json/moving_count.json", [count])
    return _words(folder, "mvbench", "json")


def generic_qa(folder: Path, media: Path) -> list[str]:
    """The file of three of the five dimensions."""
    _clips(folder, media, {"v_p1QGn0IzfW0.mp4": "red-loud.mp4", "v_q1QGn0IzfW0.mp4": "silent.mp4"})
    questions = [
        {"Q": "What is shown?", "A": "A screen that turns from red to green.", "video_name": "v_p1QGn0IzfW0"},
        {"Q": "Describe the video in detail.", "A": "A screen is green throughout.", "video_name": "v_q1QGn0IzfW0"},
    ]
    _json(folder, "generic_qa.json", questions)
    return _words(folder, "videochatgpt-generic", "generic_qa.json")


def temporal_qa(folder: Path, media: Path) -> list[str]:
    """The file of temporal understanding."""
    _clips(folder, media, {"v_p1QGn0IzfW0.mp4": "red-loud.mp4"})
    _json(folder, "temporal_qa.json", [{"Q": "What comes after red?", "A": "Green.", "video_name": "v_p1QGn0IzfW0"}])
    return _words(folder, "videochatgpt-temporal", "temporal_qa.json")


def consistency_qa(folder: Path, media: Path) -> list[str]:
    """Two questions with one answer."""
    _clips(folder, media, {"v_p1QGn0IzfW0.mp4": "red-loud.mp4", "v_q1QGn0IzfW0.mp4": "silent.mp4"})
    pairs = [
        {"Q1": "What comes first?", "Q2": "Which color begins?", "A": "Red.", "video_name": "v_p1QGn0IzfW0"},
        {"Q1": "What is seen?", "Q2": "Which color is it?", "A": "Green.", "video_name": "v_q1QGn0IzfW0"},
    ]
    _json(folder, "consistency_qa.json", pairs)
    return _words(folder, "videochatgpt-consistency", "consistency_qa.json")


SETS: Mapping[str, Write] = {
    "msrvtt-qa": msrvtt_qa,
    "msvd-qa": msvd_qa,
    "activitynet-qa": activitynet_qa,
    "avsd": avsd,
    "avsd-alone": avsd,
    "avssd": avssd,
    "music-avqa": music_avqa,
    "vatex": vatex,
    "valor": valor,
    "avsd-comp": avsd_comp,
    "favdbench": favdbench,
    "next-qa": next_qa,
    "mvbench": mvbench,
    "videochatgpt-correctness": generic_qa,
    "videochatgpt-detail": generic_qa,
    "videochatgpt-context": generic_qa,
    "videochatgpt-temporal": temporal_qa,
    "videochatgpt-consistency": consistency_qa,
}
STORED = {
    "avsd-alone": "avsd",
    "avssd": "avssd-test",
    "videochatgpt-correctness": "videochatgpt-generic",
    "videochatgpt-detail": "videochatgpt-generic",
    "videochatgpt-context": "videochatgpt-generic",
}  # names of conversations that are not their task's
OTHERS: tuple[Write, ...] = (avsd_savebench, avsd_videollama, avssd_savebench)  # other forms of the same benchmarks


def conversations_of(task: str) -> str:
    """The name under which the set of a task is planned."""
    return STORED.get(task, task)


def _words(folder: Path, name: str, source: str) -> list[str]:
    return [str(folder / source), "--media-root", str(folder / "media"), "--name", name]


def _clips(folder: Path, media: Path, names: Mapping[str, str]) -> None:
    """Copy files of `media` under the names that the set has for them."""
    for name, original in names.items():
        path = folder / "media" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(media / original, path)


def _json(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def _csv(folder: Path, name: str, rows: list[list[Any]]) -> None:
    with (folder / name).open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def _dialog(video: str, *pairs: tuple[str, str]) -> dict[str, Any]:
    talk = [{"question": question, "answer": answer} for question, answer in pairs]
    return {"image_id": video, "caption": "a screen", "summary": "it is seen", "dialog": talk}


def _talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if place % 2 else "human", "value": text} for place, text in enumerate(texts)]


def _music(id: int, kind: list[str], question: str, values: list[str], answer: str) -> dict[str, Any]:
    return {
        "video_id": "00000093",
        "question_id": id,
        "type": json.dumps(kind),
        "question_content": question,
        "templ_values": json.dumps(values),
        "question_deleted": 0,
        "anser": answer,
    }
