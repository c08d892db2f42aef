"""Write a column's sidecars anew that are of format 1, which has a record for each item."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from store.column import FETCHED_AT_ONCE, Column
from store.errors import DamagedError
from store.sealed import seal_json
from store.shard import shard_name
from store.sidecar import TEXT, ArrayEntry, Sidecar, parse_sidecar, save_sidecar


def upgrade(column: Column, write: bool = True) -> Iterator[bool]:
    """Upgrade a column's sidecars, several at once; whether each was of format 1, in order.

    A sidecar is written only if the old file's bytes can be made of it again. A kill leaves every sidecar in one format
    or the other, and both are read.

    Args:
        column: of a store that no other command writes to.
        write: else they are only read.

    Raises:
        DamagedError: a sidecar is damaged, or more stands in it than format 2 holds; it is left as it is.
    """
    with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
        yield from pool.map(lambda shard: _upgraded(column, shard, write), column.shards())


def _upgraded(column: Column, shard: int, write: bool) -> bool:
    name = column.path(shard_name(shard, "json"))
    where, data = column.storage.where(name), column.storage.read(name)
    with column.blamed(shard):
        sidecar = parse_sidecar(data, where)
        if data == seal_json(sidecar.dump()):
            return False
        if data != seal_json(_in_format_1(sidecar)):
            raise DamagedError(f"{where}: holds more than format 2 does; it is left as it is")
    if write:
        save_sidecar(column.storage, name, sidecar)
    return True


def _in_format_1(sidecar: Sidecar) -> dict[str, Any]:
    content = {name: value for name, value in sidecar.dump().items() if name not in ("keys", "arrays")}
    items = [
        {"key": item.key, "arrays": {name: _record(entry) for name, entry in item.arrays.items()}}
        for item in sidecar.items
    ]
    return content | {"format": 1, "items": items}


def _record(entry: ArrayEntry) -> dict[str, Any]:
    record = {"offset": entry.offset, "shape": list(entry.shape), "dtype": entry.dtype, "xxh3": f"{entry.xxh3:016x}"}
    return record | ({"size": entry.nbytes} if entry.dtype == TEXT else {})
