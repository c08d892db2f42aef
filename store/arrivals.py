"""Candidates on their way into a plan: which are new, their keys, and what the others say of planned files."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from store.errors import UserError
from store.hashes import HashIndex, find, hash_keys
from store.items import Items, Kind, Part, hash_parts, rows_of, written_uri

KEY_LENGTH = 80  # characters; so `<key>.spatial.t32.npy` fits the 100 characters of a USTAR header
UNKNOWN = -1  # bytes


@dataclass(frozen=True, slots=True)
class Candidate:
    """A media file or part from a source, before it is given a key and a shard.

    Attributes:
        name: the key is derived from it; the other attributes are as in `MediaItem`.
    """

    name: str
    uri: str
    kind: Kind
    bytes: int | None = None
    start: float | None = None
    end: float | None = None
    fps: float | None = None

    @property
    def part(self) -> Part:
        """The candidate's source."""
        return Part(self.uri, self.start, self.end)


class Known:
    """The rows of all items by their keys and by their sources."""

    def __init__(self, items: Items) -> None:
        self.keys, self.parts = HashIndex(), HashIndex()
        keys, parts = [], []
        for batch in items.batches():
            keys.append(hash_keys(batch.column("key")))
            parts.append(hash_parts(*(batch.column(name).to_pylist() for name in ("uri", "start", "end"))))
        if keys:
            self.keys.add(np.concatenate(keys), np.arange(len(items)))
            self.parts.add(np.concatenate(parts), np.arange(len(items)))

    def has_key(self, key: str) -> bool:
        """Whether an item has this key."""
        return bool(self.keys.find(hash_keys(pa.array([key])))[0] >= 0)


class Arrivals:
    """Candidates for a plan.

    Attributes:
        count: how many of those that were taken are new.

    Args:
        items: of the plan.
        known: their keys and sources, to which those of new ones are added.
    """

    def __init__(self, items: Items, known: Known) -> None:
        self.count = 0
        self._items, self._known = items, known
        self._new: list[dict[str, pa.Array]] = []
        self._fps: dict[int, float] = {}  # by row
        self._sizes: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []  # of planned files, by hash of the URI

    def take(self, candidates: Sequence[Candidate]) -> None:
        """Take the next candidates.

        Raises:
            UserError: a folder of stills was planned with other frames per second.
        """
        uris = [written_uri(candidate.uri) for candidate in candidates]
        parts = hash_parts(uris, [c.start for c in candidates], [c.end for c in candidates])
        rows = self._known.parts.find(parts).tolist()
        keys = [make_key(candidate.name) for candidate in candidates]
        taken = (self._known.keys.find(hash_keys(pa.array(keys, pa.string()))) >= 0).tolist()
        following, brought = len(self._items) + self.count, dict[bytes, int]()
        new, new_keys, planned = list[int](), dict[str, None](), list[int]()
        for number, (candidate, part) in enumerate(zip(candidates, map(bytes, parts), strict=True)):
            row = brought.get(part, -1) if rows[number] < 0 else rows[number]
            if row >= 0:
                planned.append(number)
            else:
                row = brought[part] = following + len(new)
                new.append(number)
                new_keys[self._key(candidate, keys[number], taken[number], new_keys)] = None
            self._check_fps(candidate, row)
        self._plan([candidates[n] for n in new], [uris[n] for n in new], list(new_keys), parts[new])
        sizes = [UNKNOWN if (size := candidates[n].bytes) is None else size for n in planned]
        self._sizes.append((hash_keys(pa.array([uris[n] for n in planned], pa.string())), np.array(sizes, np.int64)))

    def updated(self) -> Items:
        """The items that were planned, with the sizes and frames per second that candidates gave."""
        if not any(len(sizes) for _, sizes in self._sizes):
            return self._items
        hashes, sizes = (np.concatenate(arrays) for arrays in zip(*self._sizes, strict=True))
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: what was said last of a file is the last of its rows
        last = order[np.append((np.diff(hashes[order].view(np.int64), axis=0) != 0).any(1), True)]
        return self._items.replaced(lambda first, batch: self._update(first, batch, hashes[last], sizes[last]))

    def new(self, shard: int, size: int) -> Items:
        """The new items, in shards of `size` items from `shard` on."""
        return Items.of_batches(self._numbered(shard, size))

    def _key(self, candidate: Candidate, key: str, taken: bool, others: dict[str, None]) -> str:
        salt = candidate.uri
        while taken or key in others:
            key = make_key(candidate.name, salt)
            salt += "+"
            taken = self._known.has_key(key)
        return key

    def _check_fps(self, candidate: Candidate, row: int) -> None:
        if not candidate.fps:
            return
        planned = self._items[row].fps if row < len(self._items) else None
        fps = self._fps.setdefault(row, planned or candidate.fps)
        if fps != candidate.fps:
            raise UserError(f"{candidate.uri}: was planned with {fps:g} frames a second")

    def _plan(self, new: Sequence[Candidate], uris: list[str], keys: list[str], parts: NDArray[np.uint64]) -> None:
        rows = np.arange(len(new)) + len(self._items) + self.count
        self._known.parts.add(parts, rows)
        self._known.keys.add(hash_keys(pa.array(keys, pa.string())), rows)
        self._new.append(
            {
                "key": pa.array(keys, pa.string()),
                "uri": pa.array(uris, pa.string()),
                "kind": pa.array([c.kind for c in new], pa.string()),
                "bytes": pa.array([c.bytes for c in new], pa.int64()),
                "start": pa.array([c.start for c in new], pa.float64()),
                "end": pa.array([c.end for c in new], pa.float64()),
                "fps": pa.array([c.fps for c in new], pa.float64()),
            }
        )
        self.count += len(new)

    def _numbered(self, shard: int, size: int) -> Iterator[pa.RecordBatch]:
        first = 0
        for columns in self._new:
            numbers = np.arange(first, first := first + len(columns["key"]))
            yield rows_of({**columns, "shard": shard + numbers // size, "position": numbers % size})

    def _update(
        self, first: int, batch: pa.RecordBatch, hashes: NDArray[np.uint64], sizes: NDArray[np.int64]
    ) -> pa.RecordBatch:
        """Rows from row `first` on, with new sizes by the hash of the URI, and frames per second."""
        places = find(hashes, hash_keys(batch.column("uri")))
        before = batch.column("bytes").fill_null(UNKNOWN).to_numpy()
        after = np.where(places < 0, before, sizes[places])
        fps = {row - first: self._fps[row] for row in range(first, first + len(batch)) if row in self._fps}
        if not fps and (after == before).all():
            return batch
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        columns["bytes"] = pa.array(after, mask=after == UNKNOWN)
        columns["fps"] = pa.array([fps.get(n, old) for n, old in enumerate(columns["fps"].to_pylist())], pa.float64())
        return rows_of(columns)


def make_key(name: str, salt: str | None = None) -> str:
    """Derive a key from a file's relative path or id: letters, digits, `_` and `-`, at most 80 characters.

    With a `salt`, or if the name is too long, eight digits of a hash keep the key unique.
    """
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")
    if salt is not None or not slug or len(slug) > KEY_LENGTH:
        tail = hashlib.sha256(f"{name}\n{salt or ''}".encode(errors="backslashreplace")).hexdigest()[:8]
        slug = f"{slug[: KEY_LENGTH - 9]}-{tail}".lstrip("-")
    return slug
