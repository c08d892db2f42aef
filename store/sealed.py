"""Sealed files: each holds its format number and a checksum of all its other bytes, so damage is detected on read.

Sealed JSON is canonical, with the checksum as its last field, `xxh3`. A sealed parquet file has both in its footer's
metadata, as `avllm.format` and `avllm.xxh3`; its checksum is computed with 32 zeros in the checksum's own place.
Future formats must keep both in the same place, so that a newer file is not mistaken for a damaged one.
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
    """Canonical JSON of `content`, with its checksum; the keys of `content` must sort before `xxh3`."""
    body = canonical_json(content)
    return body[:-1] + BEFORE_JSON + xxhash.xxh3_64_hexdigest(body).encode() + b'"}'


def unseal_json(data: bytes, newest: int, where: str) -> dict[str, Any]:
    """The content of sealed JSON.

    Raises:
        DamagedError: the data does not match its checksum.
        UserError: its format is newer than `newest`.
    """
    content: dict[str, Any] = json.loads(sealed_body(data, where))
    check_format(content["format"], newest, where)
    return content


def sealed_body(data: bytes, where: str) -> bytes:
    """The canonical JSON inside sealed JSON, whatever its format number.

    Raises:
        DamagedError: the data does not match its checksum.
    """
    body = data.rpartition(BEFORE_JSON)[0] + b"}"
    if data != body[:-1] + BEFORE_JSON + xxhash.xxh3_64_hexdigest(body).encode() + b'"}':
        raise DamagedError(f"{where}: differs from its checksum")
    return body


def seal_table(table: pa.Table, number: int) -> bytearray:
    """The bytes of a parquet file that holds the table, format `number` and a checksum."""
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
    """The table of a sealed parquet file.

    Raises:
        DamagedError: the data does not match its checksum.
        UserError: its format is newer than `newest`.
    """
    start = data.rfind(BEFORE_PARQUET) + len(BEFORE_PARQUET)
    if data[start : start + 32] != _digest(data, start):
        raise DamagedError(f"{where}: differs from its checksum, or another program wrote it")
    file = pq.ParquetFile(pa.BufferReader(data))
    check_format(int(file.metadata.metadata[b"avllm.format"]), newest, where)
    return file.read(use_threads=False)  # pyarrow's threads are suspected of causing aborts at exit


def _digest(data: bytes | bytearray, start: int) -> bytes:
    view = memoryview(data)
    digest = xxhash.xxh3_128(view[:start])
    digest.update(ZEROS)
    digest.update(view[start + 32 :])
    return digest.hexdigest().encode()


def check_format(number: int, newest: int, where: str) -> None:
    """Refuse a file whose format is newer than `newest`.

    Raises:
        UserError: the format is newer.
    """
    if number > newest:
        raise UserError(f"{where}: format {number}; this version reads formats up to {newest}: upgrade avllm")
