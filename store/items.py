"""Media items, kept as rows of Arrow: millions of them take little memory, and become objects when they are used."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice, pairwise
from operator import eq
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, overload
from urllib.parse import quote, unquote_to_bytes

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from store.errors import UserError
from store.hashes import hash_keys
from store.storage import Storage

Kind = Literal["video", "image", "audio"]
BYTES = "bytes:"  # URI prefix for a file name that is not UTF-8; the name's bytes follow, percent-encoded
ROWS = 4096  # of a record batch
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("shard", pa.int32()),
        ("position", pa.int32()),
        ("bytes", pa.int64()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("fps", pa.float64()),
    ]
)
CORPUS = "corpus.parquet"  # the file of the plan
ADDED = 3  # number of last columns that plans of earlier versions lack
T = TypeVar("T")


def check_is_store(storage: Storage) -> None:
    """Refuse a place where no store is.

    Raises:
        UserError: there is no plan; says what is there.
    """
    if storage.exists(CORPUS):
        return
    path = Path(storage.root)
    if storage.local and path.is_file():
        raise UserError(f"{storage.url}: is a file; expected the folder of a store, or an fsspec URL")
    if storage.local and (path / "avllm" / "config.json").is_file():
        raise UserError(f"{storage.url}: is a checkpoint; expected the folder of a store")
    raise UserError(f"{storage.url}: no store is there: no {CORPUS}; avllm featurize plan makes one")


class Part(NamedTuple):
    """The source of an item: a file (or folder of stills) from `start` to `end` seconds; None means unbounded."""

    uri: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class MediaItem:
    """A media file of the corpus, or a part of one.

    Attributes:
        key: unique in the corpus; letters, digits, `_` and `-` only.
        uri: path or fsspec URL of the file, or of a folder of stills that are the frames of a film.
        kind: what the file is treated as.
        shard: number of the item's shard.
        position: the item's position in the shard.
        bytes: the file's size at planning time, or None if it was unknown.
        start: start of the part in seconds; None means the start of the file.
        end: end of the part in seconds; None means the end of the file.
        fps: frames per second of a folder of stills, or None if unknown.
    """

    key: str
    uri: str
    kind: Kind
    shard: int
    position: int
    bytes: int | None
    start: float | None = None
    end: float | None = None
    fps: float | None = None

    @property
    def part(self) -> Part:
        """The item's source; unique in the corpus."""
        return Part(self.uri, self.start, self.end)

    @property
    def is_part(self) -> bool:
        """Whether the item is only a part of a file."""
        return self.start is not None or self.end is not None


