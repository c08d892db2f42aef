"""The configurations that are shipped, by package and name."""

import importlib.util
from pathlib import Path

from store import UserError
from store.console import console, make_table
from store.settings import guess

TAKEN_BY = {
    "featurize": "featurize run --config",
    "curate": "curate run --config",
    "trainer": "trainer train",
    "ablate": "ablate",
}


def shipped_files() -> dict[str, Path]:
    """All of them, as `package/name`."""
    found: dict[str, Path] = {}
    for package in TAKEN_BY:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        found |= {f"{package}/{path.stem}": path for path in sorted(Path(spec.origin).parent.glob("configs/*.yaml"))}
    return found


def list_shipped() -> None:
    """Print a table of them, each with the command that takes it and its first line."""
    table = make_table("command", "what it is")
    for name, path in shipped_files().items():
        package, _, stem = name.partition("/")
        table.add_row(f"avllm {TAKEN_BY[package]} {stem}", path.read_text().splitlines()[0].lstrip("# "))
    console.print(table)
    console.print("avllm configs PACKAGE/NAME prints one, such as trainer/demo-stage1")


def print_shipped(name: str) -> None:
    """Print one as it is, for a file of one's own.

    Raises:
        UserError: there is none of that name.
    """
    files = shipped_files()
    if name not in files:
        raise UserError(f"{name}: no such configuration{guess(name, files)}; there are: {', '.join(files)}")
    print(files[name].read_text(), end="")
