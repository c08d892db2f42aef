"""Conversations joined with the columns that hold their media, as arrays of rows and reasons."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from store import (
    FAILURE_CODES,
    Arrays,
    Column,
    ColumnReader,
    Conversation,
    MappedConversations,
    Modality,
    Sense,
    Storage,
    UserError,
    open_column,
)
from trainer.features import FEATURES, Grid, rows_of
from trainer.settings import Source

Numbers = NDArray[np.int32]
TAKEN_AT_ONCE = 1024  # conversations
SENSES: tuple[Sense, ...] = ("visual", "audio")


class LeftOut(NamedTuple):
    """A conversation that cannot be trained on, and why."""

    id: str
    key: str | None
    reason: str


def open_columns(storage: Storage, visual: str | None, audio: str | None) -> list[Column]:
    """The columns of a run in one store.

    Raises:
        UserError: a column is not there, or of the other modality.
    """
    columns = []
    for field, name in (("visual", visual), ("audio", audio)):
        if name is not None:
            column = open_column(storage, name)
            if column.spec.modality != field:
                raise UserError(f"field {field!r}: column {column.name} is {column.spec.modality}")
            columns.append(column)
    return columns


class Joined:
    """The N conversations of one source, joined with the columns that hold their media.

    Attributes:
        store: its URL.
        conversations: of the source, usable or not.
        columns: the columns that are read.
        readers: of the columns.
        rows: for each reader, its row for each conversation's item, int32 [N]; -1 where it has none.
        left_out: the numbers of the conversations that cannot be trained on, by reason.
        seconds: that opening the columns and the conversations took, and the join.
    """

    def __init__(self, source: Source, visual: str | None, audio: str | None) -> None:
        storage = Storage(source.store)
        self.store = storage.url
        self.columns = open_columns(storage, visual, audio)
        times = [time.perf_counter()]
        self.readers = [ColumnReader(column) for column in self.columns]
        times.append(time.perf_counter())
        self.conversations = MappedConversations(storage, source.conversations)
        times.append(time.perf_counter())
        self.rows: list[Numbers] = []
        self.left_out: dict[str, Numbers] = {}
        self._usable = np.ones(len(self.conversations), bool)
        self._leave_out(~self.conversations.facts.answered, "no response")
        for sense in SENSES:
            self._join(sense)
        times.append(time.perf_counter())
        self.seconds = dict(zip(("columns", "conversations", "join"), np.diff(times).tolist(), strict=True))

    @property
    def held(self) -> int:
        """Bytes of the arrays that this process holds for itself."""
        checked = sum(reader.checked.nbytes for reader in self.readers)
        return checked + sum(array.nbytes for array in (*self.rows, *self.left_out.values(), self._usable))

    @property
    def maps(self) -> dict[str, int]:
        """Sizes in bytes of what all processes of the machine map, by path."""
        mapped = self.conversations.maps
        return mapped | {path: size for reader in self.readers for path, size in reader.index.maps.items()}

    def numbers(self, modality: Modality, asked_by: Sense | None = None) -> Numbers:
        """The usable conversations of a combined modality; or those that can be asked by one sense alone instead."""
        facts = self.conversations.facts
        chosen = facts.can_ask(asked_by) if asked_by else facts.of_modality(modality)
        return np.flatnonzero(chosen & self._usable).astype(np.int32)

    def take(self, numbers: Sequence[int] | Numbers, asked_by: Sense | None = None) -> list[Conversation]:
        """The conversations of these numbers, as written or as asked by one sense alone."""
        taken = self.conversations.take(numbers)
        return [c.asked_by(asked_by) or c for c in taken] if asked_by else taken

    def hollow(self, number: int, modality: Modality) -> Arrays:
        """Arrays as long as those of a conversation's item, but of zero width; nothing is read."""
        pairs = [(reader, rows.item(number)) for reader, rows in zip(self.readers, self.rows, strict=True)]
        return {
            name: np.empty((reader.shape_at(row, n)[0], 0))
            for reader, row in pairs
            if modality in (reader.column.spec.modality, "audio_visual")
            for n, name in enumerate(reader.index.features)
        }

    def longest(self, grid: Grid) -> dict[Modality, int]:
        """The most rows that any item takes, by modality."""
        most: dict[str, int] = dict.fromkeys(FEATURES, 0)
        for reader in self.readers:
            for name, lengths in zip(reader.index.features, reader.index.lengths, strict=True):
                for length in lengths:
                    kept = grid.select({name: np.empty((length, 0))})
                    most |= {feature: max(most[feature], len(array)) for feature, array in kept.items()}
        return rows_of({feature: np.empty((length, 0)) for feature, length in most.items()})

    def _join(self, sense: Sense) -> None:
        """Find the rows of one sense's column; leave out the conversations that need it and have none."""
        needs = self.conversations.facts.perceives(sense)
        reader = next((r for r in self.readers if r.column.spec.modality == sense), None)
        if reader is None:
            self._leave_out(needs, f"ask by {sense}, for which this run has no column ('{sense}' is null)")
            return
        size, index = len(reader), reader.index
        rows = index.find(self.conversations.facts.key)
        codes = index.codes()
        code = codes[np.maximum(rows - size, 0)] if len(codes) else np.zeros(len(rows), np.uint8)
        for number, name in enumerate(FAILURE_CODES):
            self._leave_out(needs & (rows >= size) & (code == number), f"{sense}: {name}")
        self._leave_out(needs & (rows < 0), f"{sense}: not featurized")
        rows[rows >= size] = -1
        self.rows.append(rows)

    def _leave_out(self, chosen: NDArray[np.bool_], reason: str) -> None:
        chosen = chosen & self._usable
        if chosen.any():
            self.left_out[reason] = np.flatnonzero(chosen).astype(np.int32)
            self._usable &= ~chosen


class LeftOuts:
    """The conversations of a run that are not trained on."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, int], tuple[Joined, Numbers]] = {}

    def add(self, source: int, joined: Joined, reason: str, numbers: Numbers) -> None:
        """Add conversations of a source; one that is there for the same reason is not added again."""
        if len(numbers):
            _, before = self._parts.get((reason, source), (joined, numbers[:0]))
            self._parts[reason, source] = joined, np.union1d(before, numbers)

    def __len__(self) -> int:
        return sum(self.reasons().values())

    def __iter__(self) -> Iterator[LeftOut]:
        return (left_out for reason in self.reasons() for left_out in self.of(reason))

    def reasons(self) -> Counter[str]:
        """How many are left out for each reason."""
        counts: Counter[str] = Counter()
        for (reason, _), (_, numbers) in self._parts.items():
            counts[reason] += len(numbers)
        return counts

    def of(self, reason: str) -> Iterator[LeftOut]:
        """Those left out for one reason, source by source."""
        for (named, _), (joined, numbers) in self._parts.items():
            if named == reason:
                for first in range(0, len(numbers), TAKEN_AT_ONCE):
                    for c in joined.take(numbers[first : first + TAKEN_AT_ONCE]):
                        yield LeftOut(c.id, c.key, reason)
