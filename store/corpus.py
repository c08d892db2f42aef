"""The corpus plan: an ordered list of media items, split once into fixed shards of consecutive items."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from store.arrivals import Arrivals, Candidate, Known
from store.hashes import hash_keys
from store.items import (
    ADDED,
    CORPUS,
    ROWS,
    SCHEMA,
    Items,
    Kind,
    MediaItem,
    Part,
    Shards,
    batched,
    check_is_store,
    hash_parts,
    whole,
    written_uri,
)
from store.maps import open_map, write_rows
from store.storage import Storage
from store.table import opened_table, save_batches, seal_of

SMALLEST_SHARD, LARGEST_SHARD = 4, 256  # items
SHARDS = 32  # minimum number of shards in a plan, unless they would fall below the smallest size
AT_ONCE = 16 * ROWS  # candidates looked up, and rows read or written


class Corpus:
    """The items of a store, in order: rows of Arrow, which become objects when they are used.

    Attributes:
        items: the items.
    """

    def __init__(self, items: Iterable[MediaItem] = ()) -> None:
        self.items = items if isinstance(items, Items) else Items.of(items)

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def shards(self) -> Shards:
        """The items of each shard, in order."""
        return Shards(self.items)

    @property
    def stripped(self) -> bool:
        """Whether some URIs are relative, as `store push --strip-uris` leaves them."""
        return any(
            pc.any(pc.invert(pc.or_(pc.match_substring(uris, "://"), pc.starts_with(uris, "/")))).as_py()
            for uris in (batch.column("uri") for batch in self.items.batches())
        )

    def keys_of(self, parts: Sequence[Part]) -> list[str | None]:
        """The key of the item of each source; None where there is none."""
        uris, starts, ends = zip(*parts, strict=True) if parts else ((), (), ())
        keys: list[str | None] = self.items.values(
            "key", self._known.parts.find(hash_parts(list(map(written_uri, uris)), starts, ends))
        )
        return keys

    def parts_of(self, keys: Sequence[str]) -> list[Part | None]:
        """The source of the item of each key; None where there is none."""
        rows = self._known.keys.find(hash_keys(pa.array(keys, pa.string())))
        return [None if row < 0 else self.items[row].part for row in rows.tolist()]

    @property
    def kinds(self) -> dict[Kind, int]:
        """How many items are of each kind, sorted by name."""
        counts = Counter(chain.from_iterable(batch.column("kind").to_pylist() for batch in self.items.batches()))
        return dict(sorted(counts.items()))

    @property
    def unseen(self) -> int:
        """How many items' files were not found when they were last planned."""
        return sum(batch.column("bytes").null_count for batch in self.items.batches())

    def extend(self, items: Iterable[MediaItem]) -> None:
        """Add items that have their keys and shards, in new shards."""
        self._put(self.items + Items.of(items))

    def append(self, candidates: Iterable[Candidate], shard_size: int | None = None) -> int:
        """Add new files and parts in new shards; return how many were new.

        Existing shards never grow, as columns may already hold them. For a file already in the plan, only its size is
        updated, and its frames per second if they were unknown.

        Args:
            candidates: files and parts, new or already in the plan.
            shard_size: items per shard; the default is `even_shard_size`.

        Raises:
            UserError: a folder of stills was planned with other frames per second.
        """
        known = self._known
        self._put(self.items)  # without what is known, until all candidates are
        arrivals = Arrivals(self.items, known)
        for chunk in batched(candidates, AT_ONCE):
            arrivals.take(chunk)
        first = self.items[-1].shard + 1 if len(self) else 0
        self._put(arrivals.updated() + arrivals.new(first, shard_size or even_shard_size(arrivals.count)))
        self._known = known
        return arrivals.count

    def save(self, storage: Storage) -> None:
        """Write the plan to a store."""
        tables = (pa.Table.from_batches(batches) for batches in batched(self.items.batches(), AT_ONCE // ROWS))
        save_batches(storage, CORPUS, chain.from_iterable(t.combine_chunks().to_batches() for t in tables), SCHEMA)

    @classmethod
    def load(cls, storage: Storage) -> "Corpus":
        """Open the plan of a store, of which this machine makes a map (`store.maps`).

        Raises:
            UserError: the store has no plan, or the cache cannot be written.
            DamagedError: the plan is damaged, and this machine has no map of it.
        """
        check_is_store(storage)
        rows = open_map(f"{seal_of(storage, CORPUS)}.plan", partial(_write_map, storage))
        lengths = [ROWS] * (len(rows) - 1) + [len(rows.batch(len(rows) - 1))] if len(rows) else []
        return cls(Items((length, partial(rows.batch, number)) for number, length in enumerate(lengths)))

    def _put(self, items: Items) -> None:
        self.items = items
        self.__dict__.pop("shards", None)
        self.__dict__.pop("_known", None)

    @cached_property
    def _known(self) -> Known:
        return Known(self.items)


def _write_map(storage: Storage, path: Path) -> None:
    with opened_table(storage, CORPUS, SCHEMA, ADDED) as table:
        batches = table.iter_batches(AT_ONCE, use_threads=False)
        write_rows(path, SCHEMA, map(whole, batches), ROWS)


def even_shard_size(items: int) -> int:
    """Items per shard: small shards for few items, to occupy many workers; large ones for many, to limit the files.

    Usually a power of two, like batch sizes, because the last batch of a shard is padded to full size.
    """
    size = LARGEST_SHARD
    while size > SMALLEST_SHARD and items < SHARDS * size:
        size //= 2
    return max(1, min(size, -(-items // 2)))
