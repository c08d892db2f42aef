"""Each reader reads a small file of the original format, quirks included, and joins it with the files users have."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from featurize.sources import read_sources
from featurize.sources.document import parse
from featurize.sources.formats import FORMATS, choose_format
from featurize.sources.report import join
from store import Turn, UserError


@dataclass
class Case:
    """A data set: its files beside each other, the media below `media/`, and what must come of them."""

    format: str
    files: dict[str, object]
    media: list[str]
    ids: list[str]
    found: list[str | None]
    turns: list[tuple[Turn, ...]]
    meta: dict[str, object] = field(default_factory=dict)  # some of the first record's
    missing: list[str] = field(default_factory=list)
    parts: int = 0
    left_out: list[str] = field(default_factory=list)


def human(text):
    return {"from": "human", "value": text}


def gpt(text):
    return {"from": "gpt", "value": text}


def seen(question, answer):
    return (Turn(question, "visual", answer),)


def both(question, answer):
    return (Turn(question, "audio_visual", answer),)


def heard(question, answer):
    return (Turn(question, "audio", answer),)


CHOICE = "Question: {}\nOptions:\n{}\nAnswer with the letter of the right option."
BESIDE = ("_a.json", "mapping.txt", "vidorID.json", "_multiref.json")  # files that a reader finds by itself
EVENT = "Identify the event in the video."
SOUND = "Describe this sound in one sentence."
NEXT = ["video", "frame_count", "width", "height", "question", "answer", "qid", "type", "a0", "a1", "a2", "a3", "a4"]
CASES = [
    Case(
        "llava",
        {
            "llava.json": [
                {"id": "33", "image": "00000/1.jpg", "conversations": [human("What?\n<image>"), gpt("A cat.")]},
                {"id": "34", "image": ["a.jpg", "b.jpg"], "conversations": [human("<image>"), gpt("Two.")]},
                {"id": "35", "conversations": [human("Hi"), gpt("Hello")]},
            ]
        },
        ["00000/1.jpg"],
        ["33", "35"],
        ["00000/1.jpg", None],
        [seen("What?", "A cat."), (Turn("Hi", "text", "Hello"),)],
        left_out=["34"],
    ),
    Case(
        "sharegpt",
        {
            "mllm.json": [
                {
                    "messages": [
                        {"role": "system", "content": "Be brief."},
                        {"role": "user", "content": "<video><audio>What is it?"},
                        {"role": "assistant", "content": "A song."},
                    ],
                    "videos": ["1.mp4"],
                    "audios": ["1.mp4"],
                    "images": [],
                },
                {
                    "messages": [{"role": "user", "content": "<image>x"}, {"role": "assistant", "content": "y"}],
                    "images": ["a.png", "b.png"],
                },
            ]
        },
        ["1.mp4"],
        ["0"],
        ["1.mp4"],
        [both("What is it?", "A song.")],
        {"system": "Be brief."},
        left_out=["1"],
    ),
    Case(
        "valley",
        {
            "valley.json": [
                {"id": "1", "video": "000951/12", "conversations": [human("<video>\nWhat?"), gpt("A man.")]},
                {"id": "2", "video": "x_1_2", "source": "VATEX", "conversations": [human("What?"), gpt("A dog.")]},
                {"id": "3", "video": "gone.mp4", "source": "jukin", "conversations": [human("What?"), gpt("?")]},
                {"id": "4", "image": "i.jpg", "conversations": [human("<image> What?"), gpt("A car.")]},
            ]
        },
        ["webvid/000951/12.mp4", "VATEX/x_1_2.mp4", "jukin/x_1_2.mp4", "i.jpg"],
        ["1", "2", "3", "4"],
        ["webvid/000951/12.mp4", "VATEX/x_1_2.mp4", "jukin/gone.mp4", "i.jpg"],
        [seen("What?", "A man."), seen("What?", "A dog."), seen("What?", "?"), seen("What?", "A car.")],
        missing=["jukin/gone.mp4"],
    ),
    Case(
        "videoinstruct",
        {
            "VideoInstruct100K.json": [
                {"q": "What is it?", "a": "Ice skating.", "video_id": "v_k_ZXmr8pmrs"},
                {"q": "Where?", "a": "", "video_id": "v_k_ZXmr8pmrs"},
                {"q": "Who?", "a": "A man.", "video_id": "v_gone1234567"},
            ]
        },
        ["ActivityNet/v_k_ZXmr8pmrs.mkv"],
        ["0", "1", "2"],
        ["ActivityNet/v_k_ZXmr8pmrs.mkv"] * 2 + ["v_gone1234567.mp4"],
        [seen("What is it?", "Ice skating."), seen("Where?", ""), seen("Who?", "A man.")],
        {"video_id": "v_k_ZXmr8pmrs", "answer": "Ice skating."},
        missing=["v_gone1234567.mp4"],
    ),
    Case(
        "video-chatgpt",
        {"generic_qa.json": [{"Q": "What?", "A": "A man rows.", "video_name": "v_p1QGn0IzfW0"}]},
        ["v_p1QGn0IzfW0.mp4"],
        ["generic_qa-0"],
        ["v_p1QGn0IzfW0.mp4"],
        [seen("What?", "A man rows.")],
        {"question_id": "generic_qa-0", "split": "test", "video_name": "v_p1QGn0IzfW0", "answer": "A man rows."},
    ),
    Case(
        "video-chatgpt",
        {"consistency_qa.json": [{"Q1": "What?", "Q2": "Say what.", "A": "Rowing.", "video_name": "v_p1QGn0IzfW0"}]},
        ["p1QGn0IzfW0.avi"],
        ["consistency_qa-0-Q1", "consistency_qa-0-Q2"],
        ["p1QGn0IzfW0.avi"] * 2,
        [seen("What?", "Rowing."), seen("Say what.", "Rowing.")],
        {"question_id": "consistency_qa-0", "Q1": "What?", "Q2": "Say what."},
    ),
    Case(
        "activitynet-qa",
        {
            "test_q.json": [
                {"video_name": "1QIUV7WYKXg", "question": "is it a dog", "question_id": "v_1QIUV7WYKXg_3"},
                {"video_name": "-8y1Q0rA3n8_108_115", "question": "who", "question_id": "2"},
            ],
            "test_a.json": [
                {"answer": "man", "question_id": "2"},
                {"answer": "no", "type": 3, "question_id": "v_1QIUV7WYKXg_3"},
            ],
        },
        ["all/v_1QIUV7WYKXg.mp4", "-8y1Q0rA3n8_108_115.avi"],
        ["v_1QIUV7WYKXg_3", "2"],
        ["all/v_1QIUV7WYKXg.mp4", "-8y1Q0rA3n8_108_115.avi"],
        [seen("is it a dog", "no"), seen("who", "man")],
        {"type": 3, "answer": "no", "question_id": "v_1QIUV7WYKXg_3", "split": "test"},
    ),
    Case(
        "msvd-qa",
        {
            "val_qa.json": [
                {"answer": "someone", "id": 30933, "question": "who pours?", "video_id": 1201},
                {"answer": "eat", "id": 30934, "question": "what?", "video_id": 1202},
            ],
            "youtube_mapping.txt": "-4wsuPCjDBc_5_15 vid1201\nmv89psg6zh4_33_46 vid1202\n",
        },
        ["YouTubeClips/-4wsuPCjDBc_5_15.avi", "YouTubeClips/vid1202.avi"],
        ["30933", "30934"],
        ["YouTubeClips/-4wsuPCjDBc_5_15.avi", "YouTubeClips/vid1202.avi"],
        [seen("who pours?", "someone"), seen("what?", "eat")],
        {"question_id": "30933", "video_id": 1201, "split": "val"},
    ),
    Case(
        "msvd-qa",
        {
            "train_qa.json": [
                {"answer": "couch", "category_id": 14, "id": 0, "question": "what?", "video_id": 65},
                {"answer": "men", "category_id": 14, "id": 1, "question": "who?", "video_id": 650},
            ]
        },
        ["TrainValVideo/video65.mp4", "TrainValVideo/video6500.mp4"],
        ["0", "1"],
        ["TrainValVideo/video65.mp4", "video650.mp4"],
        [seen("what?", "couch"), seen("who?", "men")],
        {"category_id": 14, "split": "train"},
        missing=["video650.mp4"],
    ),
    Case(
        "nextqa",
        {
            "val.csv": [
                NEXT,
                [4010069381, 369, 640, 480, "how do they play, then", 0, 6, "CH", "roll", "tap", "strum", "hit", "pat"],
                [4882821564, 2697, 640, 480, "why", 2, 6, "CW", "a", "b", "c", "d", "e"],
            ],
            "map_vid_vidorID.json": {"4010069381": "1164/4010069381"},
        },
        ["NExTVideo/1164/4010069381.mp4", "NExTVideo/0001/4010069381.mp4", "NExTVideo/1001/4882821564.mp4"],
        ["4010069381_6", "4882821564_6"],
        ["NExTVideo/1164/4010069381.mp4", "NExTVideo/1001/4882821564.mp4"],
        [
            seen(CHOICE.format("how do they play, then", "(A) roll\n(B) tap\n(C) strum\n(D) hit\n(E) pat"), "A"),
            seen(CHOICE.format("why", "(A) a\n(B) b\n(C) c\n(D) d\n(E) e"), "C"),
        ],
        {
            "options": ["roll", "tap", "strum", "hit", "pat"],
            "answer": "roll",
            "answer_index": 0,
            "type": "CH",
            "question": "how do they play, then",
            "split": "val",
        },
    ),
    Case(
        "mvbench",
        {
            "action_sequence.json": [
                {
                    "video": "ZS9XR.mp4",
                    "question": "What happened?",
                    "candidates": ["Ate.", "Threw."],
                    "answer": "Threw.",
                    "start": 11.1,
                    "end": 17.2,
                }
            ],
            "object_shuffle.json": [
                {"video": "video_1.mp4", "question": "Where?", "candidates": ["1st", "2nd"], "answer": "1st"}
            ],
            "moving_count.json": [{"video": "video_1.mp4", "question": "How many?", "candidates": [0, 1], "answer": 1}],
            "episodic_reasoning.json": [
                {
                    "video": "friends_s03e09_seg02_clip_07",
                    "question": "Why?",
                    "candidates": ["x", "y"],
                    "answer": "x",
                    "start": 0,
                    "end": 9,
                    "fps": 3,
                }
            ],
        },
        [
            "video/star/Charades_v1_480/ZS9XR.mp4",
            "video/perception/videos/video_1.mp4",
            "video/clevrer/video_validation/video_1.mp4",
            "video/tvqa/frames_fps3_hq/friends_s03e09_seg02_clip_07/00001.jpg",
            "video/tvqa/frames_fps3_hq/friends_s03e09_seg02_clip_07/00002.jpg",
        ],
        ["action_sequence-0", "episodic_reasoning-0", "moving_count-0", "object_shuffle-0"],
        [
            "video/star/Charades_v1_480/ZS9XR.mp4",
            "video/tvqa/frames_fps3_hq/friends_s03e09_seg02_clip_07",
            "video/clevrer/video_validation/video_1.mp4",
            "video/perception/videos/video_1.mp4",
        ],
        [
            seen(CHOICE.format("What happened?", "(A) Ate.\n(B) Threw."), "B"),
            seen(CHOICE.format("Why?", "(A) x\n(B) y"), "A"),
            seen(CHOICE.format("How many?", "(A) 0\n(B) 1"), "B"),
            seen(CHOICE.format("Where?", "(A) 1st\n(B) 2nd"), "A"),
        ],
        {"task": "action_sequence", "start": 11.1, "end": 17.2, "answer": "Threw.", "split": "test"},
        parts=2,
    ),
    Case(
        "music-avqa",
        {
            "avqa-test.json": [
                {
                    "video_id": "00000093",
                    "question_id": 9,
                    "type": '["Audio-Visual", "Location"]',
                    "question_content": "Where is the <LR> <Object>?",
                    "templ_values": '["left", "flute"]',
                    "question_deleted": 0,
                    "anser": "right",
                },
                {
                    "video_id": "00000093",
                    "question_id": 10,
                    "type": "['Audio', 'Counting']",
                    "question_content": "How many sounds?",
                    "templ_values": "[]",
                    "question_deleted": 0,
                    "anser": "two",
                },
            ]
        },
        ["MUSIC-AVQA-videos-Real/00000093.mp4"],
        ["9", "10"],
        ["MUSIC-AVQA-videos-Real/00000093.mp4"] * 2,
        [both("Where is the left flute?", "right"), heard("How many sounds?", "two")],
        {"type": ["Audio-Visual", "Location"], "question": "Where is the left flute?", "answer": "right"},
    ),
    Case(
        "avsd",
        {
            "test_set4DSTC7-AVSD.json": {
                "type": "test",
                "version": "0.1",
                "dialogs": [
                    {
                        "image_id": "7UPGT",
                        "caption": "a man walks",
                        "summary": "he walks in",
                        "dialog": [
                            {"question": "who?", "answer": "a man"},
                            {"question": "any sound?", "answer": "no"},
                            {"question": "then?", "answer": "__UNDISCLOSED__"},
                        ],
                    },
                    {
                        "image_id": "AAAAA",
                        "caption": "",
                        "summary": "",
                        "dialog": [{"question": "why?", "answer": "__UNDISCLOSED__"}],
                    },
                ],
            }
        },
        ["Charades_v1_480/7UPGT.mp4"],
        ["7UPGT"],
        ["Charades_v1_480/7UPGT.mp4"],
        [(Turn("who?", "audio_visual", "a man"), Turn("any sound?", "text", "no"))],
        {"caption": "a man walks", "summary": "he walks in", "undisclosed": ["then?"]},
        left_out=["AAAAA"],
    ),
    Case(
        "avsd",
        {
            "test_set4DSTC7-AVSD.json": {
                "dialogs": [
                    {"image_id": "7UPGT", "dialog": [{"question": "why?", "answer": "__UNDISCLOSED__"}]},
                    {
                        "image_id": "AAAAA",
                        "dialog": [
                            {"question": "who?", "answer": "a man"},
                            {"question": "then?", "answer": "__UNDISCLOSED__"},
                        ],
                    },
                ]
            },
            "test_set4DSTC7-AVSD_multiref.json": {
                "images": [{"id": 2, "name": "AAAAA_2"}, {"id": 1, "name": "7UPGT_1"}],
                "annotations": [
                    {"image_id": 1, "id": 1, "caption": "he is cold"},
                    {"image_id": 2, "id": 2, "caption": "he sits"},
                    {"image_id": 1, "id": 3, "caption": "it is cold"},
                ],
            },
        },
        ["Charades_v1_480/7UPGT.mp4", "Charades_v1_480/AAAAA.mp4"],
        ["7UPGT", "AAAAA"],
        ["Charades_v1_480/7UPGT.mp4", "Charades_v1_480/AAAAA.mp4"],
        [both("why?", "he is cold"), (Turn("who?", "audio_visual", "a man"), Turn("then?", "text", "he sits"))],
        {"undisclosed": ["why?"], "references": ["he is cold", "it is cold"], "split": "test"},
    ),
    Case(
        "savebench",
        {
            "avsd.json": [
                {
                    "image_name": "./charades/7UPGT.mp4",
                    "conversation": [human("who?"), gpt("a man"), human("any sound?"), gpt("no")],
                },
                {
                    "image_name": ["vggss/a_1.jpg", "vggss/a_1.wav"],
                    "conversation": [human("What is the source of the sound?"), gpt("A bell rings.")],
                },
                {"image_name": ["a.jpg", "b.wav"], "conversation": [human("Do they match?"), gpt("no")]},
            ]
        },
        ["charades/7UPGT.mp4", "vggss/a_1.mp4"],
        ["0", "1"],
        ["charades/7UPGT.mp4", "vggss/a_1.mp4"],
        [
            (Turn("who?", "audio_visual", "a man"), Turn("any sound?", "text", "no")),
            both("What is the source of the sound?", "A bell rings."),
        ],
        left_out=["2"],
    ),
    Case(
        "coco-captions",
        {
            "test.caption_coco_format.json": {
                "type": "captions",
                "images": [{"id": "test/x1.mp4", "file_name": "test/x1.mp4"}, {"id": 7, "file_name": "x2.mp4"}],
                "annotations": [
                    {"image_id": "test/x1.mp4", "id": 0, "caption": "A band plays. Drums beat."},
                    {"image_id": 7, "id": 1, "caption": "A dog."},
                    {"image_id": 7, "id": 2, "caption": "A dog barks."},
                ],
            }
        },
        ["videos/x1.mp4", "videos/x2.mp4"],
        ["test/x1.mp4", "7"],
        ["videos/x1.mp4", "videos/x2.mp4"],
        [
            both("Describe what is seen and heard in this video.", "A band plays. Drums beat."),
            both("Describe what is seen and heard in this video.", "A dog."),
        ],
        {"captions": ["A band plays. Drums beat."], "split": "test"},
    ),
    Case(
        "vatex",
        {
            "vatex_training_v1.0.json": [
                {"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["A man.", "A person."], "chCap": ["一个人"]},
                {"videoID": "-----------_000001_000011", "enCap": ["A dog."], "chCap": ["狗"]},
            ]
        },
        ["Ptf_2VRj-V0_000122_000132.mp4", "-----------.webm"],
        ["Ptf_2VRj-V0_000122_000132", "-----------_000001_000011"],
        ["Ptf_2VRj-V0_000122_000132.mp4", "-----------.webm"],
        [
            seen("Describe this video in one sentence.", "A man."),
            seen("Describe this video in one sentence.", "A dog."),
        ],
        {"captions": ["A man.", "A person."], "chCap": ["一个人"], "start": 122.0, "end": 132.0, "split": "train"},
        parts=1,
    ),
    Case(
        "valor",
        {"desc_test.json": [{"video_id": "x-2Abohj8VY_30.000_40.000", "desc": "With a bang, a man falls."}]},
        ["x-2Abohj8VY_30.000_40.000.mp4"],
        ["x-2Abohj8VY_30.000_40.000"],
        ["x-2Abohj8VY_30.000_40.000.mp4"],
        [both("Describe what is seen and heard in this video.", "With a bang, a man falls.")],
        {"captions": ["With a bang, a man falls."], "start": 30.0, "end": 40.0, "split": "test"},
    ),
    Case(
        "audiocaps",
        {
            "val.csv": [
                ["audiocap_id", "youtube_id", "start_time", "caption"],
                [97151, "vfY_TJq7n_U", 130, "Rustling occurs, ducks quack"],
                [108945, "tdWhHV3X25Q", 60, "Applause"],
                [97152, "vfY_TJq7n_U", 130, "Ducks"],
                [97153, "-gone-gone-", 0, "Wind"],
            ]
        },
        ["Yvfy.wav", "val/vfY_TJq7n_U_130.wav", "val/YtdWhHV3X25Q.flac"],
        ["97151", "108945", "97153"],
        ["val/vfY_TJq7n_U_130.wav", "val/YtdWhHV3X25Q.flac", "-gone-gone-_0_10.wav"],
        [heard(SOUND, "Rustling occurs, ducks quack"), heard(SOUND, "Applause"), heard(SOUND, "Wind")],
        {"captions": ["Rustling occurs, ducks quack", "Ducks"], "start": 130.0, "end": 140.0, "split": "val"},
        missing=["-gone-gone-_0_10.wav"],
    ),
    Case(
        "wavcaps",
        {
            "sb_final.json": {
                "num_captions_per_audio": 1,
                "data": [
                    {"id": "2219", "caption": "An airplane lands.", "duration": 14.1, "audio": "wav_path"},
                    {"id": "Yb0RFKhbpFJA.wav", "caption": "A bell.", "duration": 10.0},
                ],
            }
        },
        ["SoundBible/2219.flac", "AudioSet_SL/Yb0RFKhbpFJA.flac"],
        ["2219", "Yb0RFKhbpFJA.wav"],
        ["SoundBible/2219.flac", "AudioSet_SL/Yb0RFKhbpFJA.flac"],
        [heard(SOUND, "An airplane lands."), heard(SOUND, "A bell.")],
        {"captions": ["An airplane lands."], "duration": 14.1},
    ),
    Case(
        "wavcaps",
        {"test.json": [{"id": "1", "caption_1": "Rain.", "caption_2": "Drops.", "duration": 9, "audio": "c/rain.wav"}]},
        ["clotho/c/rain.wav"],
        ["1"],
        ["clotho/c/rain.wav"],
        [heard(SOUND, "Rain.")],
        {"captions": ["Rain.", "Drops."], "audio": "c/rain.wav", "split": "test"},
    ),
    Case(
        "vggsound",
        {
            "vggsound.csv": [
                ["---g-f_I2yQ", 1, "people marching", "test"],
                ["--0PQM4-hqg", 30, "waterfall burbling, loud", "train"],
                ["--PG66A3lo4", 6, "female singing", "train"],
                ["-gone-gone-", 0, "wind", "train"],
            ]
        },
        ["---g-f_I2yQ_000001.mp4", "--0PQM4-hqg_30_40.mp4", "--PG66A3lo4.mp4"],
        ["---g-f_I2yQ_000001", "--0PQM4-hqg_000030", "--PG66A3lo4_000006", "-gone-gone-_000000"],
        ["---g-f_I2yQ_000001.mp4", "--0PQM4-hqg_30_40.mp4", "--PG66A3lo4.mp4", "-gone-gone-_000000.mp4"],
        [
            both(EVENT, "people marching"),
            both(EVENT, "waterfall burbling, loud"),
            both(EVENT, "female singing"),
            both(EVENT, "wind"),
        ],
        {"youtube_id": "---g-f_I2yQ", "start": 1.0, "end": 11.0, "split": "test", "answer": "people marching"},
        missing=["-gone-gone-_000000.mp4"],
        parts=1,
    ),
    Case(
        "acav100m",
        {"acav.csv": [["videoID", "start", "end"], ["---g-f_I2yQ", 12.5, 22.5], ["--0PQM4-hqg", 30, 40]]},
        ["a/---g-f_I2yQ_12.5_22.5.mp4", "a/--0PQM4-hqg_30000_40000.mkv"],
        ["---g-f_I2yQ_12.5_22.5", "--0PQM4-hqg_30_40"],
        ["a/---g-f_I2yQ_12.5_22.5.mp4", "a/--0PQM4-hqg_30000_40000.mkv"],
        [(), ()],
        {"start": 12.5, "end": 22.5},
    ),
    Case(
        "list",
        {"list.csv": [["id", "path"], ["first", "a.mp4"], ["", "b.wav"]]},
        ["a.mp4"],
        ["first", "b.wav"],
        ["a.mp4", "b.wav"],
        [(), ()],
        missing=["b.wav"],
    ),
]


def write(folder, name, content):
    path = folder / name
    if name.endswith(".csv"):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def set_up(case, tmp_path):
    """The files of a case on disk; the paths of those to give as sources."""
    for name in case.media:
        (tmp_path / "media" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "media" / name).write_bytes(name.encode())
    (tmp_path / "ann").mkdir()
    paths = [write(tmp_path / "ann", name, content) for name, content in case.files.items()]
    return sorted(p for p in paths if not p.endswith(BESIDE))


@pytest.mark.parametrize("case", CASES, ids=[f"{case.format}-{next(iter(case.files))}" for case in CASES])
def test_a_file_of_the_original_format(tmp_path, case):
    """Format, ids, files, turns and meta data are right, and so is the report of what was found."""
    urls = set_up(case, tmp_path)
    root = tmp_path / "media"
    sources = read_sources(urls, str(root))
    records = [record for source in sources for record in source.records]
    assert {source.format for source in sources} == {case.format}
    assert [record.id for record in records] == case.ids
    below = [r.media.uri.removeprefix(f"{root}/") if r.media else None for r in records]
    assert below == case.found
    assert [record.turns for record in records] == case.turns
    assert {name: records[0].meta.get(name) for name in case.meta} == case.meta
    reports = join(sources)
    assert [uri.removeprefix(f"{root}/") for report in reports for uri in report.missing] == case.missing
    assert not any(report.unreadable for report in reports)
    named = {uri for uri in below if uri}
    assert sum(report.media for report in reports) == len(named)
    assert sum(report.found for report in reports) == len(named) - len(case.missing)
    assert sum(report.conversations for report in reports) == sum(bool(turns) for turns in case.turns)
    assert [each.id for report in reports for each in report.left_out] == case.left_out
    assert sum(report.parts for report in reports) == case.parts
    assert not any(report.repeated_ids or report.repeated_records or report.ambiguous for report in reports)


def test_every_format_has_a_case():
    assert {case.format for case in CASES} == set(FORMATS)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.format}-{next(iter(case.files))}" for case in CASES])
def test_a_format_can_be_forced_and_no_other_claims_it(tmp_path, case):
    """Only the special forms of LLaVA are also LLaVA's; else the order of a list would decide what a file is."""
    path = set_up(case, tmp_path)[0]
    document = parse(Path(path).read_text(), path)
    claims = {format.name for format in FORMATS.values() if format.detects(document)}
    assert claims - {"llava"} == {case.format} - {"llava"}
    assert choose_format(document, case.format).name == case.format
    with pytest.raises(UserError, match="--format cvs: no such format; known are list, sharegpt"):
        choose_format(document, "cvs")


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_of_another_format_is_refused_in_one_line(tmp_path, format):
    """`--format` may be wrong for a file; that is the user's error, never a traceback."""
    contents = [content for case in CASES for content in case.files.values() if not isinstance(content, str)]
    odd = [None, 1, {}, [], [1], [{}], [[]], {"data": [{"id": 1}]}, {"dialogs": [None]}, [{"conversations": [1]}]]
    said = []
    for content in [*contents, *odd]:
        table = content in contents and isinstance(content, list) and isinstance(content[0], list)
        try:
            read_sources([write(tmp_path, "a.csv" if table else "a.json", content)], None, format)
        except UserError as error:
            said.append(str(error))
    assert len(said) > 5
    assert not [text for text in said if "\n" in text]


