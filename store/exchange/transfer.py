"""Copy a whole store to or from any fsspec URL.

Shards that are there are skipped, tables and the card are overwritten if they differ. Each sidecar follows its tar.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import takewhile

from store.column import Column, create_column, list_columns
from store.conversation import FOLDER as CONVERSATIONS
from store.corpus import Corpus
from store.errors import UserError
from store.exchange.copying import copy_shard
from store.index import publish_index
from store.items import CORPUS, MediaItem
from store.shard import shard_name
from store.sidecar import Sidecar
from store.storage import Storage

CARD = "README.md"
THREADS = 4


@dataclass
class Cargo:
    """The content of a store to send, without leftovers, locks and foreign files.

    Attributes:
        corpus: the plan to send.
        tables: bytes of the corpus plan and conversation files, by path relative to the root.
        columns: each column with its shard numbers, by name.
        card: the README.md to send, or None.
    """

    corpus: Corpus
    tables: dict[str, bytes]
    columns: dict[str, tuple[Column, list[int]]] = field(default_factory=dict)
    card: bytes | None = None

    @property
    def shards(self) -> int:
        """The total number of shards in all columns."""
        return sum(len(shards) for _, shards in self.columns.values())

    def numbered(self) -> list[tuple[Column, int]]:
        """All shards, as pairs of a column and a shard number."""
        return [(column, shard) for column, shards in self.columns.values() for shard in shards]


def load_cargo(source: Storage, *, strip_uris: bool) -> Cargo:
    """Collect the content of a store to send.

    Args:
        strip_uris: make media URIs relative to the folder that all media share.
    """
    corpus = Corpus.load(source)
    tables = {CORPUS: source.read(CORPUS)}
    if strip_uris:
        corpus = strip(corpus)
        with tempfile.TemporaryDirectory() as scratch:
            corpus.save(Storage(scratch))
            tables[CORPUS] = Storage(scratch).read(CORPUS)
    tables |= {
        f"{CONVERSATIONS}/{name}": source.read(f"{CONVERSATIONS}/{name}") for name in source.names(CONVERSATIONS)
    }
    columns = {column.name: (column, column.shards()) for column in list_columns(source)}
    return Cargo(corpus, tables, columns, source.read(CARD) if source.exists(CARD) else None)


def strip(corpus: Corpus) -> Corpus:
    """The plan with each URI relative to the folder that all media share."""
    first, last = (
        extreme((item.uri.rpartition("/")[0] for item in corpus.items), default="").split("/") for extreme in (min, max)
    )
    shared = [one for one, other in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
    return Corpus(replace(item, uri="/".join(item.uri.split("/")[len(shared) :])) for item in corpus.items)


def check_extends(target: Storage, corpus: Corpus) -> None:
    """Refuse to overwrite another store.

    Raises:
        UserError: the plan to send does not start with the items of the store at `target`.
    """
    if not target.exists(CORPUS):
        return
    existing = Corpus.load(target).items
    starts_alike = all(_but_bytes(one) == _but_bytes(other) for one, other in zip(existing, corpus.items, strict=False))
    if len(existing) > len(corpus) or not starts_alike:
        raise UserError(
            f"{target.url}: holds a store of another plan; send to another place, or use store merge "
            "(a plan sent with --strip-uris must be sent with it again)"
        )


def _but_bytes(item: MediaItem) -> MediaItem:
    return replace(item, bytes=None)


def send(target: Storage, cargo: Cargo, advance: Callable[[int], None]) -> int:
    """Copy what the target lacks; return the number of shards copied.

    The target is a sound store at all times, so the same command resumes an interrupted copy. Each tar's checksum is
    verified on the way.

    Raises:
        UserError: the target holds another store.
        DamagedError: the source does not match its checksums.
    """
    check_extends(target, cargo.corpus)
    for name, content in cargo.tables.items():
        _send_file(target, name, content)
    columns = {name: create_column(target, c.spec, c.build) for name, (c, _) in cargo.columns.items()}
    existing = {name: set(column.shards()) for name, column in columns.items()}

    def copy_if_missing(column: Column, shard: int) -> bool:
        sidecar = column.sidecar(shard)
        missing = not (shard in existing[column.name] and is_there(columns[column.name], sidecar))
        if missing:
            copy_shard(column, columns[column.name], sidecar, shard)
        return missing

    copied = 0
    pool = ThreadPoolExecutor(THREADS)
    try:
        for missing in pool.map(lambda pair: copy_if_missing(*pair), cargo.numbered()):
            copied += missing
            advance(1)
    finally:
        pool.shutdown(cancel_futures=True)
    for column in columns.values():
        publish_index(column)
    if cargo.card:
        _send_file(target, CARD, cargo.card)
    return copied


def is_there(column: Column, sidecar: Sidecar) -> bool:
    """Whether the column has this exact shard: an equal sidecar, and a tar of the right size."""
    tar = column.storage.path(column.path(shard_name(sidecar.shard, "tar")))
    return (
        column.sidecar(sidecar.shard) == sidecar
        and bool(column.storage.fs.exists(tar))
        and column.storage.fs.size(tar) == sidecar.tar_bytes
    )


def _send_file(target: Storage, name: str, content: bytes) -> None:
    if not target.exists(name) or target.read(name) != content:
        target.write(name, content)
