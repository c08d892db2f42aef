"""The check of everything that a GPU runs is whole: in tiny shapes, on a CPU, every part runs."""

import json
from pathlib import Path

from benchmarks.gpu.check import PARTS

REPO = Path(__file__).parent.parent
HIDE = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_spec(cls, name, path=None, target=None):
    return None if name.split(".")[0] == {name!r} else find(name, path, target)

PathFinder.find_spec = classmethod(find_spec)
"""


def check(python, folder, *words, **env):
    done = python(
        "benchmarks.gpu", "--tiny", "--patience", 8, "--out", folder, *words, timeout=1200, env=env, fresh=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((folder / "gpu.json").read_text())
    return {part["part"]: part for part in found["parts"]}, done.stdout


def test_every_part_runs_in_tiny_shapes_and_tells_no_speed(python, tmp_path):
    """A GPU is there for minutes, without a network: what is broken in the check must be found here."""
    parts, said = check(python, tmp_path)
    assert parts.keys() == {part.name for part in PARTS}
    assert {part["status"] for part in parts.values()} == {"ran"}
    assert all(part["rows"] for part in parts.values())
    told = [
        row["value"] for part in parts.values() for row in part["rows"] if "/s" in row["what"] or "GB" in row["what"]
    ]
    assert told
    assert set(told) == {"ran"}
    for part in PARTS:
        assert f"### {part.name}: ran\n\n| what | measured | asked |" in said


def test_parts_whose_packages_are_missing_are_left_out(python, tmp_path):
    """On a machine with the trainer's packages alone, the trainer's parts are measured all the same."""
    for hidden, ran in (("av", {"attention"}), ("pydantic", set())):
        folder = tmp_path / hidden
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(HIDE.format(name=hidden))
        words = ["--only", "attention", "--only", "images", "--only", "answering"]
        parts, said = check(python, folder, *words, PYTHONPATH=str(folder))
        assert {name for name, part in parts.items() if part["status"] == "ran"} == ran
        for name in parts.keys() - ran:
            assert f"### {name}: left out ({hidden} cannot be imported: No module named {hidden!r})" in said


SPAWN = """
import multiprocessing, sys
from pathlib import Path
from benchmarks.gpu.check import check

get_context = multiprocessing.get_context
multiprocessing.get_context = lambda _: get_context("spawn")
if __name__ == "__main__":
    sys.exit(check(True, Path(sys.argv[1]), ["attention"], 8))
"""


def test_parts_run_in_processes_that_are_spawned_as_on_a_gpu(python, tmp_path):
    """CUDA does not survive a fork: there every process is spawned, and imports and unpickles what it runs."""
    (tmp_path / "spawn.py").write_text(SPAWN)
    done = python("spawn", tmp_path, env={"PYTHONPATH": f"{tmp_path}:{REPO}"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 parts ran, 0 left out" in done.stdout


def test_an_unknown_part_is_named(python, tmp_path):
    done = python("benchmarks.gpu", "--only", "stage9", "--out", tmp_path, fresh=True)
    assert done.returncode == 2
    assert "stage9" in done.stderr
