"""Files that tell when they are damaged: each holds a checksum of all its other bytes, and the number of its format.

JSON is canonical and has the checksum as its last field, `xxh3`. A parquet file has both in its footer's metadata,
`avllm.format` and `avllm.xxh3`; there the checksum is of the file with 32 zeros in its own place.
The two keep their places in every format to come, so that a newer file is told from a damaged one.
"""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from store.errors import DamagedError, UserError
from store.spec import canonical_json

BEFORE_JSON = b',"xxh3":"'
BEFORE_PARQUET = b"avllm:xxh3:"
ZEROS = b"0" * 32


def seal_json(content: dict[str, Any]) -> bytes:
    """Canonical JSON of `content` (whose names sort before `xxh3`) with its checksum."""
    body = canonical_json(content)
    return body[:-1] + BEFORE_JSON + xxhash.xxh3_64_hexdigest(body).encode() + b'"}'


def unseal_json(data: bytes, newest: int, where: str) -> dict[str, Any]:
    """What was sealed.

    Raises:
        DamagedError: a byte differs.
        UserError: its format is newer than `newest`.
    """
    content: dict[str, Any] = json.loads(sealed_body(data, where))
    check_format(content["format"], newest, where)
    return content


def sealed_body(data: bytes, where: str) -> bytes:
    """The canonical JSON that was sealed, of whatever format.

    Raises:
        DamagedError: a byte differs.
    """
    body = data.rpartition(BEFORE_JSON)[0] + b"}"
    if data != body[:-1] + BEFORE_JSON + xxhash.xxh3_64_hexdigest(body).encode() + b'"}':
        raise DamagedError(f"{where}: differs from its checksum")
    return body


def seal_table(table: pa.Table, number: int) -> bytearray:
    """A table as a parquet file of format `number` with its checksum."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, table.schema, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"avllm.format": str(number), "avllm.xxh3": (BEFORE_PARQUET + ZEROS).decode()})
    data = bytearray(sink.getbuffer())
    start = data.rindex(BEFORE_PARQUET) + len(BEFORE_PARQUET)
    assert data[start : start + 32] == ZEROS
    data[start : start + 32] = _digest(data, start)
    return data


def unseal_table(data: bytes, newest: int, where: str) -> pa.Table:
    """The table that was sealed.

    Raises:
        DamagedError: a byte differs.
        UserError: its format is newer than `newest`.
    """
    start = data.rfind(BEFORE_PARQUET) + len(BEFORE_PARQUET)
    if data[start : start + 32] != _digest(data, start):
        raise DamagedError(f"{where}: differs from its checksum, or another program wrote it")
    file = pq.ParquetFile(pa.BufferReader(data))
    check_format(int(file.metadata.metadata[b"avllm.format"]), newest, where)
    return file.read(use_threads=False)  # threads are suspected of aborts at exit


def _digest(data: bytes | bytearray, start: int) -> bytes:
    view = memoryview(data)
    digest = xxhash.xxh3_128(view[:start])
    digest.update(ZEROS)
    digest.update(view[start + 32 :])
    return digest.hexdigest().encode()


def check_format(number: int, newest: int, where: str) -> None:
    """Refuse a file of a format that is newer than `newest`.

    Raises:
        UserError: it is.
    """
    if number > newest:
        raise UserError(f"{where}: format {number}; this version reads formats up to {newest}: upgrade avllm")
