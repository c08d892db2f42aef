"""The house stands as DESIGN draws it."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

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
    wrong = python("avllm", "evaluate")
    assert wrong.returncode == 2
    assert "No such command 'evaluate'" in wrong.stderr


def test_the_store_needs_no_torch():
    """Planning, listing and verifying run where no torch is installed, and start at once."""
    modules = "store.__main__, featurize.__main__, curate.__main__"
    code = f"import sys, {modules}; sys.exit(bool({{'torch', 'ray'}} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO, check=False).returncode == 0
