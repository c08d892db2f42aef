"""The house stands as DESIGN draws it."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent
OURS = {"avllm", "store", "featurize", "curate", "trainer", "serve", "ablate"}


def test_no_other_distribution_owns_our_top_level_names():
    """Flat packages are found by name alone: a stranger's `store` would be imported in place of ours."""
    owners = importlib.metadata.packages_distributions()
    assert {name: set(owners.get(name, [])) - {"avllm"} for name in OURS} == {name: set() for name in OURS}
    # laion-clap puts its own folder on sys.path when imported; these names must stay free of ours
    assert not OURS & {"training", "evaluate", "clap_module"}


def test_every_command_of_the_console_script_answers(python):
    """`avllm X` is `python -m X`."""
    from avllm import PACKAGES

    assert set(PACKAGES) == OURS - {"avllm"}
    for name in ("--help", "--version", *PACKAGES):
        done = python("avllm", name, *([] if name.startswith("--") else ["--help"]), fresh=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
    wrong = python("avllm", "sing")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: avllm: no such command 'sing'; it has: featurize, store, curate, ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("trainr", "avllm: no such command 'trainr'; did you mean trainer; more: avllm --help"),
        ("trainer trai", "avllm trainer: no such command 'trai'; did you mean train; more: avllm trainer --help"),
        ("trainer train", "avllm trainer train: missing argument 'config' (A YAML file of TrainConfig, "),
        (
            "trainer train x --steps 3",
            "avllm trainer train: no such option: --steps; settings are given as KEY=VALUE",
        ),
        ("trainer train x --dry-rum", "avllm trainer train: no such option: --dry-rum; did you mean --dry-run; more: "),
        ("store verify --store x", "avllm store verify: no such option: --store; more: avllm store verify --help"),
        ("serve api --port ten", "avllm serve api: invalid value for '--port': expected a valid integer; more: "),
        ("featurize run --store", "option '--store' requires an argument"),
    ],
)
def test_words_that_a_command_does_not_take_are_one_line(python, words, line):
    done = python("avllm", *words.split())
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {line}")
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_the_store_needs_no_torch():
    """Planning, listing and verifying run where no torch is installed, and start at once."""
    modules = "store.__main__, featurize.__main__, curate.__main__"
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'ray'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0
