"""What cannot work is told in one line before torch is imported, since that takes most of the time of a start."""

import json
import shutil
import subprocess
import sys

import pytest

from serve.questions import check_tokens
from store import UserError

RUN = """
import json, sys
from serve.__main__ import app
from store import UserError
for words in json.load(sys.stdin):
    try:
        app(words, standalone_mode=False)
        print("no error")
    except UserError as error:
        print(error)
    assert "torch" not in sys.modules, words
"""


@pytest.fixture
def refusals(tmp_path):
    """Run commands in a process of their own; returns what each says."""

    def refusals(*commands):
        words = json.dumps([[*map(str, command)] for command in commands])
        done = subprocess.run([sys.executable, "-c", RUN], input=words, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return refusals


def test_a_checkpoint_that_was_copied_in_part_is_refused(refusals, trained, media, tmp_path):
    """Each with the file at fault, by every command that loads one."""
    good = trained / "run" / "checkpoint"
    faults = {
        "avllm/projectors.safetensors": lambda path: path.unlink(),
        "avllm/config.json": lambda path: path.write_text('{"format": 1,'),
        "model.safetensors": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    }
    for number, (name, spoil) in enumerate(faults.items()):
        folder = tmp_path / f"checkpoint{number}"
        shutil.copytree(good, folder)
        spoil(folder / name)
        said = refusals(
            ("chat", "What?", "--checkpoint", folder, "--media", media / "red-loud.mp4"),
            ("heldout", folder, trained / "store", "talk"),
            ("evaluate", folder, trained / "store", "msvd-qa=talk"),
            ("api", "--checkpoint", folder),
        )
        assert len(said) == 4
        for line in said:
            assert line.startswith(str(folder / name))
            assert line.endswith("; copy the checkpoint again")


def test_a_medium_is_looked_at_before_a_checkpoint_is_loaded(refusals, trained, media, tmp_path):
    (tmp_path / "text.mp4").write_text("no film")
    (tmp_path / "notes.yaml").touch()
    (tmp_path / "folder").mkdir()
    chat = ["chat", "--checkpoint", trained / "run" / "checkpoint", "--media"]
    item = ["chat", "--checkpoint", trained / "run" / "checkpoint", "--store", trained / "store", "--key", "silent-mp4"]
    silent = media / "silent.mp4"
    assert refusals(
        [*chat, "text.mp4", "What?"],
        [*chat, "notes.yaml", "What?"],
        [*chat, "folder", "What?"],
        [*chat, silent, "What?", "--listen"],
        [*chat, silent, "What? <AUD>"],
        [*chat, silent, "What? <AUD>", "--watch"],
        [*chat, media / "low.wav", "What?", "--watch"],
        [*item, "What? <AUD>"],
        [*item, "What? <AUDIO>"],
    ) == [
        "text.mp4: not a usable video file: FFmpeg: Invalid data found when processing input",
        "notes.yaml: not a video, image or sound by its extension; accepted: .mp4, .jpg, .wav and others",
        "folder: is a folder; expected a video, an image or a sound file",
        f"{silent}: audio: no audio stream",
        f"{silent}: audio: no audio stream",
        "a token in the question asks by audio: add --listen, or give neither option",
        f"{media / 'low.wav'}: visual: no video stream",
        "silent-mp4: audio: no audio stream",
        "<AUDIO> is no modality token; did you mean <AUD>?",
    ]


def test_stores_outputs_and_servers_are_looked_for_first(refusals, trained, tmp_path, unused_url):
    checkpoint, store = trained / "run" / "checkpoint", trained / "store"
    (tmp_path / "questions.jsonl").write_text('{"key": "red-loud-mp4", "question": "What?"}\n')
    (tmp_path / "file").touch()
    answer = ["answer", "--in", "questions.jsonl", "--checkpoint", checkpoint, "--store"]
    api = ["api", "--checkpoint", checkpoint, "--port", 0]
    for line, part in zip(
        refusals(
            [*answer, store, "--out", "file/answers.jsonl"],
            [*answer, store, "--out", "."],
            [*answer, checkpoint, "--out", "a.jsonl"],
            [*answer, store, "--out", "a.jsonl", "--vllm", unused_url],
            ["heldout", checkpoint, store, "tlak"],
            ["heldout", store, checkpoint, "talk"],
            ["evaluate", store, checkpoint, "msvd-qa=talk"],
            ["evaluate", checkpoint, checkpoint, "msvd-qa=talk"],
            ["evaluate", checkpoint, store, "msvd-qa=talk", "--out", "file"],
            [*api, "--store", "mine=nostore"],
            [*api, "cache=file"],
            [*api, f"cache={tmp_path / 'cache'}", "--vllm", unused_url],
        ),
        [
            "--out file/answers.jsonl: file is a file, not a folder",
            "--out .: is a folder; name a file",
            f"{checkpoint}: is a checkpoint, not a store",
            "no vLLM server answers",
            "there are no conversations 'tlak'; it has: talk",
            f"{store}: is a store, not a checkpoint; the order is CHECKPOINT STORE",
            f"{store}: is a store, not a checkpoint; the order is CHECKPOINT STORE",
            f"{checkpoint}: is a checkpoint, not a store; the order is CHECKPOINT STORE",
            "--out file: is a file; name a folder",
            "nostore: no store is there",
            "field 'cache': file: is a file; name a folder",
            "no vLLM server answers",
        ],
        strict=True,
    ):
        assert part in line


@pytest.fixture
def unused_url(canary):
    """A URL at which nobody listens any more."""
    port = canary.getsockname()[1]
    canary.close()
    return f"http://127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("token", "meant"),
    [
        ("<aud_vis>", "<AUD_VIS>"),
        ("<AV>", "<AUD_VIS>"),
        ("<AUDIO_VIS>", "<AUD_VIS>"),
        ("<AUDVIS>", "<AUD_VIS>"),
        ("<Video>", "<VIS>"),
        ("<AUDI>", "<AUD>"),
    ],
)
def test_a_token_that_is_almost_ours_is_refused(token, meant):
    """As text it would go to the model, which would see and hear nothing."""
    with pytest.raises(UserError, match=f"{token} is no modality token; did you mean {meant}"):
        check_tokens(f"What is there? {token}")


@pytest.mark.parametrize("text", ["<VIS>\nWhat?", "<b>What</b>?", "a < b > c", "<VIDEO>x</VIDEO>", "<br> <DIV> <a>?"])
def test_other_tags_are_text(text):
    check_tokens(text)
