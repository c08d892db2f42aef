"""Check a store: count what it holds, and verify its files against their checksums and the corpus plan."""

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import xxhash

from store.column import FOLDER, Column, open_column
from store.console import Meter, console
from store.conversation import FOLDER as CONVERSATIONS
from store.conversation import SCHEMA as TALK_SCHEMA
from store.corpus import Corpus
from store.errors import DamagedError
from store.items import ADDED, CORPUS, SCHEMA
from store.shard import shard_name
from store.sidecar import Failure, Sidecar
from store.storage import LOCK, Storage
from store.table import opened_table

BLOCK_BYTES = 8 << 20
CHECKED_AT_ONCE = 8
CURATIONS = "curations"  # what curate keeps
COLUMN = re.compile(r"[a-z0-9][a-z0-9_-]*\.[0-9a-f]{6}")
KNOWN = {
    "": re.compile("|".join(map(re.escape, (CORPUS, CONVERSATIONS, CURATIONS, FOLDER, LOCK, "README.md")))),
    CONVERSATIONS: re.compile(r".+\.parquet"),
    FOLDER: COLUMN,
}
# Any other file in a column's folder is not ours.
IN_COLUMN = re.compile(r"column\.json|\d{6,}\.(tar|json)|index-[0-9a-f]{32}\.arrow")


@dataclass
class ColumnStats:
    """How much of the corpus a column holds.

    Attributes:
        shards: number of published shards.
        planned: number of shards in the corpus plan.
        usable: number of items that can be read.
        bytes: total size of the tars.
        failures: records of the unusable items in the published shards.
    """

    shards: int
    planned: int
    usable: int = 0
    bytes: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def by_code(self) -> Counter[str]:
        """The number of failures per code."""
        return Counter(failure.code for failure in self.failures)


def column_stats(column: Column, corpus: Corpus, damaged: list[DamagedError] | None = None) -> ColumnStats:
    """Count a column's shards, items, failures and bytes; only its sidecars are read.

    Args:
        damaged: if given, collects the errors of damaged sidecars, which are not counted; else the first one is raised.

    Raises:
        DamagedError: a sidecar is damaged, and `damaged` is not given.
    """
    stats = ColumnStats(0, len(corpus.shards))
    for _, sidecar in column.sidecars(damaged):
        stats.shards += 1
        stats.usable += len(sidecar.keys)
        stats.bytes += sidecar.tar_bytes
        stats.failures += sidecar.failed
    return stats


@dataclass(frozen=True)
class Checked:
    """A verified shard: the bytes read, and what is wrong with it (None if it is sound)."""

    shard: int
    bytes: int
    fault: str | None


def verify_tables(storage: Storage) -> Iterator[tuple[str, str]]:
    """The damaged tables (corpus plan and conversations), each with its fault and how to repair it."""
    try:
        _read_all(storage, CORPUS, SCHEMA, ADDED)
    except DamagedError as error:
        yield CORPUS, f"{error}; restore a copy, or plan the same sources in the same order into a new folder"
    for name in storage.names(CONVERSATIONS):
        try:
            _read_all(storage, f"{CONVERSATIONS}/{name}", TALK_SCHEMA)
        except DamagedError as error:
            yield f"{CONVERSATIONS}/{name}", f"{error}; avllm featurize plan writes it again from its source"


def _read_all(storage: Storage, name: str, schema: pa.Schema, added: int = 0) -> None:
    """Read a table to its end: the file itself, not a map that this machine made of it before."""
    with opened_table(storage, name, schema, added) as table:
        for _ in table.iter_batches(use_threads=False):
            pass


def unknown_files(storage: Storage) -> list[str]:
    """Files in the store's folders that do not belong to the store; nothing reads them."""
    columns = (f"{FOLDER}/{name}" for name in storage.names(FOLDER) if COLUMN.fullmatch(name))
    known = KNOWN | dict.fromkeys(columns, IN_COLUMN)
    files = ((folder, name) for folder in known for name in storage.names(folder) if not known[folder].fullmatch(name))
    return [f"{folder}/{name}".lstrip("/") for folder, name in files]


