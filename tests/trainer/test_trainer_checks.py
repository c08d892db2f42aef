"""What is wrong with a run is told before torch is imported, which takes seconds."""

import json
import os
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[2]
MISTAKES = {
    "steps=0": "field 'steps': expected greater than 0",
    "stepz=3": "unknown field 'stepz'",
    "visual=clip-huge": "clip-huge",
    "visual=clap-tiny": "field 'visual': column clap-tiny.",
    "frames=3": "was not featurized with 3 frames, but with ",
    "segments=5": "was not featurized with 5 segments, but with ",
    'sources=[{"store": "/none", "conversations": "mixed"}]': "/none",
    "sources.0.conversations=mixt": "there are no conversations 'mixt'; it has: mixed",
    "model=./none": "field 'model': ./none: no such folder here",
    "evaluation.sources.0.conversations=asked": "there are no conversations 'asked'",
    "output=done": "field 'output': done holds a checkpoint",
}
SAY_ALL = """
import json, sys
from typer.testing import CliRunner
from trainer.__main__ import app
for words in json.loads(sys.argv[1]):
    print(repr(CliRunner().invoke(app, ["train", *words]).exception))
print("torch" in sys.modules)
"""


@pytest.fixture
def said(python, tiny_run, tmp_path):
    """What `trainer train` says of each mistake."""
    (tmp_path / "say_all.py").write_text(SAY_ALL)
    (tmp_path / "done" / "checkpoint").mkdir(parents=True)
    held_out = {"sources": tiny_run["sources"], "every": 3}
    (tmp_path / "train.yaml").write_text(
        yaml.safe_dump(tiny_run | {"stage": 1, "steps": 3, "output": "out", "evaluation": held_out})
    )
    path = f"{tmp_path}{os.pathsep}{REPO}"

    def said(*more):
        words = [["train.yaml", mistake, *more] for mistake in MISTAKES]
        done = python("say_all", json.dumps(words), cwd=tmp_path, env={"PYTHONPATH": path})
        assert done.returncode == 0, done.stderr
        *lines, has_torch = done.stdout.splitlines()
        assert has_torch == "False"
        return dict(zip(MISTAKES, lines, strict=True))

    return said


def test_mistakes_are_told_before_torch_is_imported(said):
    for mistake, line in said().items():
        assert line.startswith("UserError"), (mistake, line)
        assert MISTAKES[mistake] in line.replace("\\'", "'"), mistake


def test_a_dry_run_tells_them_as_soon(said, monkeypatch):
    monkeypatch.delitem(MISTAKES, "output=done")  # a dry run writes nothing
    for mistake, line in said("--dry-run").items():
        assert MISTAKES[mistake] in line.replace("\\'", "'"), mistake
