"""The corpus plan: an ordered list of media items, split once into fixed shards of consecutive items."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote_to_bytes

import pyarrow as pa

from store.errors import UserError
from store.storage import Storage
from store.table import collector_paused, load_table, save_table

Kind = Literal["video", "image", "audio"]
NAME = "corpus.parquet"
BYTES = "bytes:"  # URI prefix for a file name that is not UTF-8; the name's bytes follow, percent-encoded
SMALLEST_SHARD, LARGEST_SHARD = 4, 256  # items
SHARDS = 32  # minimum number of shards in a plan, unless they would fall below the smallest size
KEY_LENGTH = 80  # characters; so `<key>.spatial.t32.npy` fits the 100 characters of a USTAR header
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
ADDED = 3  # number of last columns that plans of earlier versions lack


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

    @classmethod
    def of_row(cls, row: dict[str, Any]) -> "MediaItem":
        """The item of a row of the plan; plans of earlier versions have fewer columns."""
        return cls(**{**row, "uri": _read(row["uri"])})


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
        """The key of each item, by its source."""
        return {item.part: item.key for item in self.items}

    @property
    def stripped(self) -> bool:
        """Whether some URIs are relative, as `store push --strip-uris` leaves them."""
        return any("://" not in item.uri and not item.uri.startswith("/") for item in self.items)

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
        parts = {item.part: item.fps for item in self.items}
        keys = {item.key for item in self.items}
        new: list[tuple[Candidate, str]] = []
        known_sizes: dict[str, int | None] = {}
        for candidate in candidates:
            if candidate.part in parts:
                known_sizes[candidate.uri] = candidate.bytes
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
        if known_sizes:
            self.items = [
                replace(item, bytes=known_sizes[item.uri], fps=parts[item.part]) if item.uri in known_sizes else item
                for item in self.items
            ]
        first = self.items[-1].shard + 1 if self.items else 0
        size = shard_size or even_shard_size(len(new))
        for number, (candidate, key) in enumerate(new):
            self.items.append(_item(candidate, key, first + number // size, number % size))
        return len(new)

    def save(self, storage: Storage) -> None:
        """Write the plan to a store."""
        columns = {name: [getattr(item, name) for item in self.items] for name in SCHEMA.names}
        columns["uri"] = list(map(_written, columns["uri"]))
        save_table(storage, NAME, columns, SCHEMA)

    @classmethod
    def load(cls, storage: Storage) -> "Corpus":
        """Read the plan of a store.

        Raises:
            UserError: the store has no plan, or the plan is damaged.
        """
        if not storage.exists(NAME):
            raise UserError(f"{storage.url}: no store is there: no {NAME}; avllm featurize plan makes one")
        table = load_table(storage, NAME, SCHEMA, ADDED)
        with collector_paused():
            columns = {name: table[name].to_pylist() for name in SCHEMA.names}
            columns["uri"] = list(map(_read, columns["uri"]))
            return cls(map(MediaItem, *columns.values()))


def even_shard_size(items: int) -> int:
    """Items per shard: small shards for few items, to occupy many workers; large ones for many, to limit the files.

    Usually a power of two, like batch sizes, because the last batch of a shard is padded to full size.
    """
    size = LARGEST_SHARD
    while size > SMALLEST_SHARD and items < SHARDS * size:
        size //= 2
    return max(1, min(size, -(-items // 2)))


def _item(candidate: Candidate, key: str, shard: int, position: int) -> MediaItem:
    c = candidate
    return MediaItem(key, c.uri, c.kind, shard, position, c.bytes, c.start, c.end, c.fps)


def _written(uri: str) -> str:
    """The URI as valid UTF-8: Python keeps other bytes of a file name as surrogates, which cannot be encoded."""
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
    """Derive a key from a file's relative path or id: letters, digits, `_` and `-`, at most 80 characters.

    With a `salt`, or if the name is too long, eight digits of a hash keep the key unique.
    """
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")
    if salt is not None or not slug or len(slug) > KEY_LENGTH:
        tail = hashlib.sha256(f"{name}\n{salt or ''}".encode(errors="backslashreplace")).hexdigest()[:8]
        slug = f"{slug[: KEY_LENGTH - 9]}-{tail}".lstrip("-")
    return slug
