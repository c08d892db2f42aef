"""What a run trains on: conversations joined with columns, in one endless mixed order."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from store import (
    Arrays,
    Column,
    ColumnReader,
    ColumnSpec,
    Conversation,
    Mixture,
    Modality,
    Order,
    Storage,
    Stream,
    UserError,
    load_conversations,
    open_column,
    places_of,
)
from store.console import console
from trainer.batch import Sample
from trainer.features import PERCEIVES, Grid, rows_of
from trainer.prompt import tokenize
from trainer.settings import Source, TrainConfig

MIXTURE_PERIOD = 1000  # places in which the shares of the pools are held exactly
READ_AT_ONCE = 16  # samples that statistics are taken of


class Joined:
    """The conversations of one source whose media the columns hold.

    Attributes:
        usable: the conversations to train on.
        left_out: how many were not, by reason.
        columns: the columns that are read.
    """

    def __init__(self, source: Source, config: TrainConfig) -> None:
        storage = Storage(source.store)
        self.columns: list[Column] = []
        for field, name in (("visual", config.visual), ("audio", config.audio)):
            if name is not None:
                column = open_column(storage, name)
                if column.spec.modality != field:
                    raise UserError(f"field {field!r}: column {column.name} is {column.spec.modality}")
                self.columns.append(column)
        self.readers = [ColumnReader(column) for column in self.columns]
        self.usable: list[Conversation] = []
        self.left_out: Counter[str] = Counter()
        for conversation in load_conversations(storage, source.conversations):
            reason = self._fault(conversation)
            if reason:
                self.left_out[reason] += 1
            else:
                self.usable.append(conversation)

    def _fault(self, conversation: Conversation) -> str | None:
        """Why a conversation cannot be used, or None."""
        for modality in ("visual", "audio"):
            if conversation.modality not in (modality, "audio_visual"):
                continue
            reader = next((r for r in self.readers if r.column.spec.modality == modality), None)
            if reader is None:
                return f"{modality}: this run has no such column"
            key = conversation.key or ""
            if key not in reader:
                failure = reader.failed.get(key)
                return f"{modality}: {failure.code}" if failure else f"{modality}: not featurized"
        return None


class TrainingData:
    """An endless stream of samples; the place in it is the only state.

    Attributes:
        size: usable conversations in all sources, of the modalities that are mixed.
        left_out: conversations left out, by reason.
        specs: the columns' specs by modality.
        builds: how each column's encoder is built again, by modality.
        widths: the width D of each feature.
    """

    def __init__(self, config: TrainConfig, tokenizer: Any) -> None:
        self._config, self._tokenizer = config, tokenizer
        self._grid = Grid(config.frames, config.segments)
        self._joined = [Joined(source, config) for source in config.sources]
        self.left_out = sum((joined.left_out for joined in self._joined), Counter[str]())
        self.specs: dict[str, ColumnSpec] = {}
        self.builds: dict[str, dict[str, object]] = {}
        for column in (column for joined in self._joined for column in joined.columns):
            known = self.specs.setdefault(column.spec.modality, column.spec)
            if known != column.spec:
                raise UserError(f"field 'sources': columns {known.folder} and {column.name} differ between stores")
            self.builds[column.spec.modality] = column.build
        self.widths = self._grid.widths(self.specs)
        self._pools: dict[str, tuple[Stream, list[Conversation]]] = {}
        self._mixture = Mixture(self._shares())
        self.size = sum(len(pool) for _, pool in self._pools.values())
        self._orders = {
            name: Order(len(pool), config.seed + i) for i, (name, (_, pool)) in enumerate(self._pools.items())
        }

    def _shares(self) -> dict[str, int]:
        """Integer weights of the pools, one pool for each modality of each source."""
        wanted = self._config.mixture
        shares: dict[str, float] = {}
        for number, (source, joined) in enumerate(zip(self._config.sources, self._joined, strict=True)):
            for modality in PERCEIVES:
                pool = [c for c in joined.usable if c.modality == modality]
                if pool and (wanted is None or modality in wanted):
                    name = f"{number}.{modality}"
                    self._pools[name] = self._stream(joined, modality, pool), pool
                    shares[name] = source.weight * len(pool)
        if wanted is not None:
            shares = self._reweigh(shares, {str(m): w for m, w in wanted.items()})
        if not shares:
            raise UserError(f"field 'sources': no usable conversation; left out: {dict(self.left_out) or 'none'}")
        total = sum(shares.values())
        return {name: max(1, round(MIXTURE_PERIOD * share / total)) for name, share in shares.items()}

    def _stream(self, joined: Joined, modality: Modality, pool: list[Conversation]) -> Stream:
        """The arrays that a pool's conversations perceive, by their number in the pool."""
        features = [self._grid.stored[feature] for feature in PERCEIVES[modality]]
        readers = [r for r in joined.readers if modality in (r.column.spec.modality, "audio_visual")]
        keys = [conversation.key if readers else None for conversation in pool]
        return Stream(readers, keys, features, tolerate=self._config.tolerate)

    @staticmethod
    def _reweigh(shares: dict[str, float], wanted: dict[str, int]) -> dict[str, float]:
        totals: Counter[str] = Counter()
        for name, share in shares.items():
            totals[name.split(".")[1]] += share  # type: ignore[assignment]
        absent = wanted.keys() - totals.keys()
        if absent:
            raise UserError(f"field 'mixture': no usable conversation is {' or '.join(sorted(absent))}")
        return {n: wanted[n.split(".")[1]] * share / totals[n.split(".")[1]] for n, share in shares.items()}

    def counts(self) -> dict[str, int]:
        """Usable conversations of each modality."""
        counts: Counter[str] = Counter()
        for name, (_, pool) in self._pools.items():
            counts[name.split(".")[1]] += len(pool)
        return dict(counts)

    def sample(self, place: int) -> Sample:
        """The sample at a place of the stream: a pure function of the place, the seed and the data."""
        return self._samples([place])[0]

    def samples(self, step: int, rank: int, ranks: int) -> list[Sample]:
        """One rank's share of a global batch, read at once.

        Raises:
            DamagedError: items are damaged, and no more are tolerated.
        """
        return self._samples(places_of(step, self._config.global_batch, rank, ranks))

    def some_items(self, count: int) -> Iterator[Sample]:
        """The first samples of the stream, to take statistics of."""
        for first in range(0, count, READ_AT_ONCE):
            yield from self._samples(range(first, min(count, first + READ_AT_ONCE)))

    def _samples(self, places: Sequence[int]) -> list[Sample]:
        """The samples at these places; each pool's items are read in one batch."""
        by_pool: dict[str, dict[int, int]] = {}
        for place in places:
            name, cursor = self._mixture[place]
            by_pool.setdefault(name, {})[place] = self._orders[name][cursor]
        samples: dict[int, Sample] = {}
        for name, chosen in by_pool.items():
            stream, pool = self._pools[name]
            batch = stream.__getitems__(list(chosen.values()))
            for record in batch.replaced:
                console.print(f"replaced by {pool[record.by].id}: {record.reason}")
            for number, (place, read) in enumerate(zip(chosen, batch.places, strict=True)):
                samples[place] = self._sample(pool[read], self._grid.select(batch.item(number)))
        return [samples[place] for place in places]

    def _sample(self, conversation: Conversation, arrays: Arrays) -> Sample:
        tokens = tokenize(conversation.turns, rows_of(arrays), self._tokenizer, self._config.prompt)
        return Sample(tokens, arrays, f"{conversation.id} ({conversation.key})")
