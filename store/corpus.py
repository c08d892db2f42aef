"""The corpus plan: an ordered list of media items, cut once into fixed shards of consecutive items."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa

from store.errors import UserError
from store.storage import Storage
from store.table import collector_paused, load_table, save_table

Kind = Literal["video", "image", "audio"]
NAME = "corpus.parquet"
BYTES = "bytes:"  # begins the URI of a file whose name is not UTF-8: its bytes follow, percent-escaped
SMALLEST_SHARD, LARGEST_SHARD = 4, 256  # items
SHARDS = 32  # that a plan has at least, unless they would be smaller than the smallest
KEY_LENGTH = 80  # characters; a tar member `<key>.spatial.t32.npy` then fits the 100 of a USTAR header
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
ADDED = 3  # columns that plans of earlier versions lack


class Part(NamedTuple):
    """What an item is of: a file (or a folder of stills) from `start` to `end` seconds, None where it is whole."""

    uri: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, slots=True)
class MediaItem:
    """One media file of a corpus, or a part of one.

    Attributes:
        key: unique in the corpus; letters, digits, `_` and `-` only.
        uri: path or fsspec URL of the file, or of a folder of stills that are the frames of a film.
        kind: what the file is taken for.
        shard: number of the shard that holds it.
        position: its place in that shard.
        bytes: the file's size when it was planned, or None if it could not be seen.
        start: where the part begins, in seconds; None at the file's beginning.
        end: where it ends, in seconds; None at the file's end.
        fps: frames a second of a folder of stills, None where it is not known.
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
        """What it is of: no two items of a corpus are of the same."""
        return Part(self.uri, self.start, self.end)

    @property
    def is_part(self) -> bool:
        """Whether it has bounds."""
        return self.start is not None or self.end is not None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A media file or part that a source names, before it has a key and a place: `name` is what its key is made from.

    The other attributes are those of a `MediaItem`.
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
        """What it is of."""
        return Part(self.uri, self.start, self.end)


class Corpus:
    """The items of a store, in order."""

    def __init__(self, items: Iterable[MediaItem] = ()) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def shards(self) -> dict[int, list[MediaItem]]:
        """The items of each shard, in order."""
        shards: dict[int, list[MediaItem]] = {}
        for item in self.items:
            shards.setdefault(item.shard, []).append(item)
        return shards

    @property
    def key_of_part(self) -> dict[Part, str]:
        """The key of each item by what it is of."""
        return {item.part: item.key for item in self.items}

    @property
    def stripped(self) -> bool:
        """Whether some media are named without their folder, as `store push --strip-uris` leaves them."""
        return any("://" not in item.uri and not item.uri.startswith("/") for item in self.items)

    def append(self, candidates: Iterable[Candidate], shard_size: int | None = None) -> int:
        """Add the files and parts that are new in fresh shards; return how many were new.

        Args:
            candidates: files and parts, known ones among them.
            shard_size: items in a shard; by default as `even_shard_size` says.

        A shard that exists is never added to: columns may already hold it. Of a file that is known, only the size is
        taken anew, and the frames a second where they were not known.

        Raises:
            UserError: a folder of stills has other frames a second than it was planned with.
        """
        parts = {item.part: item.fps for item in self.items}
        keys = {item.key for item in self.items}
        new: list[tuple[Candidate, str]] = []
        seen: dict[str, int | None] = {}
        for candidate in candidates:
            if candidate.part in parts:
                seen[candidate.uri] = candidate.bytes
                if candidate.fps and candidate.fps != (parts[candidate.part] or candidate.fps):
                    raise UserError(f"{candidate.uri}: was planned with {parts[candidate.part]:g} frames a second")
                parts[candidate.part] = candidate.fps or parts[candidate.part]
                continue
            key = make_key(candidate.name)
            salt = candidate.uri
            while key in keys:
                key = make_key(candidate.name, salt)
                salt += "+"
            parts[candidate.part] = candidate.fps
            keys.add(key)
            new.append((candidate, key))
        if seen:
            self.items = [
                replace(item, bytes=seen[item.uri], fps=parts[item.part]) if item.uri in seen else item
                for item in self.items
            ]
        first = self.items[-1].shard + 1 if self.items else 0
        size = shard_size or even_shard_size(len(new))
        for number, (candidate, key) in enumerate(new):
            self.items.append(_item(candidate, key, first + number // size, number % size))
        return len(new)

    def save(self, storage: Storage) -> None:
        """Write the plan."""
        columns = {name: [getattr(item, name) for item in self.items] for name in SCHEMA.names}
        columns["uri"] = list(map(_written, columns["uri"]))
        save_table(storage, NAME, columns, SCHEMA)

    @classmethod
    def load(cls, storage: Storage) -> "Corpus":
        """Read the plan.

        Raises:
            UserError: the store has none, or it is damaged.
        """
        if not storage.exists(NAME):
            raise UserError(f"{storage.url}: no store is there: no {NAME}; python -m featurize plan makes one")
        table = load_table(storage, NAME, SCHEMA, ADDED)
        with collector_paused():
            columns = {name: table[name].to_pylist() for name in SCHEMA.names}
            columns["uri"] = list(map(_read, columns["uri"]))
            return cls(map(MediaItem, *columns.values()))


def even_shard_size(items: int) -> int:
    """A size of shards that gives work to many workers where items are few, and few files where they are many.

    A power of two, as batches are: the last batch of a shard is filled up to its size.
    """
    size = LARGEST_SHARD
    while size > SMALLEST_SHARD and items < SHARDS * size:
        size //= 2
    return max(1, min(size, -(-items // 2)))


def _item(candidate: Candidate, key: str, shard: int, position: int) -> MediaItem:
    c = candidate
    return MediaItem(key, c.uri, c.kind, shard, position, c.bytes, c.start, c.end, c.fps)


def _written(uri: str) -> str:
    """The URI as text: Python holds the bytes of a name that is not UTF-8 as surrogates, which no text file can."""
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


def _read(uri: str) -> str:
    return unquote_to_bytes(uri.removeprefix(BYTES)).decode(errors="surrogateescape") if uri.startswith(BYTES) else uri


def make_key(name: str, salt: str | None = None) -> str:
    """A key from a file's relative path or id: only letters, digits, `_`, `-`, at most 80 characters.

    With a `salt`, or where the name is too long, eight digits of a hash keep it unique.
    """
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")
    if salt is not None or not slug or len(slug) > KEY_LENGTH:
        tail = hashlib.sha256(f"{name}\n{salt or ''}".encode(errors="backslashreplace")).hexdigest()[:8]
        slug = f"{slug[: KEY_LENGTH - 9]}-{tail}".lstrip("-")
    return slug
