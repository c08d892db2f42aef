"""Tables of a store, as parquet files with a checksum of every page."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from store.errors import DamagedError
from store.storage import Storage


def save_table(storage: Storage, name: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write `rows` as the parquet file `name`."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), sink, write_page_checksum=True)
    storage.write(name, sink.getvalue())


def load_table(storage: Storage, name: str, schema: pa.Schema) -> list[dict[str, Any]]:
    """The rows of the parquet file `name`.

    Raises:
        UserError: there is no such file.
        DamagedError: it is not the parquet file that was written.
    """
    data = io.BytesIO(storage.read(name))
    try:
        table = pq.read_table(data, page_checksum_verification=True, use_threads=False, pre_buffer=False)
        rows: list[dict[str, Any]] = table.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DamagedError(f"{storage.where(name)}: {' '.join(str(error).split())}") from None
    if not table.schema.equals(schema):
        raise DamagedError(f"{storage.where(name)}: its columns are not {', '.join(schema.names)}")
    return rows
