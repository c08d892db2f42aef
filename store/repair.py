"""Encode damaged shards again, and nothing else."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from store.column import Column
from store.corpus import Corpus
from store.errors import UserError
from store.settings import Settings, override, parse_settings
from store.verify import Checked, verify_column


class RunSettings(Settings):
    """What a run of `featurize` takes of the machines; none of it shapes the numbers of a column.

    Attributes:
        workers: processes, or actors of a Ray cluster; by default as many as the CPUs and GPUs admit.
        cpus: CPU cores of a worker: so many threads decode ahead of its encoders, and torch has as many.
        gpus: GPUs of a worker; a fraction shares one.
        max_failed: stop once more than this share of the items seen is unreadable (absent streams do not count).
    """

    workers: Annotated[int, Field(gt=0)] | None = None
    cpus: Annotated[int, Field(gt=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0.0
    max_failed: Annotated[float, Field(ge=0, le=1)] = 1.0


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse words that a repair cannot take.

    Raises:
        UserError: one names no field of `RunSettings`, or a value that is not accepted.
    """
    data: dict[str, Any] = {}
    for word in overrides:
        override(data, word)
    parse_settings(RunSettings, data, "--repair")


def repair_shards(column: Column, corpus: Corpus, shards: Sequence[int], overrides: Sequence[str]) -> list[Checked]:
    """Withdraw shards, encode those of the plan again with the column's own encoder settings, and check them.

    The encoding is `python -m featurize run` in a process of its own; `overrides` are words for it, such as `gpus=1`.

    Raises:
        UserError: the column was imported or does not say how it was built, or another process writes to the store.
    """
    if "imported" in column.build:
        raise UserError(
            f"{column.name}: was imported; its damaged shards cannot be encoded again here: import it again"
        )
    if not column.build:
        raise UserError(f"{column.name}: its column.json does not say how it was built; encode it again by hand")
    with column.storage.lock():
        for shard in shards:
            column.withdraw(shard)
    planned = [shard for shard in shards if shard in corpus.shards]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "column.yaml"
        config.write_text(yaml.safe_dump({"columns": [column.build]}))
        command = [sys.executable, "-m", "featurize", "run", "--store", column.storage.url, "--config", str(config)]
        subprocess.run([*command, *(f"--shard={shard}" for shard in planned), *overrides], check=False)
    there = set(column.shards())
    done = verify_column(column, corpus, [shard for shard in planned if shard in there])
    return [*done, *(Checked(shard, 0, "was not encoded again") for shard in planned if shard not in there)]
