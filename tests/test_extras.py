"""Every command whose extra is missing says so in one line, and what needs none runs without any."""

import configparser
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from avllm import PACKAGES

REPO = Path(__file__).parent.parent
HIDING = """
import os, sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in os.environ["HIDDEN"].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""
OPTIONAL = (
    *("av", "PIL", "laion_clap", "open_clip", "ray", "huggingface_hub", "safetensors", "torch", "torchvision"),
    *("transformers", "tokenizers", "deepspeed", "matplotlib", "peft", "google", "psutil", "sentencepiece"),
    *("tensorboard", "trackio", "wandb", "flash_attn", "h5py", "zarr", "s3fs"),
    *("starlette", "uvicorn", "prometheus_client", "aiohttp", "certifi"),
)


@pytest.fixture
def without(python, tmp_path):
    """Run a command where packages cannot be imported."""
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDING)

    def run(hidden, *words):
        path = os.pathsep.join([str(REPO), str(tmp_path / "hide"), *filter(None, [os.environ.get("PYTHONPATH")])])
        return python(*words, env={"HIDDEN": ",".join(hidden), "PYTHONPATH": path})

    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, media, feature_store, tiny_llm, python):
    """Media, a plan of them, an annotation file, and the configurations of runs."""
    folder = tmp_path_factory.mktemp("corpus")
    said = [{"from": "human", "value": "What? <video>"}, {"from": "gpt", "value": "red"}]
    (folder / "talk.json").write_text(json.dumps([{"id": "1", "video": "silent.mp4", "conversations": said}]))
    column = {"encoder": "clip:ViT-S-32/random", "layer": 1, "frames": [2]}
    (folder / "featurize.yaml").write_text(yaml.safe_dump({"columns": [column], "workers": 1}))
    stage = {
        **{"stage": 2, "steps": 1, "global_batch": 2, "lr": 1e-3, "precision": "float32", "frames": 4, "segments": 2},
        **{"model": str(tiny_llm), "visual": "clip-tiny", "audio": "clap-tiny", "output": str(folder / "run")},
        "sources": [{"store": str(feature_store), "conversations": "mixed"}],
    }
    for name, more in {"plain": {}, "lora": {"lora": {"rank": 2}}}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(stage | more))
    (folder / "asked" / "avllm").mkdir(parents=True)
    info = {"frames": 4, "segments": 2, "columns": {}, "builds": {}, "prompt": {}, "stage": 1, "steps": 1}
    (folder / "asked" / "avllm" / "config.json").write_text(json.dumps(info))
    planned = python("featurize", "plan", media, "--store", folder / "store")
    assert planned.returncode == 0, planned.stderr
    return folder


COMMANDS = {
    "train": ("torch", "trainer train {}/plain.yaml", "train"),
    "train, log": ("tensorboard", "trainer train {}/plain.yaml", "train"),
    "train, adapters": ("peft", "trainer train {}/lora.yaml", "train"),
    "dry run": ("transformers", "trainer train {}/plain.yaml --dry-run", "train"),
    "export": ("torch", "trainer export {}/run {}/x", "train"),
    "chat": ("torch", "serve chat --checkpoint {}/asked --media {}/talk.json what", "serve"),
    "chat, media": ("av", "serve chat --checkpoint {}/asked --media {}/talk.json what", "serve"),
    "api": ("uvicorn", "serve api --checkpoint {}/asked --port 0", "serve"),
    "probe": ("av", "featurize plan {}/talk.json {media} --media-root {media} --store {}/new --probe", "featurize"),
    "run": ("torch", "featurize run --store {}/store --config {}/featurize.yaml", "featurize"),
    "run, cluster": ("ray", "featurize run --store {}/store --config {}/featurize.yaml", "featurize"),
    "estimate": ("torch", "featurize estimate --store {}/store --config {}/featurize.yaml", "featurize"),
    "push": ("huggingface_hub", "store push {}/store hf://x/y", "featurize"),
    "export columns": ("zarr", "store export zarr {features} {}/zarr", "export"),
    "remote": ("s3fs", "store ls s3://bucket/store", "s3"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_missing_extra_is_one_line(without, corpus, media, feature_store, name, monkeypatch):
    """A traceback through five packages does not say what to install."""
    hidden, command, extra = COMMANDS[name]
    if hidden == "ray":  # which is for clusters alone
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for place, folder in {"{media}": media, "{features}": feature_store, "{}": corpus}.items():
        command = command.replace(place, str(folder))
    done = without([hidden], *command.split())
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr
    assert last.startswith("error: ")
    assert last.endswith(f"pip install 'avllm[{extra}]'")
    assert "Traceback" not in done.stderr


def test_planning_and_looking_need_no_extra(without, corpus, media):
    for words in (
        ("featurize", "plan", corpus / "talk.json", media, "--media-root", media, "--store", corpus / "other"),
        ("featurize", "leaks", "--help"),
        ("store", "ls", corpus / "store"),
        ("trainer", "--help"),
        ("serve", "--help"),
        ("avllm", "--help"),
    ):
        done = without(OPTIONAL, *words)
        assert done.returncode == 0, done.stderr


def test_the_extras_that_are_named_exist():
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg")
    assert {extra for _, _, extra in COMMANDS.values()} <= setup["options.extras_require"].keys()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel in an empty environment with what the base needs and no extra; runs its console script elsewhere."""
    folder = tmp_path_factory.mktemp("wheel")
    uv = [sys.executable, "-m", "uv", "--quiet"]
    subprocess.run([*uv, "build", "--wheel", "--out-dir", folder / "dist", REPO], check=True)
    subprocess.run([*uv, "venv", "--python", sys.executable, folder / "venv"], check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    listed = subprocess.run(["git", "ls-files", *PACKAGES], cwd=REPO, capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) <= set(zipfile.ZipFile(wheel).namelist())  # configurations and pages too
    subprocess.run([*uv, "pip", "install", "--python", folder / "venv" / "bin" / "python", wheel], check=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words):
        command = [folder / "venv" / "bin" / "avllm", *words]
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)

    return run


def test_an_installed_wheel_plans_and_looks_after_a_store(installed, corpus, media, tmp_path):
    """Configurations, tasks and static files are in the wheel, and base commands need nothing else."""
    store = tmp_path / "store"
    for words in (
        ("featurize", "plan", corpus / "talk.json", media, "--media-root", media, "--store", store),
        ("store", "ls", store),
        ("store", "verify", store),
        ("configs", "featurize/paper"),
        ("init", tmp_path / "mine", "--store", store, "--model", "a/llm-7b", "--gpus", "8", "--memory", "80"),
        ("serve", "tasks"),
        ("doctor",),
    ):
        done = installed(*words)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    train = ("trainer", "train", tmp_path / "mine" / "stage1.yaml")
    for words, said in (
        (train, "avllm featurize run makes them\n"),
        ((*train, "--dry-run", "--conversations", "1000"), "pip install 'avllm[train]'\n"),
    ):
        done = installed(*words)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert done.stderr.endswith(said)
