"""A raw file or cached features, one question or a batch: the same answer."""

import io
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from rich.control import strip_control_codes

from serve.assistant import Assistant, Question
from serve.chat import Chat
from serve.engine import Limits
from serve.features import available_modality
from store import Turn, UserError
from store.console import console


@pytest.fixture(scope="module")
def assistant(trained):
    return Assistant.load(str(trained / "run" / "checkpoint"))


@pytest.mark.parametrize("name", ["red-loud.mp4", "silent.mp4", "low.wav", "blue.png"])
def test_a_raw_file_gives_the_features_of_the_store(assistant, trained, media, name):
    """Served on the spot or trained from the cache: the same bits, and the same reasons where a sense is lacking."""
    seen = assistant.features.encode(str(media / name), ["visual", "audio"])
    cached = assistant.features.load(str(trained / "store"), name.replace(".", "-"), ["visual", "audio"])
    assert seen.arrays.keys() == cached.arrays.keys()
    for array in seen.arrays:
        np.testing.assert_array_equal(seen.arrays[array], cached.arrays[array])
    assert {s: (e.code, str(e)) for s, e in seen.failures.items()} == {
        s: (e.code, str(e)) for s, e in cached.failures.items()
    }
    assert seen.arrays


def test_streamed_and_batched_answers_are_equal(assistant, trained):
    """Streaming only changes when text comes."""
    arrays = assistant.features.load(str(trained / "store"), "red-loud-mp4", ["visual", "audio"]).arrays
    turns = [("What?", "visual"), ("What is that sound that one hears there?", "audio"), ("Both?", "audio_visual")]
    questions = [Question((Turn(text, modality, ""),), arrays) for text, modality in turns]
    together = [reply.text for reply in assistant.answer(questions, Limits(8))]
    assert together == [
        "".join(piece.text for piece in assistant.stream(question, Limits(8))).strip() for question in questions
    ]


def test_a_question_needs_the_features_it_asks_by(assistant, trained):
    arrays = assistant.features.load(str(trained / "store"), "silent-mp4", ["visual"]).arrays
    assert available_modality(arrays) == "visual"
    with pytest.raises(UserError, match="there are no audio tokens"):
        assistant.answer([Question((Turn("What?", "audio", ""),), arrays)])
    failures = assistant.features.load(str(trained / "store"), "silent-mp4", ["audio"]).failures
    assert str(failures["audio"]) == "no audio stream"


def test_changed_encoder_weights_are_refused(trained, media):
    """A projector fed by other weights than it was trained on answers with confidence and nonsense."""
    assistant = Assistant.load(str(trained / "run" / "checkpoint"))
    assistant.info.builds["visual"]["seed"] = 1
    with pytest.raises(UserError, match="were its weights changed"):
        assistant.features.encode(str(media / "red-loud.mp4"), ["visual"])


def test_an_imported_column_has_no_encoder_to_ask_with(trained, media):
    """Features made elsewhere can be trained on and recalled; that nothing here makes them anew is said in one line."""
    assistant = Assistant.load(str(trained / "run" / "checkpoint"))
    assistant.info.builds["visual"] = {"imported": "video-chatgpt"}
    with pytest.raises(UserError, match=r"was imported \(video-chatgpt\).*--store and --key"):
        assistant.features.encode(str(media / "red-loud.mp4"), ["visual"])
    assert assistant.features.load(str(trained / "store"), "red-loud-mp4", ["visual"]).arrays.keys() == {
        "temporal",
        "spatial",
    }


def test_the_command_answers_from_a_file_and_from_a_store(python, trained, media):
    checkpoint = ["serve", "chat", "--checkpoint", trained / "run" / "checkpoint", "--max-new-tokens", 4]
    raw = python(*checkpoint, "--media", media / "red-loud.mp4", "--watch", "--listen", "What?", fresh=True)
    cached = python(*checkpoint, "--store", trained / "store", "--key", "red-loud-mp4", "What?")
    assert raw.returncode == cached.returncode == 0, raw.stderr + cached.stderr
    assert raw.stdout == cached.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--media", "silent.mp4", "--listen"], "audio: no audio stream"),
        (["--media", "gone.mp4"], "no such file"),
        (["--store", "S"], "give either --media FILE, or --store STORE with --key KEY"),
    ],
)
def test_what_cannot_be_answered_is_one_line(python, trained, media, words, message):
    done = python("serve", "chat", "--checkpoint", trained / "run" / "checkpoint", *words, "What?", cwd=media)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")


def test_a_dialogue_has_turns_senses_and_sampling(assistant, trained, monkeypatch, capsys):
    """Each answer is the engine's to the turns before; commands begin anew; what cannot be done ends nothing."""
    arrays = assistant.features.load(str(trained / "store"), "red-loud-mp4", ["visual", "audio"]).arrays
    lines = ["What?", "Sure?", "/sound", "What?", "/nothing", "", "/new", "Why? <VIS>", "/quit", "never asked"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    limits = Limits(8, temperature=0.7, top_p=0.9)
    Chat(assistant, arrays, limits, seed=5, system="Be short.").talk()
    said = capsys.readouterr().out

    def expected(*turns):
        question = Question(tuple(Turn(*turn) for turn in turns), arrays, "Be short.")
        return "".join(piece.text for piece in assistant.stream(question, replace(limits, seed=5))).strip()

    first = expected(("What?", "audio_visual", ""))
    answers = [
        first,
        expected(("What?", "audio_visual", first), ("Sure?", "text", "")),
        expected(("What?", "audio", "")),
        expected(("Why?", "visual", "")),
    ]
    asked = ["What?", "Sure?", "/sound\nyou: What?", "Why? <VIS>"]
    shown = [strip_control_codes(answer) for answer in answers]  # as a terminal shows them
    places = [said.index(f"you: {question}\n{answer}") for question, answer in zip(asked, shown, strict=True)]
    assert places == sorted(places)
    assert "error: /nothing: no such command" in said
    assert said.count("you: ") == len(lines) - 1


def test_ctrl_c_stops_an_answer_and_not_the_dialogue(assistant, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("Say much.\nAnd now?\n/sight\n"))

    shown = console.out
    pieces = []

    def out(*words, **options):
        shown(*words, **options)
        pieces.append(words)
        if len(pieces) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(console, "out", out)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
    chat = Chat(assistant, {}, Limits(1000))
    chat.talk()
    said = capsys.readouterr().out
    assert "(stopped)" in said
    first, second = chat.turns
    assert 1 < len(first.response) < len(second.response)
    assert first.response in said
    assert "error: /sight: the item has no spatial, temporal features" in said