class Items(Sequence[MediaItem]):
    """Items in record batches of `SCHEMA`; a batch is read when one of its items is used.

    Args:
        batches: the number of rows of each batch, and a function that returns it.
    """

    def __init__(self, batches: Iterable[tuple[int, Callable[[], pa.RecordBatch]]] = ()) -> None:
        self._batches = [(rows, batch) for rows, batch in batches if rows]
        self._firsts = [0, *accumulate(rows for rows, _ in self._batches)]

    @classmethod
    def of_batches(cls, batches: Iterable[pa.RecordBatch]) -> "Items":
        """Items in record batches that are in memory."""
        return cls((len(batch), _returning(batch)) for batch in batches)

    @classmethod
    def of(cls, items: Iterable[MediaItem]) -> "Items":
        """Items that are given as objects."""
        return cls.of_batches(map(_rows_of, batched(items, ROWS)))

    def __add__(self, others: "Items") -> "Items":
        return Items([*self._batches, *others._batches])

    def __len__(self) -> int:
        return self._firsts[-1]

    @overload
    def __getitem__(self, place: int) -> MediaItem: ...
    @overload
    def __getitem__(self, place: slice) -> list[MediaItem]: ...
    def __getitem__(self, place: int | slice) -> MediaItem | list[MediaItem]:
        places = range(len(self))[place]
        if isinstance(places, int):
            return self._take(places, places + 1)[0]
        return self._take(places.start, places.stop) if places.step == 1 else [self[each] for each in places]

    def __iter__(self) -> Iterator[MediaItem]:
        return chain.from_iterable(map(items_in, self.batches()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def values(self, name: str, rows: NDArray[np.int64]) -> list[Any]:
        """The values of a column at N rows, int64 [N]; None at row -1."""
        order = np.argsort(rows, kind="stable")
        ends = np.searchsorted(rows[order], self._firsts)
        values: list[Any] = [None] * len(rows)
        for number in np.flatnonzero(np.diff(ends)).tolist():
            chosen = order[ends[number] : ends[number + 1]]
            taken = self._batches[number][1]().column(name).take(pa.array(rows[chosen] - self._firsts[number]))
            for place, value in zip(chosen.tolist(), taken.to_pylist(), strict=True):
                values[place] = value
        return values

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, some thousands at a time."""
        return (batch() for _, batch in self._batches)

    def where(self, test: Callable[[pa.RecordBatch], pa.Array]) -> "Items":
        """The items whose rows pass a test, which gives a bool for each."""
        return Items.of_batches(batch.filter(test(batch)) for batch in self.batches())

    def replaced(self, change: Callable[[int, pa.RecordBatch], pa.RecordBatch]) -> "Items":
        """The same items with some columns changed.

        Args:
            change: from the number of a batch's first row, and the batch, to the new one, or the same if all stays.
        """
        changed = []
        for first, (rows, batch) in zip(self._firsts, self._batches, strict=False):
            new = change(first, old := batch())
            changed.append((rows, batch if new is old else _returning(new)))
        return Items(changed)

    def _take(self, first: int, end: int) -> list[MediaItem]:
        taken: list[MediaItem] = []
        number = bisect_right(self._firsts, first) - 1
        while first < end:
            base, stop = self._firsts[number], min(end, self._firsts[number + 1])
            taken += items_in(self._batches[number][1]().slice(first - base, stop - first))
            first, number = stop, number + 1
        return taken


def _returning(batch: pa.RecordBatch) -> Callable[[], pa.RecordBatch]:
    return lambda: batch


class Shards(Mapping[int, list[MediaItem]]):
    """The items of each shard, in order; they become objects when a shard is asked for."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._places: dict[int, tuple[int, int]] = {}
        first = 0
        for batch in items.batches():
            numbers = batch.column("shard").to_numpy()
            bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
            for begin, end in pairwise(bounds):
                shard = int(numbers[begin])
                known = self._places.get(shard, (first + begin, 0))
                self._places[shard] = (known[0], first + end)
            first += len(numbers)

    def __getitem__(self, shard: int) -> list[MediaItem]:
        first, end = self._places[shard]
        return self._items[first:end]

    def __contains__(self, shard: object) -> bool:
        return shard in self._places

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def size(self, shard: int) -> int:
        """The number of items of a shard."""
        first, end = self._places[shard]
        return end - first


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values, the last one of what is left."""
    coming = iter(values)
    return iter(lambda: list(islice(coming, size)), [])


def items_in(rows: pa.RecordBatch) -> list[MediaItem]:
    """The items in rows of `SCHEMA`."""
    columns = {name: rows.column(name).to_pylist() for name in SCHEMA.names}
    return list(map(MediaItem, columns.pop("key"), map(read_uri, columns.pop("uri")), *columns.values()))


def _rows_of(items: Sequence[MediaItem]) -> pa.RecordBatch:
    columns = {name: [getattr(item, name) for item in items] for name in SCHEMA.names}
    return rows_of({**columns, "uri": list(map(written_uri, columns["uri"]))})


def rows_of(columns: Mapping[str, Any]) -> pa.RecordBatch:
    """Rows of `SCHEMA`, from a list or an array for each column."""
    return pa.record_batch([_array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values, kind)


def whole(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows, with nulls in the columns that plans of earlier versions lack."""
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    return rows_of({name: columns.get(name, pa.nulls(len(rows))) for name in SCHEMA.names})


def hash_parts(uris: Sequence[str], starts: Sequence[float | None], ends: Sequence[float | None]) -> NDArray[np.uint64]:
    """Hashes of N sources of items, uint64 [N, 2]; equal for equal ones. URIs are as `written_uri` gives them."""
    texts = [
        uri if start is None and end is None else f"{uri}\n{_number(start)}\n{_number(end)}"
        for uri, start, end in zip(uris, starts, ends, strict=True)
    ]
    return hash_keys(pa.array(texts, pa.string()))


def _number(seconds: float | None) -> str:
    return "" if seconds is None else repr(float(seconds) + 0.0)  # the same for 0, 0.0 and -0.0


def written_uri(uri: str) -> str:
    """The URI as valid UTF-8: Python keeps other bytes of a file name as surrogates, which cannot be encoded.

    Raises:
        UserError: no file has this name.
    """
    try:
        uri.encode()
    except UnicodeEncodeError:
        return BYTES + quote(_bytes(uri))
    return uri


def _bytes(uri: str) -> bytes:
    try:
        return uri.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise UserError(f"{uri!a}: no file has this name: it holds half a character (a lone surrogate)") from None


def read_uri(uri: str) -> str:
    """The URI of a written one."""
    return unquote_to_bytes(uri.removeprefix(BYTES)).decode(errors="surrogateescape") if uri.startswith(BYTES) else uri
