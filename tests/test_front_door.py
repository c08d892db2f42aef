"""The commands of the front door, and the pages that are made from the code."""

import re
from pathlib import Path

import pytest
import typer
import yaml

from avllm import __version__, doctor
from avllm.__main__ import app
from avllm.configs import shipped_files
from avllm.init import Machine, _stage, write
from avllm.reference import pages
from store import UserError, load_settings
from store.console import console
from trainer.settings import TrainConfig

REFERENCE = Path(__file__).parent.parent / "docs" / "reference"


def test_the_reference_is_that_of_the_code():
    """A field or an option that changed is on its page, or this fails: `python -m avllm reference docs/reference`."""
    made = pages(typer.main.get_command(app))
    for name, text in made.items():
        assert (REFERENCE / name).read_text() == text, f"docs/reference/{name}"
    silent = [line for line in made["settings.md"].splitlines() if re.fullmatch(r"\| `.*\|  \|", line)]
    assert silent == []  # every field says what it means


def test_init_writes_files_that_need_no_overrides(feature_store, tiny_llm, python, tmp_path):
    """Stage 1 of the files is trained as it is; stage 2's dry run finds the model of stage 1's file."""
    asked = ("--store", feature_store, "--conversations", "mixed", "--model", tiny_llm, "--gpus", "0")
    done = python("avllm", "init", tmp_path / "mine", *asked)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("  avllm trainer")]
    assert len(lines) == 2
    for words in lines:
        done = python(*words[1:], "--dry-run")
        assert done.returncode == 0, done.stderr
    again = python("avllm", "init", tmp_path / "mine", *asked)
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: {tmp_path}/mine/stage1.yaml exists")


def test_init_without_columns_takes_the_encoders_of_a_configuration(tmp_path):
    write(tmp_path / "gpus", str(tmp_path / "store"), "train", "lmsys/vicuna-7b-v1.5", 8, 80)
    assert (tmp_path / "gpus" / "featurize.yaml").read_text() == shipped_files()["featurize/paper"].read_text()
    stage = load_settings(TrainConfig, tmp_path / "gpus" / "stage2.yaml")
    assert (stage.visual, stage.audio, stage.frames, stage.segments) == ("clip-vit-l-14", "clap-htsat-tiny", 32, 4)
    paper = load_settings(TrainConfig, "paper-stage2")
    moved = {"model", "output", "sources"}
    assert stage.model_dump(exclude=moved) == paper.model_dump(exclude=moved)
    with pytest.raises(UserError, match="--model: give it; there is no terminal to ask at"):
        write(tmp_path / "x", str(tmp_path / "store"), "train", None, 8, 80)


@pytest.mark.parametrize(
    ("machine", "size", "expected"),
    [
        (Machine(8, 80, 500), 6.75, {"zero": {"stage": 3}}),
        (Machine(1, 80, 500), 6.75, {"zero": {"stage": 3, "offload": True}}),
        (Machine(1, 48, 64), 6.75, {"zero": None, "lora": {"rank": 128, "alpha": 256}}),
        (Machine(2, 24, 64), 6.75, {"zero": {"stage": 2}, "lora": {"rank": 128, "alpha": 256}}),
        (Machine(1, 24, 64), 0.135, {"zero": None, "lr": 2e-4}),
        (Machine(0, 0, 64), 0.135, {"zero": None, "gradient_checkpointing": False}),
    ],
)
def test_stage_2_fits_the_machine(machine, size, expected):
    """As docs/recipes.md measures it: 16 bytes a trained weight over the GPUs, 30 on a host that offloads."""
    fields = _stage(2, machine, size, None)
    assert {name: fields[name] for name in expected} == expected
    assert ("lora" in fields) == ("lora" in expected)


@pytest.mark.parametrize(
    ("machine", "zero", "batch_tokens"),
    [
        (Machine(8, 80, 500), {"stage": 2}, 8192),
        (Machine(2, 20, 64), {"stage": 3}, 8192),
        (Machine(1, 80, 500), None, 8192),
        (Machine(1, 20, 64), None, 2048),
    ],
)
def test_stage_1_fits_the_machine(machine, zero, batch_tokens):
    """One GPU alone has smaller passes: ZeRO shares nothing out there (`trainer train paper-stage1 --dry-run`)."""
    fields = _stage(1, machine, 6.75, None)
    assert (fields["zero"], fields["batch_tokens"]) == (zero, batch_tokens)


