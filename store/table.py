"""Tables of a store, as sealed parquet files (`store.sealed`)."""

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from store.errors import DamagedError, UserError
from store.sealed import TAIL, open_table, seal_in, write_table
from store.storage import Storage

FORMAT = 1  # version of corpus.parquet and conversations/*.parquet


def save_table(storage: Storage, name: str, columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> None:
    """Write columns, given by name, to the parquet file `name`."""
    table = pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
    save_batches(storage, name, table.to_batches(), schema)


def save_batches(storage: Storage, name: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write batches of rows to the parquet file `name`; one batch is in memory at a time."""
    with storage.writing(name) as temporary:
        write_table(temporary, batches, schema, FORMAT)


def load_table(storage: Storage, name: str, schema: pa.Schema) -> pa.Table:
    """Read the parquet file `name`.

    Raises:
        UserError: the file does not exist, or its format is newer than this version supports.
        DamagedError: the file does not match its checksum or the schema.
    """
    with opened_table(storage, name, schema) as file:
        return file.read(use_threads=False)  # pyarrow's threads are suspected of causing aborts at exit


@contextlib.contextmanager
def opened_table(storage: Storage, name: str, schema: pa.Schema, added: int = 0) -> Iterator[pq.ParquetFile]:
    """Open the parquet file `name` to read it in parts; older files lack the last `added` columns.

    Raises as `load_table`.
    """
    where = storage.where(name)
    with storage.local_copy(name) as path, open_table(path, FORMAT, where) as file:
        accepted = [schema, pa.schema(list(schema)[:-added])] if added else [schema]
        if not any(file.schema_arrow.equals(each) for each in accepted):
            raise DamagedError(f"{where}: its columns are not {', '.join(schema.names)}")
        yield file


def seal_of(storage: Storage, name: str) -> str:
    """The checksum that the parquet file `name` states. It names the content, and is not compared with it.

    Raises:
        UserError: the file does not exist.
        DamagedError: it states none.
    """
    size = storage.size(name)
    if size is None:
        raise UserError(f"{storage.where(name)}: no such file")
    return seal_in(storage.read(name, max(0, size - TAIL), size), storage.where(name))


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the garbage collector: building millions of objects that all stay alive is several times faster."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
