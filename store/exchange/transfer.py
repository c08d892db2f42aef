"""Copy a whole store to or from any fsspec URL. What is there already is skipped; sidecars come after their tars."""

import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import takewhile

from store.column import Column, create_column, list_columns
from store.conversation import FOLDER as CONVERSATIONS
from store.corpus import NAME, Corpus
from store.errors import UserError
from store.exchange.copying import copy_shard
from store.shard import Sidecar, shard_name
from store.storage import Storage

CARD = "README.md"
THREADS = 4


@dataclass
class Cargo:
    """What a store holds that is worth sending: leftovers, locks and foreign files stay behind.

    Attributes:
        tables: its corpus plan and conversations, by path from the root.
        columns: each with its shards.
        card: the README.md to send, or None.
    """

    corpus: Corpus
    tables: dict[str, bytes]
    columns: dict[str, tuple[Column, list[int]]] = field(default_factory=dict)
    card: bytes | None = None

    @property
    def shards(self) -> int:
        """How many shards all columns have."""
        return sum(len(shards) for _, shards in self.columns.values())

    def numbered(self) -> list[tuple[Column, int]]:
        """Every shard of every column."""
        return [(column, shard) for column, shards in self.columns.values() for shard in shards]


def load_cargo(source: Storage, *, strip_uris: bool) -> Cargo:
    """Take stock of a store.

    Args:
        strip_uris: name the media relative to the folder that all of them share.
    """
    corpus = Corpus.load(source)
    tables = {NAME: source.read(NAME)}
    if strip_uris:
        corpus = strip(corpus)
        with tempfile.TemporaryDirectory() as scratch:
            corpus.save(Storage(scratch))
            tables[NAME] = Storage(scratch).read(NAME)
    tables |= {
        f"{CONVERSATIONS}/{name}": source.read(f"{CONVERSATIONS}/{name}") for name in source.names(CONVERSATIONS)
    }
    columns = {column.name: (column, column.shards()) for column in list_columns(source)}
    return Cargo(corpus, tables, columns, source.read(CARD) if source.exists(CARD) else None)


def strip(corpus: Corpus) -> Corpus:
    """The plan with each URI relative to the folder that all of them share."""
    folders = [item.uri.rpartition("/")[0] for item in corpus.items] or [""]
    first, last = min(folders).split("/"), max(folders).split("/")
    shared = [one for one, other in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))]
    return Corpus(replace(item, uri="/".join(item.uri.split("/")[len(shared) :])) for item in corpus.items)


def check_extends(target: Storage, corpus: Corpus) -> None:
    """Refuse to write over another store.

    Raises:
        UserError: what is at `target` has items that the plan to be sent does not begin with.
    """
    if not target.exists(NAME):
        return
    there = [replace(item, bytes=None) for item in Corpus.load(target).items]
    if there != [replace(item, bytes=None) for item in corpus.items[: len(there)]]:
        raise UserError(
            f"{target.url}: holds a store of another plan; send to another place, or use store merge "
            "(a plan sent with --strip-uris must be sent with it again)"
        )


def send(target: Storage, cargo: Cargo, advance: Callable[[int], None]) -> int:
    """Copy what the target lacks; the number of shards that were copied.

    The target is a sound store at every moment, so a stopped copy goes on with the same command. Every tar is compared
    with its checksum on the way.

    Raises:
        UserError: another store is there.
        DamagedError: the source's bytes are not those that were written.
    """
    check_extends(target, cargo.corpus)
    for name, content in cargo.tables.items():
        _send_file(target, name, content)
    columns = {name: create_column(target, c.spec, c.build) for name, (c, _) in cargo.columns.items()}
    there = {name: set(column.shards()) for name, column in columns.items()}

    def one(column: Column, shard: int) -> bool:
        sidecar = column.sidecar(shard)
        lacking = not (shard in there[column.name] and is_there(columns[column.name], sidecar))
        if lacking:
            copy_shard(column, columns[column.name], sidecar, shard)
        return lacking

    copied = 0
    pool = ThreadPoolExecutor(THREADS)
    try:
        for lacking in pool.map(lambda pair: one(*pair), cargo.numbered()):
            copied += lacking
            advance(1)
    finally:
        pool.shutdown(cancel_futures=True)
    if cargo.card:
        _send_file(target, CARD, cargo.card)
    return copied


def is_there(column: Column, sidecar: Sidecar) -> bool:
    """Whether a column has this very shard."""
    tar = column.storage.path(column.path(shard_name(sidecar.shard, "tar")))
    return (
        column.sidecar(sidecar.shard) == sidecar
        and bool(column.storage.fs.exists(tar))
        and column.storage.fs.size(tar) == sidecar.tar_bytes
    )


def _send_file(target: Storage, name: str, content: bytes) -> None:
    if not target.exists(name) or target.read(name) != content:
        target.write(name, content)
