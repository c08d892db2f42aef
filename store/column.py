"""A column: one encoder's features for the corpus, with one tar per shard."""

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xxhash
from numpy.typing import NDArray

from store.errors import DamagedError, UserError
from store.items import check_is_store
from store.sealed import seal_json, unseal_json
from store.settings import Settings, parse_settings
from store.shard import ShardWriter, decode_array, shard_name
from store.sidecar import ArrayEntry, Failure, Sidecar, load_sidecar, save_sidecar
from store.spec import FORMAT, ColumnSpec
from store.storage import Storage

FOLDER = "columns"
WRITTEN_AT_ONCE = 4 << 20  # bytes: large writes are cached in large pages, which read back twice as fast
FETCHED_AT_ONCE = 32  # parallel requests: an object store takes tens of milliseconds, whatever the size


class ColumnFile(Settings):
    """The content of `column.json`: the spec, its digest, and how to build the encoder again."""

    format: int = FORMAT
    digest: str
    spec: ColumnSpec
    build: dict[str, object]


class Column:
    """One column of a store."""

    def __init__(self, storage: Storage, file: ColumnFile) -> None:
        self.storage = storage
        self.spec = file.spec
        self.build = file.build

    @property
    def name(self) -> str:
        """`<encoder>.<digest>`, the name of its folder."""
        return self.spec.folder

    def path(self, name: str) -> str:
        """The path of one of the column's files, relative to the store's root."""
        return f"{FOLDER}/{self.name}/{name}"

    def files(self) -> dict[str, str]:
        """The names in the column's folder; to each, a mark that changes when the file is written again."""
        return self.storage.marks(f"{FOLDER}/{self.name}")

    def shards(self) -> list[int]:
        """The sorted numbers of the published shards: those that have a sidecar."""
        return shards_in(self.storage.names(f"{FOLDER}/{self.name}"))

    def sidecar(self, shard: int) -> Sidecar:
        """The sidecar of a published shard.

        Raises:
            DamagedError: the sidecar does not match its checksum, or describes another shard or column.
        """
        name = self.path(shard_name(shard, "json"))
        with self.blamed(shard):
            sidecar = load_sidecar(self.storage, name)
            if (sidecar.shard, sidecar.column) != (shard, self.spec.fingerprint):
                raise DamagedError(f"{self.storage.where(name)}: belongs to another shard or column")
        return sidecar

    def load_item(self, shard: int, key: str) -> dict[str, NDArray[Any]] | Failure:
        """The arrays of an item by feature name, or why it failed, by its shard's sidecar alone.

        `ColumnReader` is faster for many items, but its index is that of the shards at its opening.

        Raises:
            UserError: the shard is not published.
            DamagedError: the sidecar or an array does not match its checksum, or the shard has no such item.
        """
        sidecar = self.sidecar(shard)
        for failure in sidecar.failed:
            if failure.key == key:
                return failure
        with self.blamed(shard):
            for item in sidecar.items:
                if item.key == key:
                    return {name: self.read_array(shard, f"{key}.{name}", entry) for name, entry in item.arrays.items()}
            raise DamagedError(f"{self.storage.where(self.path(shard_name(shard, 'json')))}: has no item {key}")

    def read_array(self, shard: int, member: str, entry: ArrayEntry) -> NDArray[Any]:
        """Read one array, by its entry in a sidecar; `member` names it in messages.

        Raises:
            DamagedError: it does not match its checksum.
        """
        tar = self.path(shard_name(shard, "tar"))
        data = self.storage.read(tar, entry.offset, entry.offset + entry.nbytes)
        if xxhash.xxh3_64_intdigest(data) != entry.xxh3:
            raise DamagedError(f"{self.storage.where(tar)}: {member} differs from its checksum")
        return decode_array(memoryview(data), entry.dtype, entry.shape)

    def blame(self, shard: int, error: DamagedError) -> None:
        """Name a shard of this column as what is damaged."""
        error.store, error.column, error.shard = self.storage.url, self.name, shard

    @contextlib.contextmanager
    def blamed(self, shard: int) -> Iterator[None]:
        """Name a shard of this column in the damage that is found within."""
        try:
            yield
        except DamagedError as error:
            self.blame(shard, error)
            raise

    def sidecars(self, damaged: list[DamagedError] | None = None) -> Iterator[tuple[int, Sidecar]]:
        """The published shards with their sidecars, in order; sidecars are fetched in parallel.

        Args:
            damaged: if given, collects the errors of damaged sidecars, which are skipped; else the first one is raised.

        Raises:
            DamagedError: as for `sidecar`.
        """
        shards = self.shards()
        with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
            for start in range(0, len(shards), FETCHED_AT_ONCE):
                batch = shards[start : start + FETCHED_AT_ONCE]
                for shard, result in zip(batch, pool.map(self._sidecar_or_error, batch), strict=True):
                    if isinstance(result, Sidecar):
                        yield shard, result
                    elif damaged is None:
                        raise result
                    else:
                        damaged.append(result)

    def _sidecar_or_error(self, shard: int) -> Sidecar | DamagedError:
        try:
            return self.sidecar(shard)
        except DamagedError as error:
            return error

    def withdraw(self, shard: int) -> None:
        """Unpublish a shard by removing its sidecar."""
        self.storage.remove(self.path(shard_name(shard, "json")))

    def _holds(self, sidecar: Sidecar) -> bool:
        try:
            return self.sidecar(sidecar.shard) == sidecar
        except UserError:
            return False

    @contextlib.contextmanager
    def write_shard(self, shard: int) -> Iterator[ShardWriter]:
        """Yield a writer for a shard; a normal exit publishes first the tar, then the sidecar."""
        tar = self.path(shard_name(shard, "tar"))
        with self.storage.writing(tar) as temporary, open(temporary, "w+b", buffering=WRITTEN_AT_ONCE) as file:
            writer = ShardWriter(file, self.spec.features)
            yield writer
            sidecar = writer.close(shard, self.spec.fingerprint)
            if not self._holds(sidecar):  # else an equal sidecar is already there
                self.withdraw(shard)
        save_sidecar(self.storage, self.path(shard_name(shard, "json")), sidecar)


