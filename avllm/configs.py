"""The configurations that are shipped, by package and name."""

import itertools
from pathlib import Path

from ablate.settings import AblateConfig
from curate.curation import CurationSettings
from featurize.settings import FeaturizeConfig
from store import Settings, UserError
from store.console import console, make_table
from store.settings import guess, shipped
from trainer.settings import TrainConfig

TAKEN_BY: dict[str, type[Settings]] = {
    "featurize run --config": FeaturizeConfig,
    "curate run --config": CurationSettings,
    "trainer train": TrainConfig,
    "ablate": AblateConfig,
}


def shipped_files() -> dict[str, Path]:
    """All of them, as `package/name`."""
    return {
        f"{command.split()[0]}/{name}": path
        for command, model in TAKEN_BY.items()
        for name, path in shipped(model).items()
    }


def list_shipped() -> None:
    """Print a table of them, each with the command that takes it and the first sentence of its comment."""
    table = make_table("command", "what it is")
    for command, model in TAKEN_BY.items():
        for name, path in shipped(model).items():
            comment = itertools.takewhile(lambda line: line.startswith("# "), path.read_text().splitlines())
            sentence, dot, _ = " ".join(line[2:].strip() for line in comment).partition(". ")
            table.add_row(f"avllm {command} {name}", sentence + dot.strip())
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