def test_answers_are_found_beside_or_given(tmp_path, monkeypatch):
    """Two files joined by id, whichever way the user brings them; questions are never left without their answers."""
    questions = [{"video_name": "a", "question": "who", "question_id": "1"}]
    for name, answer in (("val", "dog"), ("test", "cat")):
        write(tmp_path, f"{name}_q.json", questions)
        write(tmp_path, f"{name}_a.json", [{"answer": answer, "type": 1, "question_id": "1"}])
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", "questions.json", questions)
    pair = [str(tmp_path / name) for name in ("val_q.json", "val_a.json", "test_a.json", "test_q.json")]
    other = str(tmp_path / "other" / "questions.json")

    def answers(*urls):
        return [r.meta["answer"] for source in read_sources(urls, None) for r in source.records]

    assert answers(pair[0]) == ["dog"]
    assert answers(*pair) == ["dog", "cat"]
    with monkeypatch.context() as inside:
        inside.chdir(tmp_path)
        assert answers(*(Path(url).name for url in pair)) == ["dog", "cat"]
    assert answers(other, pair[2]) == ["cat"]
    with pytest.raises(UserError, match=r"questions\.json: questions without answers"):
        answers(other)
    with pytest.raises(UserError, match=r"test_a\.json: these are answers"):
        answers(pair[2])
    with pytest.raises(UserError, match="give one pair at a time"):
        answers(other, pair[1], pair[2])
    write(tmp_path, "val_a.json", [{"answer": "dog", "question_id": "2"}])
    with pytest.raises(UserError, match=r"val_q\.json, record 1, field 'question_id': no answer to '1'"):
        answers(pair[0])


