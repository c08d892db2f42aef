"""What a curation writes: conversations that the trainer reads, every verdict, and the fused captions as a column."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa

from curate.curation import Cell, TaskName
from curate.deciding import Decided
from curate.run import FOLDER, Curation
from curate.selection import Chosen
from curate.writing import Fused
from store import ColumnSpec, Conversation, Corpus, Failure, Feature, create_column
from store.conversation import rows_of, save_rows
from store.table import load_table, save_batches

T = TypeVar("T")
AT_ONCE = 4096  # rows of a batch
# The conversations that each task is written into: the first are for stage 1 of training, the others for stage 2.
WRITTEN_INTO: dict[TaskName, str] = {
    "description": "descriptions",
    "conversation": "instructions",
    "reasoning": "instructions",
}
FEATURES = {"audio": "audio", "visual": "visual", "audio_visual": "both"}  # of the column, by modality
VERDICT = pa.struct(
    [
        ("criterion", pa.string()),
        ("by", pa.string()),
        ("outcome", pa.string()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("reason", pa.string()),
        ("evidence", pa.list_(pa.string())),
    ]
)
RECEIPT = pa.struct(
    [
        ("template", pa.string()),
        ("digest", pa.string()),
        ("served", pa.string()),
        ("replies", pa.int64()),
        ("prompt", pa.int64()),
        ("completion", pa.int64()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("task", pa.string()),
        ("modality", pa.string()),
        ("rank", pa.int64()),
        ("key", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("turns", pa.list_(pa.struct([("instruction", pa.string()), ("response", pa.string())]))),
        ("captions", pa.string()),
        ("verdicts", pa.list_(VERDICT)),
        ("receipts", pa.list_(RECEIPT)),
    ]
)


def id_of(cell: Cell, rank: int) -> str:
    """The id of an item."""
    return f"{cell}-{rank:06d}"


def row_of(decided: Decided, one: Chosen) -> dict[str, Any]:
    """An item's row of the verdicts.

    Args:
        decided: the item.
        one: what is chosen of its cell.
    """
    item = decided.item
    outcome = {"failed": "dropped", "passed": "kept"}.get(decided.result, decided.result)
    verdicts, reason = [*decided.verdicts], decided.reason
    if repeat := one.repeats.get(item.rank):
        outcome, reason = "dropped", f"diversity: {repeat.reason}"
        verdicts.append(repeat)
    return {
        "id": id_of(item.cell, item.rank),
        "task": item.cell.task,
        "modality": item.cell.modality,
        "rank": item.rank,
        "key": item.key,
        "outcome": outcome,
        "reason": reason,
        "turns": [{"instruction": turn.instruction, "response": turn.response} for turn in decided.turns],
        "captions": json.dumps(dict(decided.fused), sort_keys=True, ensure_ascii=False),
        "verdicts": [verdict._asdict() for verdict in verdicts],
        "receipts": _receipts(decided),
    }


def save_all(curation: Curation, chosen: dict[Cell, Chosen]) -> list[str]:
    """Write all that a curation makes; return the names of the conversations."""
    verdicts, cells = _Rows(partial(pa.RecordBatch.from_pylist, schema=SCHEMA)), list(chosen)
    kept = {_name(curation, cell): _Rows(rows_of) for cell in chosen}
    for decided in curation.decided(chosen):
        place = cells.index(decided.item.cell), decided.item.rank
        row = row_of(decided, chosen[decided.item.cell])
        verdicts.add(place, row)
        if row["outcome"] == "kept":
            kept[_name(curation, decided.item.cell)].add(place, _conversation(curation.settings.name, decided))
    with curation.storage.lock():
        save_fused(curation, chosen)
        name = f"{FOLDER}/{curation.settings.name}/verdicts.parquet"
        save_batches(curation.storage, name, verdicts.in_order(), SCHEMA)
        for name, conversations in kept.items():
            save_rows(curation.storage, name, conversations.in_order())
    return list(kept)


class _Rows(Generic[T]):
    """Rows in Arrow, which takes a fraction of what objects take, until they are put in order.

    Args:
        batch: makes a batch of rows.
    """

    def __init__(self, batch: Callable[[list[T]], pa.RecordBatch]) -> None:
        self._batch, self._waiting = batch, list[T]()
        self._batches: list[pa.RecordBatch] = []
        self._places: list[tuple[int, int]] = []

    def add(self, place: tuple[int, int], row: T) -> None:
        """Add a row; places are of cell and rank."""
        self._places.append(place)
        self._waiting.append(row)
        if len(self._waiting) == AT_ONCE:
            self._flush()

    def in_order(self) -> Iterator[pa.RecordBatch]:
        """All rows by their places."""
        self._flush()
        table = pa.Table.from_batches(self._batches)
        order = sorted(range(len(self._places)), key=self._places.__getitem__)
        for start in range(0, len(order), AT_ONCE):
            yield from table.take(order[start : start + AT_ONCE]).combine_chunks().to_batches()

    def _flush(self) -> None:
        if self._waiting or not self._batches:
            self._batches.append(self._batch(self._waiting))
            self._waiting = []


def _name(curation: Curation, cell: Cell) -> str:
    """The name of the conversations that a cell is written into."""
    return f"{curation.settings.name}-{WRITTEN_INTO[cell.task]}"


def _conversation(name: str, decided: Decided) -> Conversation:
    item = decided.item
    meta: dict[str, object] = {
        "curation": name,
        "task": item.cell.task,
        "rank": item.rank,
        "receipts": _receipts(decided),
        "scores": {f"{v.criterion} ({v.by})": v.score for v in decided.verdicts},
    }
    return Conversation(id_of(item.cell, item.rank), item.key, decided.turns, meta)


def _receipts(decided: Decided) -> list[dict[str, Any]]:
    return [
        {"template": receipt.template, "digest": receipt.digest, "served": receipt.served, **receipt.usage._asdict()}
        for receipt in decided.receipts
    ]


def load_verdicts(curation: Curation) -> list[dict[str, Any]]:
    """Read the rows of a curation's verdicts.

    Raises:
        UserError: there are none yet, or they are damaged.
    """
    table = load_table(curation.storage, f"{FOLDER}/{curation.settings.name}/verdicts.parquet", SCHEMA)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def save_fused(curation: Curation, chosen: dict[Cell, Chosen]) -> str | None:
    """Write the fused captions of the clips that were drawn as a text column; return its name, None if there are none.

    Its digest is of the captions too, so that a column of one name always holds the same.
    """
    texts = dict(_fused(curation, chosen))
    if not texts:
        return None
    features = sorted({feature for captions in texts.values() for feature in captions})
    replies = hashlib.sha256(json.dumps(sorted(texts.items())).encode()).hexdigest()
    spec = ColumnSpec(
        name="fused",
        modality="visual" if curation.settings.captions.frames else "audio",
        numerics={
            "version": 1,
            "captions": {column.name: column.spec.fingerprint for column in curation.captions.columns},
            "templates": {m: curation.templates[f"fusion-{m}"].digest for m in FEATURES},
            "model": curation.settings.generator.model,
            "replies": replies,
        },
        features={feature: Feature(shape=(None,), dtype="text") for feature in features},
    )
    column = create_column(curation.storage, spec, {"curation": curation.settings.name})
    finished = frozenset(column.shards())
    for shard, items in Corpus.load(curation.storage).shards.items():
        if shard in finished:
            continue
        with column.write_shard(shard) as writer:
            for item in items:
                if captions := texts.get(item.key):
                    arrays = {f: np.array([captions[f]] if f in captions else [], np.str_) for f in features}
                    writer.add(item.key, arrays, {"kind": item.kind})
                else:
                    writer.fail(Failure(key=item.key, code="absent", reason="no instruction was written about it"))
    return column.name


def _fused(curation: Curation, chosen: dict[Cell, Chosen]) -> Iterable[tuple[str, dict[str, str]]]:
    """The fused captions of each clip up to the last that is needed, by feature of the column."""
    found: dict[str, dict[str, str]] = {}
    for item in curation.needed(chosen):
        fused = curation.writing.fused(item.key, item.cell.modality)
        if isinstance(fused, Fused):
            found.setdefault(item.key, {}).update({FEATURES[m]: text for m, text in fused.texts.items()})
    return found.items()
