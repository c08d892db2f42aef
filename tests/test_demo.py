"""`make demo` in small: the same commands on fewer clips, with a tiny LLM and a few steps."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

import demo.__main__
from demo import corpus

COUNTS = {"AV_TRAIN": 16, "SILENT_TRAIN": 4, "STILLS_TRAIN": 6, "SOUNDS_TRAIN": 6}
DIGESTS = """
import json, sys
from pathlib import Path
from demo import corpus

for name, count in json.loads(sys.argv[2]).items():
    setattr(corpus, name, count)
corpus.SIGHTS, corpus.SOUNDS = corpus.SIGHTS[:2], corpus.SOUNDS[:2]
corpus.make_corpus(Path(sys.argv[1]))
"""


@pytest.fixture
def few(monkeypatch):
    for name, count in COUNTS.items():
        assert getattr(corpus, name) > count
        monkeypatch.setattr(corpus, name, count)
    monkeypatch.setattr(corpus, "SIGHTS", corpus.SIGHTS[:2])
    monkeypatch.setattr(corpus, "SOUNDS", corpus.SOUNDS[:2])


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*.*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_demo_goes_the_whole_way_and_goes_on(few, python, tiny_llm, tmp_path, monkeypatch, capsys):
    """Corpus, features, both stages, answers, report; and the same command again trains nothing."""
    started = []

    def run(words, check):
        started.append(words[2:4])
        more = ["steps=4"] if words[2] == "trainer" else []
        done = python(*words[2:], *more)
        print(done.stdout, done.stderr)
        return subprocess.CompletedProcess(words, done.returncode)

    monkeypatch.setattr(demo.__main__.subprocess, "run", run)
    demo.__main__.demo(tmp_path / "runs", tiny_llm, False)
    assert started == [["featurize", "plan"], ["featurize", "run"], ["trainer", "train"], ["trainer", "train"]]
    said = capsys.readouterr().out
    held_out = json.loads((tmp_path / "runs" / "corpus" / "heldout.json").read_text())
    report = (tmp_path / "runs" / "report.md").read_text()
    for kind in ("sight", "sound", "both"):
        assert f"| {kind} |" in report
    assert len(held_out) > 10
    assert "seeded random weights" in said
    assert (tmp_path / "runs" / "report.png").stat().st_size > 1000
    notebook = json.loads((Path(__file__).parents[1] / "docs" / "demo.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    exec("\n".join(cells).replace("../runs/demo", str(tmp_path / "runs")), {})
    assert capsys.readouterr().out.count("audio_visual: ") == 2
    started.clear()
    demo.__main__.demo(tmp_path / "runs", tiny_llm, False)
    assert started == [["featurize", "plan"], ["featurize", "run"]]
    assert "0 shards to encode" in capsys.readouterr().out


def test_the_corpus_is_the_same_in_every_process(few, python, tmp_path):
    """So that a demo's figures can be compared with another machine's."""
    corpus.make_corpus(tmp_path / "here")
    (tmp_path / "make.py").write_text(DIGESTS)
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parent.parent}"}
    done = python("make", tmp_path / "there", json.dumps(COUNTS), env=env)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "here") == digests(tmp_path / "there")
    assert len(digests(tmp_path / "here")) > 32
