"""Features of sent files on disk, in a store of the server's own. One thread at a time may use it.

An item is a file, its key the SHA-256 of the file's bytes. It is a shard by itself, so that it can be published and
withdrawn alone. The plan is saved before an item's shards, and after the withdrawal of others, so a kill at any moment
leaves items without shards at most, which are forgotten at the next opening.
"""

import contextlib
import itertools
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from featurize.media import MediaError
from serve.api.errors import log
from store import (
    Arrays,
    Candidate,
    Column,
    ColumnSpec,
    Corpus,
    Failure,
    Kind,
    Sense,
    Storage,
    UserError,
    create_column,
    list_columns,
    list_conversations,
)
from store.items import CORPUS
from store.shard import shard_name
from store.storage import LOCK

SENT = "sent://"  # of the URIs of sent files, which are not kept
OWN_FOLDERS = 64  # of a user's servers that run at once
MOST_ITEMS = 20_000  # their plan is saved in 0.15 s
ITEM_BYTES = 24 << 10  # of a tar's blocks, its sidecar and its place in the plan


@dataclass(frozen=True)
class Encoded:
    """A file's arrays in a column, and the facts beside them."""

    arrays: Arrays
    facts: Mapping[str, JsonValue]


Outcome = Encoded | MediaError  # of a file in a column


class FeatureCache:
    """The store of sent files' features.

    Args:
        storage: whose lock is held.
        most_bytes: of all items; those that were not asked about for longest are withdrawn.
        columns: spec and build of each sense's column.

    Raises:
        UserError: the store is not a server's, or is damaged.
    """

    def __init__(
        self, storage: Storage, most_bytes: int, columns: Mapping[Sense, tuple[ColumnSpec, dict[str, object]]]
    ) -> None:
        self._storage, self._most_bytes = storage, most_bytes
        self._corpus = _load_plan(storage)
        self._columns = {sense: create_column(storage, spec, build) for sense, (spec, build) in columns.items()}
        self._all = list_columns(storage)  # also of other checkpoints
        self._published = {column.name: _clean(column, self._corpus) for column in self._all}
        shards = {shard for published in self._published.values() for shard in published}
        self._corpus = Corpus(item for item in self._corpus.items if item.shard in shards)
        self._shards = OrderedDict((item.key, item.shard) for item in self._corpus.items)  # the last asked about last

    @property
    def bytes(self) -> int:
        """Of all items on disk, with what each takes besides its arrays."""
        return sum(sum(published.values()) for published in self._published.values())

    def load(self, key: str) -> dict[Sense, Arrays | MediaError]:
        """What is known of a file; senses that are not are left out. Damaged features are withdrawn."""
        if key not in self._shards:
            return {}
        self._shards.move_to_end(key)
        found = {sense: self._load(column, key) for sense, column in self._columns.items()}
        return {sense: outcome for sense, outcome in found.items() if outcome is not None}

    def save(self, key: str, kind: Kind, outcomes: Mapping[Sense, Outcome]) -> None:
        """Keep what was found out about a file, or log why that is impossible."""
        size = sum(_size(outcome) for outcome in outcomes.values())
        if size > self._most_bytes:
            return
        try:
            shard = self._planned(key, kind, size)
            for sense, outcome in outcomes.items():
                self._publish(self._columns[sense], shard, key, outcome)
        except (UserError, OSError) as error:  # a full disk: answers need none
            log.error("features of a file are not kept: %s", error)

    def _load(self, column: Column, key: str) -> Arrays | MediaError | None:
        shard = self._shards[key]
        if shard not in self._published[column.name]:
            return None
        try:
            found = column.load_item(shard, key)
        except UserError as error:
            log.error("cached features are encoded again: %s", error)
            self._withdraw(column, shard)
            return None
        return MediaError(found.code, found.reason) if isinstance(found, Failure) else found

    def _planned(self, key: str, kind: Kind, size: int) -> int:
        """The shard of a file, which is put into the plan."""
        if key in self._shards:
            return self._shards[key]
        gone = set()
        while self._shards and (self.bytes + size > self._most_bytes or len(self._shards) >= MOST_ITEMS):
            oldest, shard = self._shards.popitem(last=False)
            gone.add(oldest)
            for column in self._all:
                self._withdraw(column, shard)
        corpus = Corpus(item for item in self._corpus.items if item.key not in gone)
        corpus.append([Candidate(key, f"{SENT}{key}", kind)], shard_size=1)
        corpus.save(self._storage)
        self._corpus = corpus
        self._shards[key] = corpus.items[-1].shard
        return self._shards[key]

    def _publish(self, column: Column, shard: int, key: str, outcome: Outcome) -> None:
        with column.write_shard(shard) as writer:
            if isinstance(outcome, MediaError):
                writer.fail(Failure(key=key, code=outcome.code, reason=outcome.reason))
            else:
                writer.add(key, outcome.arrays, outcome.facts)
        self._published[column.name][shard] = _size(outcome)

    def _withdraw(self, column: Column, shard: int) -> None:
        if self._published[column.name].pop(shard, None) is not None:
            column.withdraw(shard)
            self._storage.remove(column.path(shard_name(shard, "tar")))


