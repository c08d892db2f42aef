"""The benchmark of featurizing compares like with like, and counts all that a command takes."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.featurizers.contenders import CASES, write_config
from benchmarks.featurizers.scripts import FRAMES, SCRIPTS, SEGMENTS, chosen
from featurize.grid import frame_indices
from featurize.settings import FeaturizeConfig
from store import load_settings

REPO = Path(__file__).parents[2]


@pytest.mark.parametrize("name", CASES)
def test_peers_do_what_featurize_run_is_set_to(name, tmp_path):
    """As many frames or segments, all blocks, and a script for each."""
    case = CASES[name]
    (column,) = load_settings(FeaturizeConfig, write_config(case, tmp_path)).columns
    if case.architecture.startswith("ViT"):
        assert (column.frames, column.layer) == ((FRAMES,), -1)
    else:
        assert column.segments == (SEGMENTS,)
    assert set(case.peers) <= set(SCRIPTS)
    assert column.dtype == "float32"


def test_peers_take_our_frames():
    for total in (1, 7, 8, 250, 301):
        assert chosen(total) == frame_indices(total, FRAMES).tolist()


def test_what_an_orphan_takes_is_counted(tmp_path):
    """`featurize run` may leave processes behind that end after it: their time is its own."""
    busy = "import time\nwhile time.process_time() < 0.5: pass"
    leaves = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {busy!r}])"
    code = (
        "import os, sys, pathlib; from benchmarks.featurizers.process import never, run_process\n"
        f"spent = run_process([sys.executable, '-c', {leaves!r}], pathlib.Path(sys.argv[1]), os.environ, never)\n"
        "print(spent.code, spent.cpu)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "log")]  # a process of its own: it waits for every child
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=True)
    status, cpu = done.stdout.split()
    assert status == "0"
    assert float(cpu) >= 0.5
