"""Encode damaged shards again, and nothing else."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from featurize.settings import RunSettings
from store import Column, Corpus, DamagedError, Storage, UserError, parse_settings
from store.console import console
from store.settings import override
from store.verify import column_folders, find_damaged, open_folder


def repair(store: str, name: str | None, overrides: Sequence[str], dry_run: bool = False) -> bool:
    """Find a store's damaged shards and encode them again; return whether all columns are sound afterwards.

    Args:
        store: path or fsspec URL.
        name: of one column; None repairs all.
        overrides: arguments for `featurize run`, such as `gpus=1`.
        dry_run: only find and print them.

    Raises:
        UserError: an override names no field of `RunSettings`, or a damaged column cannot be encoded again here.
    """
    check_overrides(overrides)
    storage = Storage(store)
    corpus = Corpus.load(storage)
    sound = True
    for folder in column_folders(storage, name):
        try:
            column = open_folder(storage, folder)
        except DamagedError as error:
            console.print(f"damaged: {error}", markup=False)
            sound = False
            continue
        damaged = find_damaged(column, corpus)
        would = " would be encoded again" if dry_run else ""
        console.print(f"{column.name}: {len(damaged)} damaged shards{would}")
        if damaged and dry_run:
            check_can_encode(column)
            sound = False
        elif damaged:
            unsound = repair_shards(column, corpus, damaged, overrides)
            console.print(f"{column.name}: {'not all' if unsound else 'all'} shards are sound now")
            sound = sound and not unsound
    return sound


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse overrides that a repair cannot use.

    Raises:
        UserError: an override names no field of `RunSettings`, or its value is not accepted.
    """
    data: dict[str, Any] = {}
    for word in overrides:
        override(data, word)
    parse_settings(RunSettings, data, "repair")


def check_can_encode(column: Column) -> None:
    """Refuse a column whose shards cannot be encoded again here.

    Raises:
        UserError: the column was imported, or does not say how it was built.
    """
    if "imported" in column.build:
        raise UserError(
            f"{column.name}: was imported; its damaged shards cannot be encoded again here: import it again"
        )
    if not column.build:
        raise UserError(f"{column.name}: its column.json does not say how it was built; encode it again by hand")


def repair_shards(column: Column, corpus: Corpus, shards: Sequence[int], overrides: Sequence[str]) -> list[int]:
    """Withdraw shards, encode the planned ones again with the column's own settings, and return those still not sound.

    Encoding is `avllm featurize run` in a subprocess; `overrides` are its arguments, such as `gpus=1`.

    Raises:
        UserError: the column was imported or does not say how it was built, or another process writes to the store.
    """
    check_can_encode(column)
    with column.storage.lock():
        for shard in shards:
            column.withdraw(shard)
    planned = [shard for shard in shards if shard in corpus.shards]
    if not planned:  # without --shard, a run encodes every missing shard
        return []
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "column.yaml"
        config.write_text(yaml.safe_dump({"columns": [column.build]}))
        command = [sys.executable, "-m", "featurize", "run", "--store", column.storage.url, "--config", str(config)]
        subprocess.run([*command, *(f"--shard={shard}" for shard in planned), *overrides], check=False)
    stored = set(column.shards())
    missing = [shard for shard in planned if shard not in stored]
    for shard in missing:
        console.print(f"damaged: {column.name} shard {shard}: was not encoded again", markup=False)
    return missing + find_damaged(column, corpus, [shard for shard in planned if shard in stored])
