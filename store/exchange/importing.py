"""Import features made elsewhere as an ordinary column."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from store.arrivals import Candidate, make_key
from store.column import create_column, list_columns
from store.corpus import Corpus
from store.errors import UserError
from store.items import Kind, MediaItem, Part
from store.reader import Arrays
from store.shard import ShardWriter
from store.sidecar import Failure, FailureCode
from store.spec import ColumnSpec
from store.storage import Storage

STORED = ("float16", "float32")
BLOCK_BYTES = 4 << 20
NAMED = 3  # maximum number of names listed in a message


class UnusableError(Exception):
    """A file or member without usable features; it is recorded as a `Failure` with this code and reason."""

    def __init__(self, code: FailureCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True)
class Foreign:
    """Features made elsewhere.

    Attributes:
        spec: spec of the new column; its numerics hold the source format, `imported`, and a digest of all files read.
        uris: where each item's features were found, by foreign id.
        load: returns the arrays and facts of a foreign id; raises `UnusableError`.
        kinds: the kind of each item's medium, by foreign id, if known.
    """

    spec: ColumnSpec
    uris: Mapping[str, str]
    load: Callable[[str], tuple[Arrays, dict[str, JsonValue]]]
    kinds: Mapping[str, Kind] = field(default_factory=dict)


@dataclass(frozen=True)
class Placed:
    """Foreign features matched to corpus items.

    Attributes:
        ids: the foreign id of each item, by corpus key.
        strangers: foreign ids that match no item of the corpus.
    """

    ids: Mapping[str, str]
    strangers: tuple[str, ...]


def make_spec(**fields: Any) -> ColumnSpec:
    """Make the spec of an imported column.

    Raises:
        UserError: a value is not accepted; the message names the field.
    """
    try:
        return ColumnSpec.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise UserError(f"column {fields['name']!r}: field {field!r}: {first['msg']}") from None


def check_sources(storage: Storage, spec: ColumnSpec) -> None:
    """Refuse to add files to an imported column: its digest covers all its source files.

    Raises:
        UserError: a column with this name and these numerics was imported from other files.
    """
    for column in list_columns(storage):
        existing = column.spec
        if existing.name == spec.name and existing != spec and _but_sources(existing) == _but_sources(spec):
            raise UserError(
                f"{storage.url}: {column.name} was imported from other files, and a column is all of its files; "
                f"import old and new together (after store gc --remove {column.name}), or under another --name"
            )


def _but_sources(spec: ColumnSpec) -> dict[str, JsonValue]:
    return spec.numerics | {"sources": None}


def plan_foreign(corpus: Corpus, foreign: Foreign, kind: Kind, shard_size: int) -> None:
    """Plan a new store from imported features; the media files themselves are unknown.

    Args:
        kind: the kind of items whose kind is unknown.
    """
    candidates = (Candidate(name, uri, foreign.kinds.get(name, kind)) for name, uri in foreign.uris.items())
    corpus.append(candidates, shard_size)


def place(corpus: Corpus, foreign: Foreign, where: str) -> Placed:
    """Match each foreign id to an item: by source or key, else by file name if only one item has it.

    Raises:
        UserError: no id matches, an id matches several items, or two ids match the same item.
    """
    keys = set()
    stems: dict[str, list[str]] = {}
    for item in corpus.items:
        keys.add(item.key)
        stems.setdefault(PurePosixPath(item.uri).stem, []).append(item.key)
    ids: dict[str, str] = {}
    strangers = []
    of_uri = corpus.keys_of([Part(uri) for uri in foreign.uris.values()])
    for (name, uri), known in zip(foreign.uris.items(), of_uri, strict=True):
        exact = [key for key in (known, name, make_key(name)) if key in keys]
        matches = exact[:1] or stems.get(PurePosixPath(name).name, [])
        if len(matches) > 1 or (matches and matches[0] in ids):
            what = f"the items {some(matches)}" if len(matches) > 1 else f"item {matches[0]}, as is {ids[matches[0]]!r}"
            raise UserError(f"{uri}: {name!r} could be {what}; name it by the item's key (store keys lists them)")
        if matches:
            ids[str(matches[0])] = name
        else:
            strangers.append(name)
    if not ids:
        raise UserError(f"{where}: no item of the corpus has the key or file name of {some(strangers)}")
    return Placed(ids, tuple(strangers))


def import_column(storage: Storage, corpus: Corpus, foreign: Foreign, placed: Placed) -> Iterator[tuple[int, int]]:
    """Write the missing shards; yield each planned shard's number of items, and how many failed in this call."""
    build: dict[str, object] = {"imported": foreign.spec.numerics["imported"]}
    column = create_column(storage, foreign.spec, build)
    existing = set(column.shards())
    for shard, items in corpus.shards.items():
        failed = 0
        if shard not in existing:
            with column.write_shard(shard) as writer:
                failed = sum(_add(writer, item, foreign, placed) for item in items)
        yield len(items), failed


def _add(writer: ShardWriter, item: MediaItem, foreign: Foreign, placed: Placed) -> bool:
    """Write one item or its failure; return whether it failed."""
    try:
        if item.key not in placed.ids:
            raise UnusableError("missing", "is not among what was imported")
        arrays, facts = foreign.load(placed.ids[item.key])
        check_arrays(arrays, foreign.spec)
    except UnusableError as error:
        writer.fail(Failure(key=item.key, code=error.code, reason=error.reason))
        return True
    writer.add(item.key, arrays, {"kind": item.kind, **facts})
    return False


def check_arrays(arrays: Arrays, spec: ColumnSpec) -> None:
    """Raise `UnusableError` unless the arrays match the spec and are finite."""
    for name, feature in spec.features.items():
        if name not in arrays:
            raise UnusableError("missing", f"has no {name}")
        array = arrays[name]
        if not feature.admits(array.shape, str(array.dtype)):
            expected = " x ".join("*" if n is None else str(n) for n in feature.shape)
            raise UnusableError(
                "unreadable", f"{name}: {array.dtype} {list(array.shape)}, expected {feature.dtype} {expected}"
            )
        if not np.isfinite(array).all():
            raise UnusableError("unreadable", f"{name}: holds numbers that are not finite")


def little_endian(array: NDArray[Any]) -> NDArray[Any]:
    """Convert an array to C order and little-endian, as stored on disk."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def digest_files(paths: Iterable[Path], advance: Callable[[int], None]) -> str:
    """SHA-256 over the files' names and contents, in order; `advance` is called with the bytes read."""
    whole = hashlib.sha256()
    for path in paths:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                advance(len(block))
        whole.update(json.dumps([path.name, digest.hexdigest()]).encode())
    return whole.hexdigest()


def some(names: Iterable[str]) -> str:
    """The first few names, for a message."""
    listed = list(names)
    return ", ".join(listed[:NAMED]) + (f" and {len(listed) - NAMED} more" if len(listed) > NAMED else "")