@pytest.mark.parametrize(
    ("count", "gpus", "batch"),
    [(None, 8, 128), (10_000, 8, 128), (1000, 8, 32), (3, 8, 8), (3, 6, 6), (None, 6, 126), (None, 200, 200)],
)
def test_small_data_gets_small_batches(count, gpus, batch):
    """An epoch has 20 steps where it can, and ranks divide the batch."""
    assert _stage(2, Machine(gpus, 80, 500), 6.75, count)["global_batch"] == batch


def test_shipped_configurations_are_listed_and_printed(python):
    done = python("avllm", "configs")
    assert "avllm trainer train paper-stage2" in done.stdout
    done = python("avllm", "configs", "trainer/paper-stage2")
    assert yaml.safe_load(done.stdout)["stage"] == 2
    done = python("avllm", "configs", "trainer/paper-stage3")
    assert done.returncode == 2
    assert "did you mean 'trainer/paper-stage2'?" in done.stderr


@pytest.mark.parametrize("model", ["./vicuna", "/models/vicuna", "models/llms/vicuna"])
def test_init_takes_no_folder_that_is_not_there(python, tmp_path, feature_store, model):
    """Training would say so, after the files were read and copied elsewhere."""
    words = ("--store", feature_store, "--conversations", "mixed", "--gpus", "0", "--model", model)
    done = python("avllm", "init", tmp_path / "new", *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --model {model}: no such folder")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--conversations", "mixt"), "--conversations mixt: the store has mixed; did you mean 'mixed'?"),
        (("--model", "."), "--model .: has no config.json; expected a folder in Hugging Face form"),
        (("--model", "build/llm"), "--model build/llm: no such folder; expected one in Hugging Face form, "),
    ],
)
def test_init_takes_only_what_is_there(python, tmp_path, feature_store, tiny_llm, words, line):
    asked = ("--store", feature_store, "--conversations", "mixed", "--model", tiny_llm, "--gpus", "0")
    done = python("avllm", "init", tmp_path / "new", *asked, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {line}")
    assert not (tmp_path / "new").exists()


def test_the_doctor_names_what_stands_in_the_way(monkeypatch, tmp_path, feature_store):
    """A missing package, store or model comes with its remedy; a sound machine passes."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(console, "width", 300)
    assert doctor.examine(None, str(feature_store))
    found = {finding.what: finding for finding in doctor.findings(None, str(tmp_path / "none"))}
    assert found["model hub"].found == "127.0.0.1 does not answer"
    assert found["store"].blocks
    assert "avllm featurize plan" in found["store"].remedy
    assert not doctor.examine("paper-stage1", None)
    with pytest.raises(UserError, match="avllm configs lists"):
        list(doctor.findings("nothing", None))
    with pytest.raises(UserError, match=r"^paper: give PACKAGE/NAME: featurize/paper or curate/paper or ablate/paper$"):
        list(doctor.findings("paper", None))
    assert "weights" in {finding.what for finding in doctor.findings("featurize/paper", None)}
    (tmp_path / "broken.yaml").write_text("stage: 1\nmodel: [a\nlr: 1\n")
    with pytest.raises(UserError, match=r"broken\.yaml: not YAML: line 3: expected"):
        list(doctor.findings(str(tmp_path / "broken.yaml"), None))
    monkeypatch.setattr(doctor, "LOW_DISK_GB", 1e9)
    found = {finding.what: finding for finding in doctor.findings(None, None)}
    assert found["disk of cache"].remedy.startswith("free space, or set AVLLM_CACHE to a folder on another disk: ")
    assert found["avllm"].found.startswith(f"{__version__}, Python ")
    monkeypatch.setattr(doctor, "_is_installed", lambda name: name != "peft")
    lacking = next(f for f in doctor.findings(None, None) if f.what.startswith("extra train"))
    assert (lacking.found, lacking.remedy) == ("lacks peft", "pip install 'avllm[train]'")
