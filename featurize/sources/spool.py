"""The records of a source, on disk: a source may hold more than fit in memory."""

import json
import mmap
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from featurize.sources.record import Record
from store import Candidate, Turn
from store.conversation import SCHEMA as CONVERSATION
from store.items import ROWS, read_uri, written_uri

SPLITS = ("train", "val", "test")
MEDIA = ("name", "uri", "kind", "bytes", "start", "end", "fps")  # null where a record has no file
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("name", pa.string()),
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("bytes", pa.int64()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("fps", pa.float64()),
        CONVERSATION.field("turns"),
        CONVERSATION.field("meta"),
        ("split", pa.string()),  # where `meta` names one of `SPLITS`
        ("content", pa.binary(16)),  # digest of the part and the turns
    ]
)


class Spool(Sequence[Record]):
    """Records that were written once, in order. The file has no name, so it is gone with the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="avllm-")  # noqa: SIM115
        self._writer: pa.ipc.RecordBatchFileWriter | None = pa.ipc.new_file(self._file, SCHEMA)
        self._held: list[Record] = []
        self._count = 0

    def append(self, record: Record) -> None:
        """Add a record; none can be added once they are read."""
        self._held.append(record)
        self._count += 1
        if len(self._held) == ROWS:
            self._write()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        places = range(self._count)[place]
        if isinstance(places, range):
            return [self[each] for each in places]
        return _records(self._batch(places // ROWS).slice(places % ROWS, 1))[0]

    def __iter__(self) -> Iterator[Record]:
        for batch in self.batches():
            yield from _records(batch)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All records as rows of `SCHEMA`."""
        return map(self._batch, range(-(-self._count // ROWS)))

    def media(self) -> Iterator[Candidate]:
        """The media files, in order; a file that several records name is repeated."""
        for batch in self.batches():
            yield from filter(None, _media(batch))

    def conversations(self) -> Iterator[pa.RecordBatch]:
        """The records that hold a conversation, as rows of `SCHEMA`."""
        return (batch.filter(pc.greater(pc.list_value_length(batch.column("turns")), 0)) for batch in self.batches())

    def _batch(self, number: int) -> pa.RecordBatch:
        if self._writer:
            self._write()
            self._writer.close()
            self._writer = None
            self._file.flush()
            content = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._reader = pa.ipc.open_file(pa.py_buffer(content))
        return self._reader.get_batch(number)

    def _write(self) -> None:
        if self._held and self._writer:
            self._writer.write_batch(_rows(self._held))
            self._held.clear()


def _rows(records: Sequence[Record]) -> pa.RecordBatch:
    uris = [written_uri(record.media.uri) if record.media else None for record in records]
    splits = [record.meta.get("split") for record in records]
    columns: dict[str, list[Any]] = {
        **{name: [getattr(record.media, name, None) for record in records] for name in MEDIA},
        "id": [record.id.encode(errors="backslashreplace").decode() for record in records],  # file names may be no text
        "uri": uris,
        "name": [written_uri(record.media.name) if record.media else None for record in records],
        "turns": [[vars(turn) for turn in record.turns] for record in records],
        "meta": [json.dumps(record.meta, sort_keys=True) for record in records],
        "split": [split if isinstance(split, str) and split in SPLITS else None for split in splits],
        "content": [_digest(uri, record) for uri, record in zip(uris, records, strict=True)],
    }
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _digest(uri: str | None, record: Record) -> bytes:
    bounds = record.media and (record.media.start, record.media.end)
    turns = [(turn.instruction, turn.modality, turn.response) for turn in record.turns]
    return xxhash.xxh3_128_digest(repr((uri, bounds, turns)).encode())


def _records(rows: pa.RecordBatch) -> list[Record]:
    columns = (rows.column(name).to_pylist() for name in ("id", "turns", "meta"))
    return [
        Record(id, media, tuple(Turn(**turn) for turn in turns), json.loads(meta))
        for media, id, turns, meta in zip(_media(rows), *columns, strict=True)
    ]


def _media(rows: pa.RecordBatch) -> list[Candidate | None]:
    columns = (rows.column(name).to_pylist() for name in MEDIA)
    return [
        Candidate(read_uri(name), read_uri(uri), kind, *rest) if uri is not None else None
        for name, uri, kind, *rest in zip(*columns, strict=True)
    ]
