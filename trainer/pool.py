"""Pools: the conversations of one source and one modality, and their samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store import Arrays, ColumnReader, Conversation, ItemRows, Modality, Sense
from trainer.batch import Parts, Sample
from trainer.features import FEATURES_OF, Grid, rows_of
from trainer.joined import Joined, Numbers
from trainer.prompt import PromptFormat, Tokens, beginning, lead_of, lead_room, tokenize_all
from trainer.settings import TrainConfig

TOKENIZED_AT_ONCE = 1024  # conversations


class Pool:
    """Conversations of one source and one modality, with their items.

    Attributes:
        joined: the source.
        numbers: of the pool's conversations in the source, ascending, int32.
        asked_by: the sense by which alone its audio-visual conversations are asked; None if they are as written.
    """

    def __init__(
        self, joined: Joined, numbers: Numbers, modality: Modality, grid: Grid, asked_by: Sense | None = None
    ) -> None:
        self.joined, self.numbers, self.asked_by = joined, numbers, asked_by
        self._grid = grid
        self._stored = grid.stored
        features = [self._stored[feature] for feature in FEATURES_OF[modality]]
        pairs = zip(joined.readers, joined.rows, strict=True)
        chosen = [(r, rows) for r, rows in pairs if modality in (r.column.spec.modality, "audio_visual")]
        readers = [reader for reader, _ in chosen]
        self._rows = grid.row_types([reader.column.spec for reader in readers])
        self._items = ItemRows(readers, [rows for _, rows in chosen], features)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def store(self) -> str:
        """URL of the source's store."""
        return self.joined.store

    def conversations(self, places: Sequence[int] | Numbers) -> list[Conversation]:
        """The pool's conversations at these places."""
        return self.joined.take(self.numbers[np.asarray(places, np.int64)], self.asked_by)

    def leads(self, places: Sequence[int] | slice = slice(None)) -> NDArray[np.uint32]:
        """The `store.Facts.lead` of the conversations at these places: equal texts have equal ones."""
        leads: NDArray[np.uint32] = self.joined.conversations.facts.lead[self.numbers[places]]
        return leads

    def find(self, keys: Sequence[str | None]) -> NDArray[np.int64]:
        """Which of these keys each conversation's item has, int64 [N]; -1 for another one."""
        found: NDArray[np.int64] = self.joined.conversations.find(keys)[self.numbers]
        return found

    def pending(self, places: Sequence[int], tokenizer: Any, prompt: PromptFormat) -> list["PendingSample"]:
        """The conversations at these places, tokenized; no item is read."""
        conversations = self.conversations(places)
        shapes = [self._items.shapes(self.numbers.item(place)) for place in places]
        hollow = [self._grid.select({n: np.empty((shape[0], 0)) for n, shape in item.items()}) for item in shapes]
        texts = [(c.turns, rows_of(arrays)) for c, arrays in zip(conversations, hollow, strict=True)]
        tokens = tokenize_all(texts, tokenizer, prompt)
        rows = [{feature: len(array) for feature, array in arrays.items()} for arrays in hollow]
        parts = zip(places, conversations, tokens, rows, shapes, strict=True)
        return [PendingSample(self, *values) for values in parts]

    def samples(self, places: Sequence[int], tokenizer: Any, prompt: PromptFormat) -> list[Sample]:
        """The conversations at these places, their items read into new memory.

        Raises:
            DamagedError: an item is damaged.
        """
        return [pending.sample() for pending in self.pending(places, tokenizer, prompt)]

    def read_features_into(self, place: int, shapes: Mapping[str, tuple[int, ...]], parts: Parts) -> None:
        """See `PendingSample.read_features_into`."""
        whole: Arrays = {}
        copies: list[tuple[str, NDArray[Any]]] = []
        for feature, arrays in parts.items():
            name = self._stored[feature]
            fits = [array for array in arrays if array.shape == shapes[name]]  # the others are cut or sub-sampled
            whole[name] = fits[0] if fits else np.empty(shapes[name], arrays[0].dtype)
            copies += [(feature, array) for array in arrays if array is not whole[name]]
        self._items.read_item_into(self.numbers.item(place), whole)
        if copies:
            selected = self._grid.select(whole)
            for feature, array in copies:
                array[:] = selected[feature][: len(array)]

    def remote_shards(self, place: int) -> list[tuple[ColumnReader, int]]:
        """The shards of a conversation's item that must be copied to the cache before they are read."""
        return self._items.remote_shards(self.numbers.item(place))

    def room(self, rows: Mapping[str, int]) -> Arrays:
        """Uninitialized arrays for this many rows of each feature."""
        return {name: np.empty((count, self._rows[name].width), self._rows[name].dtype) for name, count in rows.items()}


@dataclass(frozen=True)
class PendingSample:
    """A tokenized conversation of a pool, whose item is still to be read.

    Attributes:
        pool: the pool that holds it.
        place: its place in that pool.
        conversation: itself.
        tokens: its tokens.
        rows: how many rows of each feature the run reads of its item.
        shapes: of its item's arrays as stored.
    """

    pool: Pool
    place: int
    conversation: Conversation
    tokens: Tokens
    rows: dict[str, int]
    shapes: dict[str, tuple[int, ...]]

    def read_features_into(self, parts: Parts) -> None:
        """Read the item's rows into place; threads may call this concurrently.

        Args:
            parts: by feature, arrays that each take the item's first rows, as many as they have room for.

        Raises:
            DamagedError: the item is damaged.
        """
        self.pool.read_features_into(self.place, self.shapes, parts)

    def sample(self) -> Sample:
        """The conversation as a sample, its item read into new memory.

        Raises:
            DamagedError: the item is damaged.
        """
        arrays = self.pool.room(self.rows)
        self.read_features_into({name: [array] for name, array in arrays.items()})
        return Sample(self.tokens, arrays)


def taught(
    joined: Joined,
    numbers: Numbers,
    modality: Modality,
    asked_by: Sense | None,
    grid: Grid,
    tokenizer: Any,
    config: TrainConfig,
) -> NDArray[np.bool_]:
    """Which conversations have a response within `max_tokens`; the others would teach nothing. Bool, one for each.

    Only those long enough to be at risk are tokenized, up to where the first response begins.
    """
    room = config.max_tokens - len(beginning(tokenizer))
    facts = joined.conversations.facts
    rows = joined.longest(grid)[modality]
    needed = lead_room(facts.lead[numbers], facts.media[numbers], rows, config.prompt)
    teaches = np.ones(len(numbers), bool)
    risky = np.flatnonzero(needed >= room)
    for first in range(0, len(risky), TOKENIZED_AT_ONCE):
        places = risky[first : first + TOKENIZED_AT_ONCE]
        leads = [lead_of(c.turns) for c in joined.take(numbers[places], asked_by)]
        lengths = [rows_of(grid.select(joined.hollow(number, modality))) for number in numbers[places].tolist()]
        tokens = tokenize_all(list(zip(leads, lengths, strict=True)), tokenizer, config.prompt)
        teaches[places] = [any(t.answers[: config.max_tokens]) for t in tokens]
    return teaches