def shards_in(names: Iterable[str]) -> list[int]:
    """The sorted numbers of the shards whose sidecars are among the names in a column's folder."""
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def create_column(storage: Storage, spec: ColumnSpec, build: dict[str, object]) -> Column:
    """Open the column of `spec`, and create it if it does not exist.

    Raises:
        UserError: an existing column has the same six-digit digest but another spec.
    """
    file = ColumnFile(digest=spec.fingerprint, spec=spec, build=build)
    name = f"{FOLDER}/{spec.folder}/column.json"
    if not storage.exists(name):
        storage.write(name, seal_json(file.model_dump(mode="json")))
    column = open_column(storage, spec.folder)
    if column.spec != spec:
        raise UserError(f"{storage.where(name)}: holds another spec under the same digest {spec.digest}")
    return column


def open_column(storage: Storage, name: str) -> Column:
    """Open a column by folder name, or by encoder name if only one column has that encoder.

    Raises:
        UserError: no column matches, or several do.
    """
    folders = _folders(storage)
    matches = [f for f in folders if name in (f, f.rpartition(".")[0])]
    if len(matches) != 1:
        if not folders:
            check_is_store(storage)
        if matches:
            raise UserError(f"{storage.url}: several columns match {name!r}; name one in full: {', '.join(matches)}")
        has = ", ".join(folders) or "none: avllm featurize run makes them"
        raise UserError(f"{storage.url}: there is no column {name!r}; it has: {has}")
    path = f"{FOLDER}/{matches[0]}/column.json"
    file = parse_settings(ColumnFile, unseal_json(storage.read(path), FORMAT, storage.where(path)), storage.where(path))
    if file.spec.fingerprint != file.digest or file.spec.folder != matches[0]:
        raise DamagedError(f"{storage.where(path)}: describes another column, {file.spec.folder}")
    return Column(storage, file)


def list_columns(storage: Storage) -> list[Column]:
    """All columns of a store, sorted by name."""
    return [open_column(storage, name) for name in _folders(storage)]


def _folders(storage: Storage) -> list[str]:
    """The folders that have a `column.json`; a killed run may leave one without."""
    return [name for name in storage.names(FOLDER) if storage.exists(f"{FOLDER}/{name}/column.json")]
