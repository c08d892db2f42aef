"""Look at some items of a store of any size: tables are scanned or mapped, and what is found is bounded."""

import json
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import JsonValue

from store.column import Column
from store.conversation import Conversation
from store.corpus import Corpus
from store.errors import DamagedError
from store.items import MediaItem, items_in
from store.mapped import MappedConversations
from store.shard import shard_name
from store.sidecar import TEXT, ArrayEntry, Failure, Item
from store.storage import Storage


@dataclass(frozen=True)
class ItemPage:
    """Some items, in corpus order.

    Attributes:
        items: the items.
        next: the row from which more can be found; None at the end.
    """

    items: list[MediaItem]
    next: int | None


def find_items(storage: Storage, search: str = "", start: int = 0, limit: int = 50) -> ItemPage:
    """At most `limit` items from row `start` on whose keys contain `search`, in upper or lower case.

    Raises:
        UserError: there is no plan, or it cannot be read.
    """
    found: list[MediaItem] = []
    for first, batch in _rows(storage, start):
        matches = pc.match_substring(batch["key"], search, ignore_case=True) if search else None
        places = np.arange(len(batch)) if matches is None else np.flatnonzero(matches.to_numpy(zero_copy_only=False))
        wanted = places[: limit - len(found)]
        found += items_in(batch.take(pa.array(wanted)))
        if len(wanted) < len(places):
            return ItemPage(found, first + int(places[len(wanted)]))
    return ItemPage(found, None)


def items_of(storage: Storage, keys: Collection[str]) -> dict[str, MediaItem]:
    """The items of some keys, by key; keys that the plan lacks are left out. Raises as `find_items`."""
    found: dict[str, MediaItem] = {}
    wanted = pa.array(list(keys), pa.string())
    for _, batch in _rows(storage, 0):
        found |= {item.key: item for item in items_in(batch.filter(pc.is_in(batch["key"], wanted)))}
        if len(found) == len(wanted):
            break
    return found


def count_items(storage: Storage) -> int:
    """The number of items in the plan. Raises as `find_items`."""
    return len(Corpus.load(storage))


def conversations_about(storage: Storage, name: str, key: str, limit: int = 20) -> list[Conversation]:
    """At most `limit` conversations of the file `name` about an item. Raises as `MappedConversations`."""
    talks = MappedConversations(storage, name)
    return talks.take(np.flatnonzero(talks.find([key]) == 0)[:limit])


@dataclass(frozen=True)
class Record:
    """What a column has about an item, but the numbers.

    Attributes:
        arrays: where each array lies, with its shape and dtype, by feature name.
        texts: nested lists of strings, by feature name.
        facts: stored with the arrays, such as the times of frames.
    """

    arrays: dict[str, ArrayEntry]
    texts: dict[str, Any]
    facts: dict[str, JsonValue]


def record_of(column: Column, item: MediaItem) -> Record | Failure | None:
    """The record of an item in a column, or why it failed; None if its shard is not published.

    Raises:
        DamagedError: the sidecar or the record is damaged.
    """
    if not column.storage.exists(column.path(shard_name(item.shard, "json"))):
        return None
    sidecar = column.sidecar(item.shard)
    for failure in sidecar.failed:
        if failure.key == item.key:
            return failure
    with column.blamed(item.shard):
        for entry in sidecar.items:
            if entry.key == item.key:
                return Record(entry.arrays, _texts(column, item.shard, entry), _facts(column, item.shard, entry))
        raise DamagedError(f"{column.storage.where(column.path(shard_name(item.shard, 'json')))}: lacks {item.key}")


def _rows(storage: Storage, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows of the plan from `start` on, in batches, each with the number of its first row."""
    row = 0
    for batch in Corpus.load(storage).items.batches():
        skipped = min(max(0, start - row), len(batch))
        yield row + skipped, batch.slice(skipped)
        row += len(batch)


def _texts(column: Column, shard: int, item: Item) -> dict[str, Any]:
    return {
        name: column.read_array(shard, f"{item.key}.{name}", entry).tolist()
        for name, entry in item.arrays.items()
        if entry.dtype == TEXT
    }


def _facts(column: Column, shard: int, item: Item) -> dict[str, JsonValue]:
    """The facts of an item, which follow its last array in the tar."""
    tar = column.path(shard_name(shard, "tar"))
    end = max(entry.offset + entry.nbytes for entry in item.arrays.values())
    start = -(-end // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    data = start + tarfile.BLOCKSIZE
    try:
        header = tarfile.TarInfo.frombuf(column.storage.read(tar, start, data), "utf-8", "strict")
        if header.name != f"{item.key}.json":
            raise ValueError(header.name)
        facts: dict[str, JsonValue] = json.loads(column.storage.read(tar, data, data + header.size))
    except (tarfile.HeaderError, ValueError) as error:
        raise DamagedError(f"{column.storage.where(tar)}: the facts of {item.key} cannot be read: {error}") from None
    return facts