@contextlib.contextmanager
def own_folder(folder: str | None) -> Iterator[Storage]:
    """Hold the lock of a cache's folder; of the user's first free one, if none is given.

    Temporary files that a killed server left there are removed.

    Raises:
        UserError: another server has it, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        yield _locked(stack, folder) if folder else _first_free(stack)


def check_folder(folder: str | None) -> None:
    """Refuse a cache that `own_folder` and `FeatureCache` would.

    Raises:
        UserError: it cannot be used.
    """
    with own_folder(folder) as storage:
        _load_plan(storage)


def _first_free(stack: contextlib.ExitStack) -> Storage:
    root = Path(os.environ.get("AVLLM_CACHE") or "~/.cache/avllm").expanduser() / "sent"
    for number in itertools.count(1):
        try:
            return _locked(stack, str(root / str(number)))
        except UserError:
            if number == OWN_FOLDERS:
                raise
    raise AssertionError


def _locked(stack: contextlib.ExitStack, folder: str) -> Storage:
    storage = Storage(folder)
    if not storage.local:
        raise UserError(f"field 'cache': {folder}; expected a folder of this machine")
    try:
        Path(storage.root).mkdir(mode=0o700, parents=True, exist_ok=True)
        stack.enter_context(storage.lock())
    except FileExistsError:
        raise UserError(f"field 'cache': {folder}: is a file; name a folder") from None
    except OSError as error:
        raise UserError(f"field 'cache': {folder}: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"field 'cache': {error}; a cache belongs to one server: name another folder") from None
    return storage


def _load_plan(storage: Storage) -> Corpus:
    """The plan, made if the folder is empty. A store of anything but sent files is not touched.

    Raises:
        UserError: the folder is not a cache.
    """
    foreign = UserError(f"field 'cache': {storage.url}: holds other things than sent files; name a folder of its own")
    if not storage.exists(CORPUS):
        if set(storage.names("")) - {LOCK}:
            raise foreign
        Corpus().save(storage)
    corpus = Corpus.load(storage)
    if list_conversations(storage) or not all(item.uri.startswith(SENT) for item in corpus.items):
        raise foreign
    return corpus


def _clean(column: Column, corpus: Corpus) -> dict[int, int]:
    """The bytes of a column's shards that are in the plan; what a killed server left beside them is removed."""
    planned = {item.shard for item in corpus.items}
    published: dict[int, int] = {}
    for shard in column.shards():
        size = column.storage.size(column.path(shard_name(shard, "tar")))
        if shard in planned and size is not None:
            published[shard] = size + ITEM_BYTES
        else:
            column.withdraw(shard)
    for name in column.storage.names(column.path("").rstrip("/")):
        if name.endswith(".tar") and int(name.removesuffix(".tar")) not in published:
            column.storage.remove(column.path(name))
    return published


def _size(outcome: Outcome) -> int:
    arrays = {} if isinstance(outcome, MediaError) else outcome.arrays
    return ITEM_BYTES + sum(array.nbytes for array in arrays.values())