@pytest.mark.parametrize(
    ("images", "captions"),
    [
        ([{"id": "x", "name": "b_3"}, {"id": "y", "name": "a_1"}], {"x": "two", "y": "one"}),  # by name
        ([], {"b": "two", "a.mp4": "one"}),  # ids are names
        ([], {2: "two", 1: "one"}),  # by place, as DSTC7's own evaluation
        ([], {0: "one", 1: "two"}),
        ([{"id": 1, "name": "a_1"}, {"id": 2, "name": "a_5"}], {1: "one", 2: "two"}),  # two dialogs about one video
    ],
)
def test_references_of_undisclosed_answers_find_their_dialog(tmp_path, images, captions):
    """A caption beside the wrong dialog would lower a score in silence."""
    undisclosed = {"dialog": [{"question": "why?", "answer": "__UNDISCLOSED__"}]}
    write(tmp_path, "test.json", {"dialogs": [{"image_id": video, **undisclosed} for video in "ab"]})
    annotations = [{"image_id": id, "id": n, "caption": text} for n, (id, text) in enumerate(captions.items())]
    write(tmp_path, "test_cococap.json", {"images": images, "annotations": annotations})
    for urls in (["test.json"], ["test_cococap.json", "test.json"]):
        sources = read_sources([str(tmp_path / url) for url in urls], None)
        found = [record.meta["references"] for source in sources for record in source.records]
        assert found == [["one"], ["two"]]