def verify_column(column: Column, corpus: Corpus, shards: Sequence[int] | None = None) -> Iterator[Checked]:
    """Verify all published shards, or those in `shards`; results come in order, several shards are read in parallel.

    A shard is sound if three things hold: its tar has the size and checksum in its sidecar; its arrays match the
    column's spec; its usable and failed items together are exactly the planned items, with the usable ones in corpus
    order.

    Raises:
        UserError: a file cannot be read, or its format is newer than this version supports.
    """
    planned = corpus.shards

    def check(shard: int) -> Checked:
        try:
            sidecar = column.sidecar(shard)
            check_plan(column, sidecar, [item.key for item in planned[shard]] if shard in planned else None)
            _check_tar(column, sidecar)
        except DamagedError as error:
            return Checked(shard, 0, str(error))
        return Checked(shard, sidecar.tar_bytes, None)

    with ThreadPoolExecutor(CHECKED_AT_ONCE) as pool:
        yield from pool.map(check, column.shards() if shards is None else shards)


def check_plan(column: Column, sidecar: Sidecar, planned: Sequence[str] | None) -> None:
    """Check a shard's items against the corpus plan, and their arrays against the column's spec.

    Args:
        planned: the keys of the shard's items in the plan; None if the plan has no such shard.

    Raises:
        DamagedError: they differ.
    """
    where = column.storage.where(column.path(shard_name(sidecar.shard, "json")))
    failed = {failure.key for failure in sidecar.failed}
    with column.blamed(sidecar.shard):
        if (
            planned is None
            or list(sidecar.keys) != [key for key in planned if key not in failed]
            or failed - set(planned)
        ):
            raise DamagedError(f"{where}: its items are not those of the corpus plan")
        if name := sidecar.misfit(column.spec.features):
            raise DamagedError(f"{where}: its arrays {name!r} do not fit the column's spec or the tar's size")


def _check_tar(column: Column, sidecar: Sidecar) -> None:
    tar = column.path(shard_name(sidecar.shard, "tar"))
    size = column.storage.size(tar)
    if size is None:
        raise DamagedError("the tar is missing")
    if size != sidecar.tar_bytes:
        raise DamagedError(f"the tar has {size} bytes, the sidecar says {sidecar.tar_bytes}")
    digest = xxhash.xxh3_128()
    for start in range(0, size, BLOCK_BYTES):
        digest.update(column.storage.read(tar, start, min(start + BLOCK_BYTES, size)))
    if digest.hexdigest() != sidecar.tar_xxh3:
        raise DamagedError("the tar differs from its checksum")


def column_folders(storage: Storage, name: str | None) -> list[str]:
    """The names of the column folders, including those whose `column.json` cannot be read; or only `name`."""
    return [name] if name else [n for n in storage.names(FOLDER) if storage.names(f"{FOLDER}/{n}")]


def open_folder(storage: Storage, name: str) -> Column:
    """Open a column by folder name.

    Raises:
        DamagedError: its `column.json` is damaged or missing; the message says how to repair it.
    """
    file = f"{FOLDER}/{name}/column.json"
    try:
        if storage.names(f"{FOLDER}/{name}") and not storage.exists(file):
            raise DamagedError(f"{storage.where(file)}: no such file")
        return open_column(storage, name)
    except DamagedError as error:
        remedy = "avllm featurize run with the column's settings writes it again and keeps the shards"
        raise DamagedError(f"{error}; remove it, if it is there: {remedy}") from None


def find_damaged(column: Column, corpus: Corpus, shards: Sequence[int] | None = None) -> list[int]:
    """Verify a column's shards (all by default); print each fault and return the numbers of the damaged shards."""
    damaged, bytes_read, started = [], 0, time.monotonic()
    with Meter(f"verify {column.name}", len(column.shards() if shards is None else shards), "shards") as meter:
        for checked in verify_column(column, corpus, shards):
            bytes_read += checked.bytes
            meter.advance(1, f"{bytes_read / 1e6 / (time.monotonic() - started):.0f} MB/s")
            if checked.fault:
                damaged.append(checked.shard)
                console.print(f"damaged: {column.name} shard {checked.shard}: {checked.fault}", markup=False)
    return damaged
