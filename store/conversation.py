"""Conversations: questions and answers about media items. Many data sets can share the same columns."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from store.errors import UserError
from store.items import batched
from store.storage import Storage
from store.table import collector_paused, load_table, opened_table, save_batches

Modality = Literal["text", "visual", "audio", "audio_visual"]
Sense = Literal["visual", "audio"]
MODALITIES: tuple[Modality, ...] = ("text", "visual", "audio", "audio_visual")
FOLDER = "conversations"
WRITTEN_AT_ONCE = 1 << 16
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("key", pa.string()),
        (
            "turns",
            pa.list_(pa.struct([("instruction", pa.string()), ("modality", pa.string()), ("response", pa.string())])),
        ),
        ("meta", pa.string()),
    ]
)


@dataclass(frozen=True)
class Turn:
    """One question and answer; `modality` is what the instruction refers to (`text`: no media)."""

    instruction: str
    modality: Modality
    response: str


@dataclass(frozen=True)
class Conversation:
    """Turns about one media item, or about none.

    Attributes:
        id: the id in the source.
        key: the media item's key in the corpus, or None for text only.
        turns: one or more.
        meta: other fields of the source, JSON values by name.
    """

    id: str
    key: str | None
    turns: tuple[Turn, ...]
    meta: dict[str, object] = field(default_factory=dict)

    @property
    def modality(self) -> Modality:
        """The combined modality of all turns."""
        seen = {turn.modality for turn in self.turns} - {"text"}
        if not seen:
            return "text"
        return "audio_visual" if len(seen) > 1 else seen.pop()

    def asked_by(self, sense: Sense) -> "Conversation | None":
        """An audio-visual conversation as asked by one sense alone; None if a turn needs the other sense.

        A turn that perceives by both can be asked by either (paper, Table 5: the same model with sight only); a turn
        that asks by sound cannot be asked by sight.
        """
        seen = {turn.modality for turn in self.turns}
        if "audio_visual" not in seen or not seen <= {"text", "audio_visual", sense}:
            return None
        turns = tuple(replace(t, modality=sense) if t.modality == "audio_visual" else t for t in self.turns)
        return replace(self, turns=turns)


def save_conversations(storage: Storage, name: str, conversations: Iterable[Conversation]) -> None:
    """Write `conversations/<name>.parquet`; only as many conversations as are written at once are in memory."""
    save_rows(storage, name, map(rows_of, batched(conversations, WRITTEN_AT_ONCE)))


def save_rows(storage: Storage, name: str, batches: Iterable[pa.RecordBatch]) -> None:
    """Write `conversations/<name>.parquet` from rows of `SCHEMA`, of which some thousands are in memory at a time."""
    save_batches(storage, f"{FOLDER}/{name}.parquet", batches, SCHEMA)


def rows_of(conversations: Sequence[Conversation]) -> pa.RecordBatch:
    """Rows of `SCHEMA`."""
    columns: dict[str, list[Any]] = {
        "id": [c.id for c in conversations],
        "key": [c.key for c in conversations],
        "turns": [[vars(turn) for turn in c.turns] for c in conversations],
        "meta": [json.dumps(c.meta, sort_keys=True) for c in conversations],
    }
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def load_conversations(storage: Storage, name: str) -> list[Conversation]:
    """Read `conversations/<name>.parquet`.

    Raises:
        UserError: the store has no conversations of that name, or they are damaged.
    """
    table = load_table(storage, f"{FOLDER}/{name}.parquet", SCHEMA)
    with collector_paused():
        return conversations_in(table)


def conversations_in(rows: pa.Table | pa.RecordBatch) -> list[Conversation]:
    """The conversations in rows of `SCHEMA`."""
    ids, keys, turns, meta = (rows[name].to_pylist() for name in SCHEMA.names)
    return [
        Conversation(id_, key, tuple(Turn(**turn) for turn in exchanges), json.loads(details))
        for id_, key, exchanges, details in zip(ids, keys, turns, meta, strict=True)
    ]


class Outline:
    """A summary of conversations without their turns; each half is read when it is asked for."""

    def __init__(self, keys: Callable[[], Iterable[str]], splits: Callable[[], Iterable[str]]) -> None:
        self._keys, self._splits = keys, splits

    @cached_property
    def keys(self) -> frozenset[str]:
        """Keys of the media items."""
        return frozenset(self._keys())

    @cached_property
    def splits(self) -> frozenset[str]:
        """The values of `split` in their metadata."""
        return frozenset(self._splits())


def load_outline(storage: Storage, name: str) -> Outline:
    """The outline of `conversations/<name>.parquet`.

    Raises:
        UserError: the store has no conversations of that name, or (when they are read) they are damaged.
    """
    check_conversations(storage, name)

    def read(column: str) -> Iterator[pa.Array]:
        with opened_table(storage, f"{FOLDER}/{name}.parquet", SCHEMA) as table:
            for batch in table.iter_batches(WRITTEN_AT_ONCE, columns=[column], use_threads=False):
                yield batch.column(0)

    def splits() -> Iterator[str]:
        for metas in read("meta"):
            named = metas.filter(pc.match_substring(metas, '"split"'))
            found = (json.loads(meta).get("split") for meta in pc.unique(named).to_pylist())
            yield from (split for split in found if isinstance(split, str))

    return Outline(lambda: (key for keys in read("key") for key in keys.drop_null().to_pylist()), splits)


def count_conversations(storage: Storage, name: str) -> int:
    """How many conversations `conversations/<name>.parquet` holds.

    Raises:
        UserError: the store has no conversations of that name, or they are damaged.
    """
    with opened_table(storage, f"{FOLDER}/{name}.parquet", SCHEMA) as table:
        return int(table.metadata.num_rows)


def list_conversations(storage: Storage) -> list[str]:
    """The sorted names of a store's conversation files."""
    return [name.removesuffix(".parquet") for name in storage.names(FOLDER) if name.endswith(".parquet")]


def check_conversations(storage: Storage, name: str) -> None:
    """Refuse conversations that a store does not have; they are not read.

    Raises:
        UserError: names those that it has.
    """
    if name not in (names := list_conversations(storage)):
        raise UserError(f"{storage.url}: there are no conversations {name!r}; it has: {', '.join(names) or 'none'}")