def test_a_dialog_without_its_references_is_left_out(tmp_path):
    pair = [{"question": "why?", "answer": "__UNDISCLOSED__"}]
    write(tmp_path, "test.json", {"dialogs": [{"image_id": video, "dialog": pair} for video in "abc"]})
    captions = [{"image_id": video, "id": 1, "caption": "so"} for video in "ac"]
    write(tmp_path, "test_multiref.json", {"images": [], "annotations": captions})
    (source,) = read_sources([str(tmp_path / "test.json")], None)
    assert [record.id for record in source.records] == ["a", "c"]
    assert [each.reason for each in source.left_out] == [
        f"{tmp_path}/test_multiref.json: no references for dialog 1, about 'b'"
    ]


def test_a_folder_of_annotation_files_is_each_of_them(tmp_path):
    """MVBench comes as a folder of 20 files; a folder with media in it stays a folder of media."""
    case = next(case for case in CASES if case.format == "mvbench")
    set_up(case, tmp_path)
    sources = read_sources([str(tmp_path / "ann")], str(tmp_path / "media"))
    assert [record.id for source in sources for record in source.records] == case.ids
    (tmp_path / "ann" / "x.mp4").write_bytes(b"x")
    assert [source.format for source in read_sources([str(tmp_path / "ann")], None)] == ["folder"]
    forced = read_sources([str(tmp_path / "ann")], str(tmp_path / "media"), "mvbench")
    assert [source.format for source in forced] == ["mvbench"] * 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.json",
            [{"video_id": "v", "q": "x", "a": None}],
            r"a\.json, record 1, field 'a': expected text; found None",
        ),
        ("a.json", [{"video_id": "", "q": "x", "a": ""}], r"record 1, field 'video_id': expected a name or id"),
        ("a.json", [{"video_id": "v", "q": "x", "a": ""}, {}], r"record 2, field 'video_id': expected text; found fie"),
        ("a.json", [{"video_id": "v", "q": "x", "a": ""}, 3], r"record 2: expected an object, found int"),
        (
            "a.json",
            [{"video": "v", "question": "x", "candidates": ["a"], "answer": "b"}],
            r"'answer': expected one of the candidates \['a'\]; found 'b'",
        ),
        ("a.json", [{"videoID": "v", "enCap": []}], r"field 'enCap': expected a list of texts; found \[\]"),
        (
            "a.csv",
            [NEXT, ["v", 1, 1, 1, "q", 7, 1, "T", *"abcde"]],
            r"line 2, field 'answer': expected an index .* '7'",
        ),
        ("a.csv", [["videoID", "start", "end"], ["v", "x", 1]], r"line 2, field 'start': expected seconds; found 'x'"),
        ("a.csv", [["v", 1, "l", "test"], ["v", 1]], r"a\.csv, line 2: expected 4 fields, found 2"),
        (
            "a.json",
            [
                {
                    "video_id": "v",
                    "question_id": 1,
                    "type": '["Audio"]',
                    "question_content": "<Object>?",
                    "templ_values": "[]",
                    "anser": "",
                }
            ],
            r"field 'templ_values': expected a value for each place",
        ),
        ("a.json", [{"video_id": "v", "desc": "half \ud83d"}], r"a\.json, record 'v': its text holds half a character"),
        ("a.json", [{"answer": "x"}], r"a\.json: no known format; its first record has answer; known are list, share"),
        ("a.json", {"rows": []}, r"a\.json: expected a list of records, found one object with rows"),
        ("a.json", [{"conversation": []}], r"has conversation; did you mean 'conversations' by 'conversation'\?"),
    ],
)
def test_a_bad_record_is_one_line_that_names_file_record_and_field(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as error:
        read_sources([write(tmp_path, name, content)], None, strict=True)
    assert "\n" not in str(error.value)
