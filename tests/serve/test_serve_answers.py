"""Each line of a file gets the answer that it gets alone, and a stopped command resumes."""

import json

import pytest
from typer.testing import CliRunner

from serve.__main__ import app
from serve.assistant import Assistant, Question
from serve.engine import Limits
from store import Turn, UserError

ASKED = [
    {"key": "red-loud-mp4", "question": "What?"},
    {"key": "red-loud-mp4", "question": "What is heard? <AUD>", "id": 7},
    {"key": "silent-mp4", "question": "What is heard? <AUD>"},
    {"key": "silent-mp4", "question": "What is seen?\u2028And then?"},
    {"key": "no-such-clip", "question": "What?"},
]


@pytest.fixture
def answer(trained, tmp_path):
    """Run the command; returns the lines of the file of answers."""

    def answer(asked, *more, out="answers.jsonl"):
        questions = tmp_path / "questions.jsonl"
        questions.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in asked))
        words = ["answer", "--in", questions, "--out", tmp_path / out, "--max-new-tokens", 6]
        words += ["--checkpoint", trained / "run" / "checkpoint", "--store", trained / "store", *more]
        done = CliRunner().invoke(app, [*map(str, words)])
        if done.exception:
            raise done.exception
        return [json.loads(line) for line in (tmp_path / out).read_bytes().split(b"\n")[:-1]]

    return answer


def test_each_line_has_the_answer_that_it_gets_alone(answer, trained, media):
    alone = Assistant.load(str(trained / "run" / "checkpoint"))

    def says(key, text, modality, senses):
        arrays = alone.features.load(str(trained / "store"), key, senses).arrays
        return alone.answer([Question((Turn(text, modality, ""),), arrays)], Limits(6))[0].text

    found = answer([*ASKED, {"media": str(media / "low.wav"), "question": "What?"}])
    assert [{name: line[name] for name in asked} for line, asked in zip(found, ASKED, strict=False)] == ASKED
    both = ["visual", "audio"]
    assert found[0]["answer"] == says("red-loud-mp4", "What?", "audio_visual", both)
    assert found[1]["answer"] == says("red-loud-mp4", "What is heard?", "audio", ["audio"])
    assert found[2]["error"] == "silent-mp4: nothing to perceive: audio: no audio stream"
    assert found[3]["answer"] == says("silent-mp4", ASKED[3]["question"], "visual", ["visual"])
    assert "no-such-clip" in found[4]["error"]
    assert found[5]["answer"] == says("low-wav", "What?", "audio", ["audio"])


def test_a_stopped_file_is_gone_on_with(answer, tmp_path):
    whole = answer(ASKED, "--temperature", "1", "--seed", "3")
    lines = (tmp_path / "answers.jsonl").read_bytes()
    for kept in (0, 40, lines.index(b"\n") + 1, len(lines) - 5):
        (tmp_path / "again.jsonl").write_bytes(lines[:kept])
        assert answer(ASKED, "--temperature", "1", "--seed", "3", out="again.jsonl") == whole
    with pytest.raises(UserError, match=r"answers\.jsonl, line 1: is not the answer to that question"):
        answer(ASKED[1:])
    with pytest.raises(UserError, match="has 5 answers to 2 questions"):
        answer(ASKED[:2])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"key": "x"}, "line 1: field 'question'"),
        ({"question": "What?"}, "line 1: .*expected either key or media"),
        ({"key": "x", "question": ""}, "line 1: field 'question'"),
        ({"key": "x", "question": "What?", "sense": "audio"}, "line 1: unknown field 'sense'"),
        ("What?", "line 1: expected an object"),
        (
            {"key": "x", "question": "What? <aud_vis>"},
            "line 1: field 'question': <aud_vis> is no modality token; did you mean <AUD_VIS>",
        ),
    ],
)
def test_a_wrong_line_is_named_before_anything_is_loaded(answer, line, said):
    with pytest.raises(UserError, match=said):
        answer([line], "--checkpoint", "/none")
