"""Conversations read from a map (`store.maps`): all processes of a machine share them.

Rows become objects when they are used.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from store.conversation import FOLDER, MODALITIES, SCHEMA, Conversation, Modality, conversations_in
from store.facts import AUDIO, BOTH, VISUAL, Facts, facts_of
from store.hashes import find, hash_keys
from store.maps import Map, open_map, write_arrays, write_rows
from store.storage import Storage
from store.table import opened_table, seal_of

ROWS = 4096  # of a record batch in the map
READ_AT_ONCE = 16 * ROWS


class MappedConversations:
    """The conversations of a store's `conversations/<name>.parquet`, mapped (`store.maps`).

    Attributes:
        seal: the checksum in the file, which names its content.
        facts: of all conversations.
        maps: sizes in bytes of what is mapped, by path.

    Raises:
        UserError: the store has no conversations of that name, or the cache cannot be written.
        DamagedError: the conversations are damaged.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        file = f"{FOLDER}/{name}.parquet"
        where = storage.where(file)
        self.seal = seal_of(storage, file)
        self._map = open_map(f"{self.seal}.talk", lambda path: _write_rows(storage, file, path))
        facts = open_map(f"{self.seal}.facts", lambda path: _write_facts(self._map, path, where))
        self.facts, self.maps = Facts(facts), dict((self._map.size, facts.size))

    def __len__(self) -> int:
        return len(self.facts.bits)

    def __iter__(self) -> Iterator[Conversation]:
        for first in range(0, len(self), ROWS):
            yield from self.take(range(first, min(first + ROWS, len(self))))

    def find(self, keys: Sequence[str | None]) -> NDArray[np.int64]:
        """Which of these keys each conversation's item has, int64 [N]; -1 for another one."""
        hashes = hash_keys(pa.array(keys, pa.string()))
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))
        places = find(hashes[order], self.facts.key)
        return np.where(places < 0, -1, order[places] if len(order) else -1)

    def take(self, numbers: Sequence[int] | NDArray[np.int32]) -> list[Conversation]:
        """The conversations of these numbers.

        Raises:
            DamagedError: the map was damaged.
        """
        places = np.asarray(numbers, np.int64)
        taken: dict[int, Conversation] = {}
        for batch in np.unique(places // ROWS).tolist():
            chosen = np.unique(places[places // ROWS == batch])
            rows = self._map.batch(batch).take(pa.array(chosen % ROWS))
            taken |= zip(chosen.tolist(), conversations_in(rows), strict=True)
        return [taken[place] for place in places.tolist()]


def count_modalities(storage: Storage, name: str) -> Counter[Modality]:
    """How many conversations perceive what, by their turns together. Raises as `MappedConversations`."""
    bits = MappedConversations(storage, name).facts.bits
    sees, hears = (bits & (one | BOTH) > 0 for one in (VISUAL, AUDIO))
    counts = np.bincount(sees + 2 * hears, minlength=len(MODALITIES))
    return Counter(dict(zip(MODALITIES, counts.tolist(), strict=True)))


def _write_rows(storage: Storage, file: str, path: Path) -> None:
    with opened_table(storage, file, SCHEMA) as table:
        write_rows(path, SCHEMA, table.iter_batches(READ_AT_ONCE, use_threads=False), ROWS)


def _write_facts(rows: Map, path: Path, where: str) -> None:
    parts = [facts_of(batch, where) for batch in rows]
    write_arrays(path, {name: pa.array(np.concatenate([part[name] for part in parts])) for name in parts[0]})
