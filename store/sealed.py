"""Sealed files: each holds its format number and a checksum of all its other bytes, so damage is detected on read.

Sealed JSON is canonical, with the checksum as its last field, `xxh3`. A sealed parquet file has both in its footer's
metadata, as `avllm.format` and `avllm.xxh3`; its checksum is computed with 32 zeros in the checksum's own place.
Future formats must keep both in the same place, so that a newer file is not mistaken for a damaged one.
"""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from store.errors import DamagedError, UserError
from store.spec import canonical_json

BEFORE_JSON = b',"xxh3":"'
BEFORE_PARQUET = b"avllm:xxh3:"
ZEROS = b"0" * 32
TAIL = 1 << 16  # bytes at the end of a parquet file among which its checksum stands
BLOCK_BYTES = 4 << 20


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


def write_table(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema, number: int) -> None:
    """Write a parquet file that holds the batches, format `number` and a checksum; one batch is in memory at a time."""
    with open(path, "w+b") as file:
        with pq.ParquetWriter(file, schema, write_page_checksum=True) as writer:
            for batch in batches:
                writer.write_batch(batch)
            writer.add_key_value_metadata(
                {"avllm.format": str(number), "avllm.xxh3": (BEFORE_PARQUET + ZEROS).decode()}
            )
        start = _seal_start(file)
        digest = _digest(file, start)
        file.seek(start)
        assert file.read(32) == ZEROS
        file.seek(start)
        file.write(digest)


def open_table(path: Path, newest: int, where: str) -> pq.ParquetFile:
    """Open a sealed parquet file.

    Args:
        path: of the file.
        newest: the newest format that is read.
        where: the file's name in messages.

    Raises:
        DamagedError: the file does not match its checksum.
        UserError: its format is newer than `newest`.
    """
    with open(path, "rb") as file:
        start = _seal_start(file)
        file.seek(start)
        if file.read(32) != _digest(file, start):
            raise DamagedError(f"{where}: differs from its checksum, or another program wrote it")
    table = pq.ParquetFile(path)
    check_format(int(table.metadata.metadata[b"avllm.format"]), newest, where)
    return table


def seal_in(tail: bytes, where: str) -> str:
    """The checksum that a sealed parquet file states, from its last `TAIL` bytes; it is not compared.

    Raises:
        DamagedError: there is none.
    """
    found = tail.rfind(BEFORE_PARQUET)
    seal = tail[found + len(BEFORE_PARQUET) :][:32]
    if found < 0 or not re.fullmatch(rb"[0-9a-f]{32}", seal):
        raise DamagedError(f"{where}: holds no checksum, or another program wrote it")
    return seal.decode()


def _seal_start(file: BinaryIO) -> int:
    size = file.seek(0, os.SEEK_END)
    first = max(0, size - TAIL)
    file.seek(first)
    found = file.read().rfind(BEFORE_PARQUET)
    return size if found < 0 else first + found + len(BEFORE_PARQUET)


def _digest(file: BinaryIO, start: int) -> bytes:
    """The checksum of a file, with zeros in its own place at `start`."""
    digest = xxhash.xxh3_128()
    file.seek(0)
    for place in range(0, start, BLOCK_BYTES):
        digest.update(file.read(min(BLOCK_BYTES, start - place)))
    digest.update(ZEROS)
    file.seek(start + 32)
    while block := file.read(BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest().encode()


def check_format(number: int, newest: int, where: str) -> None:
    """Refuse a file whose format is newer than `newest`.

    Raises:
        UserError: the format is newer.
    """
    if number > newest:
        raise UserError(f"{where}: format {number}; this version reads formats up to {newest}: upgrade avllm")
