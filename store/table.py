"""Tables of a store, as parquet files that tell when they are damaged."""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from store.errors import DamagedError
from store.sealed import seal_table, unseal_table
from store.storage import Storage

FORMAT = 1  # of corpus.parquet and conversations/*.parquet


def save_table(storage: Storage, name: str, columns: Mapping[str, Sequence[Any]], schema: pa.Schema) -> None:
    """Write the columns, by name, as the parquet file `name`."""
    table = pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)
    storage.write(name, seal_table(table, FORMAT))


def load_table(storage: Storage, name: str, schema: pa.Schema, added: int = 0) -> pa.Table:
    """The parquet file `name`; the last `added` columns, which older files lack, are null in those.

    Raises:
        UserError: there is no such file, or its format is newer than this version's.
        DamagedError: it is not the file that was written.
    """
    table = unseal_table(storage.read(name), FORMAT, storage.where(name))
    if added and table.schema.equals(pa.schema(list(schema)[:-added])):
        for each in list(schema)[-added:]:
            table = table.append_column(each, pa.nulls(len(table), each.type))
    if not table.schema.equals(schema):
        raise DamagedError(f"{storage.where(name)}: its columns are not {', '.join(schema.names)}")
    return table


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Build millions of objects, all of which stay, without looking for garbage among them: several times faster."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
