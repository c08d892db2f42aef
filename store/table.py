"""Tables of a store, as sealed parquet files (`store.sealed`)."""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from store.errors import DamagedError
from store.sealed import check_format, seal_table, unseal_table
from store.storage import Storage

FORMAT = 1  # version of corpus.parquet and conversations/*.parquet
SCANNED_AT_ONCE = 1 << 16  # rows


def save_table(storage: Storage, name: str, columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> None:
    """Write columns, given by name, to the parquet file `name`."""
    table = pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
    storage.write(name, seal_table(table, FORMAT))


def load_table(storage: Storage, name: str, schema: pa.Schema, added: int = 0) -> pa.Table:
    """Read the parquet file `name`; in older files, which lack the last `added` columns, those are null.

    Raises:
        UserError: the file does not exist, or its format is newer than this version supports.
        DamagedError: the file does not match its checksum or the schema.
    """
    table = unseal_table(storage.read(name), FORMAT, storage.where(name))
    if added and table.schema.equals(pa.schema(list(schema)[:-added])):
        for field in list(schema)[-added:]:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    if not table.schema.equals(schema):
        raise DamagedError(f"{storage.where(name)}: its columns are not {', '.join(schema.names)}")
    return table


def scan_table(storage: Storage, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield some columns of the parquet file `name` batch by batch; the table is never held whole.

    Pages are compared with their own checksums, as far as they are read. Columns that the file lacks are skipped.

    Raises:
        UserError: the file does not exist, or its format is newer than this version supports.
        DamagedError: a page does not match its checksum, or the file is no parquet file.
    """
    where = storage.where(name)
    with storage.reading(name) as file:
        try:
            table = pq.ParquetFile(file, page_checksum_verification=True)
            check_format(int(table.metadata.metadata[b"avllm.format"]), FORMAT, where)
            yield from table.iter_batches(SCANNED_AT_ONCE, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DamagedError(f"{where}: cannot be read: {' '.join(str(error).split())}") from None


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
