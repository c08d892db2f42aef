"""Conversations: questions and answers about media items. Many data sets can share the same columns."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from store.errors import UserError
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
    coming = iter(conversations)
    batches = iter(lambda: list(itertools.islice(coming, WRITTEN_AT_ONCE)), [])
    save_batches(storage, f"{FOLDER}/{name}.parquet", map(rows_of, batches), SCHEMA)


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


@dataclass(frozen=True)
class Outline:
    """A summary of conversations without their turns.

    Attributes:
        keys: keys of the media items.
        splits: the values of `split` in their metadata.
    """

    keys: frozenset[str]
    splits: frozenset[str]


def load_outline(storage: Storage, name: str) -> Outline:
    """Read the outline of `conversations/<name>.parquet`.

    Raises:
        UserError: the store has no conversations of that name, or they are damaged.
    """
    table = load_table(storage, f"{FOLDER}/{name}.parquet", SCHEMA)
    splits = (json.loads(meta).get("split") for meta in table["meta"].to_pylist())
    return Outline(
        frozenset(filter(None, table["key"].to_pylist())), frozenset(s for s in splits if isinstance(s, str))
    )


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
