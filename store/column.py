"""A column: what one encoder says about the corpus, one tar for each shard."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from store.corpus import NAME as CORPUS
from store.errors import DamagedError, UserError
from store.sealed import seal_json, unseal_json
from store.settings import Settings, parse_settings
from store.shard import ShardWriter, Sidecar, load_sidecar, save_sidecar, shard_name
from store.spec import FORMAT, ColumnSpec
from store.storage import Storage

FOLDER = "columns"
WRITTEN_AT_ONCE = 4 << 20  # bytes: the kernel keeps large writes in large pages, which are read twice as fast
FETCHED_AT_ONCE = 32  # an object store answers in tens of milliseconds, whatever the size


class ColumnFile(Settings):
    """What `column.json` holds: the spec that the digest is of, and how its encoder is built again."""

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
        """The path of one of its files, from the store's root."""
        return f"{FOLDER}/{self.name}/{name}"

    def shards(self) -> list[int]:
        """The shards that are there, by their sidecars, in order."""
        stems = (n.removesuffix(".json") for n in self.storage.names(f"{FOLDER}/{self.name}") if n.endswith(".json"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def sidecar(self, shard: int) -> Sidecar:
        """The sidecar of a shard that is there.

        Raises:
            DamagedError: it is not what was written, or describes another shard.
        """
        name = self.path(shard_name(shard, "json"))
        sidecar = load_sidecar(self.storage, name)
        if (sidecar.shard, sidecar.column) != (shard, self.spec.fingerprint):
            raise DamagedError(f"{self.storage.where(name)}: belongs to another shard or column")
        return sidecar

    def sidecars(self, damaged: list[DamagedError] | None = None) -> Iterator[tuple[int, Sidecar]]:
        """The shards that are there with their sidecars, in order; many are fetched at once.

        Args:
            damaged: takes the errors of sidecars that are damaged, and these are left out; without it the first raises.

        Raises:
            DamagedError: as `sidecar`.
        """
        shards = self.shards()
        with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
            for start in range(0, len(shards), FETCHED_AT_ONCE):
                some = shards[start : start + FETCHED_AT_ONCE]
                for shard, found in zip(some, pool.map(self._sidecar_or_error, some), strict=True):
                    if isinstance(found, Sidecar):
                        yield shard, found
                    elif damaged is None:
                        raise found
                    else:
                        damaged.append(found)

    def _sidecar_or_error(self, shard: int) -> Sidecar | DamagedError:
        try:
            return self.sidecar(shard)
        except DamagedError as error:
            return error

    def withdraw(self, shard: int) -> None:
        """Make a shard not there, by removing its sidecar."""
        self.storage.remove(self.path(shard_name(shard, "json")))

    def _holds(self, sidecar: Sidecar) -> bool:
        try:
            return self.sidecar(sidecar.shard) == sidecar
        except UserError:
            return False

    @contextlib.contextmanager
    def write_shard(self, shard: int) -> Iterator[ShardWriter]:
        """Give a writer for a shard; on a normal exit its tar is published, then its sidecar."""
        tar = self.path(shard_name(shard, "tar"))
        with self.storage.writing(tar) as temporary, open(temporary, "w+b", buffering=WRITTEN_AT_ONCE) as file:
            writer = ShardWriter(file, self.spec.features)
            yield writer
            sidecar = writer.close(shard, self.spec.fingerprint)
            if not self._holds(sidecar):  # else it stays there: a worker of a killed run may have been quicker
                self.withdraw(shard)
        save_sidecar(self.storage, self.path(shard_name(shard, "json")), sidecar)


def create_column(storage: Storage, spec: ColumnSpec, build: dict[str, object]) -> Column:
    """Open the column of `spec`, making it if the store has none.

    Raises:
        UserError: a column whose digest begins with the same six digits has another spec.
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
    """Open a column by its folder's name, or by its encoder's name where only one column has it.

    Raises:
        UserError: there is none, or several.
    """
    found = _folders(storage)
    matches = [f for f in found if name in (f, f.rpartition(".")[0])]
    if len(matches) != 1:
        if not found and not storage.exists(CORPUS):
            raise UserError(f"{storage.url}: no store is there: no {CORPUS}; python -m featurize plan makes one")
        what = "several columns match" if matches else "there is no column"
        has = ", ".join(found) or "none: python -m featurize run makes them"
        raise UserError(f"{storage.url}: {what} {name!r}; it has: {has}")
    path = f"{FOLDER}/{matches[0]}/column.json"
    file = parse_settings(ColumnFile, unseal_json(storage.read(path), FORMAT, storage.where(path)), storage.where(path))
    if file.spec.fingerprint != file.digest or file.spec.folder != matches[0]:
        raise DamagedError(f"{storage.where(path)}: describes another column, {file.spec.folder}")
    return Column(storage, file)


def list_columns(storage: Storage) -> list[Column]:
    """All columns of a store, by name."""
    return [open_column(storage, name) for name in _folders(storage)]


def _folders(storage: Storage) -> list[str]:
    """The columns that are there: a killed run may leave a folder without its `column.json`."""
    return [name for name in storage.names(FOLDER) if storage.exists(f"{FOLDER}/{name}/column.json")]
