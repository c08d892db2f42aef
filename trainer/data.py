"""What a run trains on: conversations joined with columns, in one mixed order."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from store import (
    ORDER_VERSION,
    Arrays,
    Column,
    ColumnReader,
    ColumnSpec,
    Conversation,
    DamagedError,
    Modality,
    Order,
    Phase,
    Schedule,
    Sense,
    Storage,
    Stream,
    UserError,
    check_conversations,
    load_conversations,
    open_column,
    places_of,
)
from store.console import console
from trainer.batch import Parts, Sample
from trainer.features import FEATURES, FEATURES_OF, Grid, rows_of
from trainer.prompt import (
    PromptFormat,
    Tokens,
    beginning,
    check_prompt,
    has_response,
    lead_of,
    longest_lead,
    tokenize_all,
)
from trainer.settings import Source, TrainConfig

WEIGHT_UNIT = 1000  # sources' weights are kept to three decimals
TOKENIZED_AT_ONCE = 1024  # conversations


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


def check_sources(config: TrainConfig) -> None:
    """Refuse missing stores, columns and conversations before an LLM is looked for, which may take long on a hub.

    Raises:
        UserError: one is missing, or a column does not hold the run's T or K.
    """
    for source in (*config.sources, *(config.evaluation.sources if config.evaluation else ())):
        storage = Storage(source.store)
        columns = open_columns(storage, config.visual, config.audio)
        Grid(config.frames, config.segments).row_types(column.spec for column in columns)
        check_conversations(storage, source.conversations)


class Joined:
    """The conversations of one source, joined with the columns that hold their media.

    Attributes:
        store: its URL.
        usable: the conversations to train on.
        left_out: the others, with reasons.
        columns: the columns that are read.
    """

    def __init__(self, source: Source, visual: str | None, audio: str | None) -> None:
        storage = Storage(source.store)
        self.store = storage.url
        self.columns = open_columns(storage, visual, audio)
        self.readers = [ColumnReader(column) for column in self.columns]
        self.usable: list[Conversation] = []
        self.left_out: list[LeftOut] = []
        for conversation in load_conversations(storage, source.conversations):
            reason = self._fault(conversation)
            if reason:
                self.left_out.append(LeftOut(conversation.id, conversation.key, reason))
            else:
                self.usable.append(conversation)

    def hollow(self, conversation: Conversation) -> Arrays:
        """Arrays as long as those of a conversation's item, but of zero width; nothing is read."""
        needed = [r for r in self.readers if conversation.modality in (r.column.spec.modality, "audio_visual")]
        return {
            name: np.empty((r.shape(str(conversation.key), name)[0], 0)) for r in needed for name in r.index.features
        }

    def longest(self, grid: Grid) -> dict[Modality, int]:
        """The most rows that any item takes, by modality."""
        most: dict[str, int] = dict.fromkeys(FEATURES, 0)
        for reader in self.readers:
            for number, name in enumerate(reader.index.features):
                for length in np.unique(reader.index.shape[:, number, 0]).tolist():
                    kept = grid.select({name: np.empty((length, 0))})
                    most |= {feature: max(most[feature], len(array)) for feature, array in kept.items()}
        return rows_of({feature: np.empty((length, 0)) for feature, length in most.items()})

    def _fault(self, conversation: Conversation) -> str | None:
        """Why a conversation cannot be used; None if it can."""
        if not any(map(has_response, conversation.turns)):
            return "no response"
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


class Pool:
    """Conversations of one source and one modality, with their items.

    Attributes:
        store: URL of the source's store.
        conversations: of the pool, in the source's order.
    """

    def __init__(self, joined: Joined, conversations: list[Conversation], modality: Modality, grid: Grid) -> None:
        self.store, self.conversations = joined.store, conversations
        self._grid = grid
        self._stored = grid.stored
        features = [self._stored[feature] for feature in FEATURES_OF[modality]]
        readers = [r for r in joined.readers if modality in (r.column.spec.modality, "audio_visual")]
        keys = [conversation.key if readers else None for conversation in conversations]
        self._rows = grid.row_types([reader.column.spec for reader in readers])
        self._stream = Stream(readers, keys, features)

    def pending(self, numbers: Sequence[int], tokenizer: Any, prompt: PromptFormat) -> list["PendingSample"]:
        """The conversations of these numbers, tokenized; no item is read."""
        shapes = [self._stream.shapes(number) for number in numbers]
        hollow = [self._grid.select({n: np.empty((shape[0], 0)) for n, shape in item.items()}) for item in shapes]
        texts = [(self.conversations[n].turns, rows_of(arrays)) for n, arrays in zip(numbers, hollow, strict=True)]
        tokens = tokenize_all(texts, tokenizer, prompt)
        rows = [{feature: len(array) for feature, array in arrays.items()} for arrays in hollow]
        return [PendingSample(self, *values) for values in zip(numbers, tokens, rows, shapes, strict=True)]

    def samples(self, numbers: Sequence[int], tokenizer: Any, prompt: PromptFormat) -> list[Sample]:
        """The conversations of these numbers, their items read into new memory.

        Raises:
            DamagedError: an item is damaged.
        """
        return [pending.sample() for pending in self.pending(numbers, tokenizer, prompt)]

    def read_features_into(self, number: int, shapes: Mapping[str, tuple[int, ...]], parts: Parts) -> None:
        """See `PendingSample.read_features_into`."""
        whole: Arrays = {}
        copies: list[tuple[str, NDArray[Any]]] = []
        for feature, arrays in parts.items():
            name = self._stored[feature]
            fits = [array for array in arrays if array.shape == shapes[name]]  # the others are cut or sub-sampled
            whole[name] = fits[0] if fits else np.empty(shapes[name], arrays[0].dtype)
            copies += [(feature, array) for array in arrays if array is not whole[name]]
        self._stream.read_item_into(number, whole)
        if copies:
            selected = self._grid.select(whole)
            for feature, array in copies:
                array[:] = selected[feature][: len(array)]

    def remote_shards(self, number: int) -> list[tuple[ColumnReader, int]]:
        """The shards of a conversation's item that must be copied to the cache before they are read."""
        return self._stream.remote_shards(number)

    def room(self, rows: Mapping[str, int]) -> Arrays:
        """Uninitialized arrays for this many rows of each feature."""
        return {name: np.empty((count, self._rows[name].width), self._rows[name].dtype) for name, count in rows.items()}


@dataclass(frozen=True)
class PendingSample:
    """A tokenized conversation of a pool, whose item is still to be read.

    Attributes:
        pool: the pool that holds it.
        number: its number in that pool.
        tokens: its tokens.
        rows: how many rows of each feature the run reads of its item.
        shapes: of its item's arrays as stored.
    """

    pool: Pool
    number: int
    tokens: Tokens
    rows: dict[str, int]
    shapes: dict[str, tuple[int, ...]]

    @property
    def conversation(self) -> Conversation:
        """The conversation itself."""
        return self.pool.conversations[self.number]

    def read_features_into(self, parts: Parts) -> None:
        """Read the item's rows into place; threads may call this concurrently.

        Args:
            parts: by feature, arrays that each take the item's first rows, as many as they have room for.

        Raises:
            DamagedError: the item is damaged.
        """
        self.pool.read_features_into(self.number, self.shapes, parts)

    def sample(self) -> Sample:
        """The conversation as a sample, its item read into new memory.

        Raises:
            DamagedError: the item is damaged.
        """
        arrays = self.pool.room(self.rows)
        self.read_features_into({name: [array] for name, array in arrays.items()})
        c = self.conversation
        return Sample(self.tokens, arrays, c.modality, f"{c.id} ({c.key})")


def split_taught(
    joined: Joined, conversations: Sequence[Conversation], grid: Grid, tokenizer: Any, config: TrainConfig
) -> tuple[list[Conversation], list[LeftOut]]:
    """Split conversations into those with a response within `max_tokens`, and those that would teach nothing.

    Only conversations long enough to be at risk are tokenized, up to where the first response begins.
    """
    longest, start = joined.longest(grid), len(beginning(tokenizer))
    room = config.max_tokens - start
    risky = [n for n, c in enumerate(conversations) if longest_lead(c.turns, longest, config.prompt) >= room]
    mute: set[int] = set()
    for first in range(0, len(risky), TOKENIZED_AT_ONCE):
        numbers = risky[first : first + TOKENIZED_AT_ONCE]
        chosen = [conversations[n] for n in numbers]
        rows = [rows_of(grid.select(joined.hollow(c))) for c in chosen]
        tokens = tokenize_all(
            [(lead_of(c.turns), r) for c, r in zip(chosen, rows, strict=True)], tokenizer, config.prompt
        )
        mute |= {n for n, t in zip(numbers, tokens, strict=True) if not any(t.answers[: config.max_tokens])}
    reason = f"no response within max_tokens {config.max_tokens}"
    left_out = [LeftOut(conversations[n].id, conversations[n].key, reason) for n in sorted(mute)]
    return [c for n, c in enumerate(conversations) if n not in mute], left_out


def asked_by(sense: Sense, conversation: Conversation) -> Conversation | None:
    """An audio-visual conversation as asked by one sense alone; None if a turn needs the other sense.

    A turn that perceives by both can be asked by either (paper, Table 5: the same model with sight only); a turn that
    asks by sound cannot be asked by sight.
    """
    seen = {turn.modality for turn in conversation.turns}
    if "audio_visual" not in seen or not seen <= {"text", "audio_visual", sense}:
        return None
    turns = tuple(replace(t, modality=sense) if t.modality == "audio_visual" else t for t in conversation.turns)
    return replace(conversation, turns=turns)


class TrainingData:
    """A run's stream of samples; its only state is the position in it.

    Attributes:
        size: conversations in an epoch, of the modalities in the mixture.
        steps: of the run.
        left_out: conversations that are not trained on.
        specs: the columns' specs by modality.
        builds: how to rebuild each column's encoder, by modality.
        rows: width and dtype of a row of each feature.
        damaged: the damaged items met so far, by store and key, each with its error.
        identity: digest of all that determines the stream: order version, seed, G, phases, conversations, columns.
    """

    def __init__(self, config: TrainConfig, tokenizer: Any) -> None:
        check_prompt(tokenizer, config.prompt)
        self._config, self._tokenizer = config, tokenizer
        self._grid = Grid(config.frames, config.segments)
        self._joined = joined = [Joined(source, config.visual, config.audio) for source in config.sources]
        self.left_out = [left_out for j in joined for left_out in j.left_out]
        self.specs: dict[str, ColumnSpec] = {}
        self.builds: dict[str, dict[str, object]] = {}
        for column in (column for j in joined for column in j.columns):
            known = self.specs.setdefault(column.spec.modality, column.spec)
            if known != column.spec:
                raise UserError(f"field 'sources': columns {known.folder} and {column.name} differ between stores")
            self.builds[column.spec.modality] = column.build
        self.rows = self._grid.row_types(self.specs.values())
        self.damaged: dict[tuple[str, str | None], DamagedError] = {}
        self._pools: dict[str, Pool] = {}
        weights: dict[str, dict[str, int]] = {modality: {} for modality in FEATURES_OF}
        self.size = 0
        for number, source in enumerate(config.sources):
            for name, modality, drawn, times in self._pools_of(joined[number]):
                taught, mute = split_taught(joined[number], drawn, self._grid, tokenizer, config)
                self.left_out += mute
                if not taught:
                    continue
                pool = f"{number}.{name}"
                self._pools[pool] = Pool(joined[number], taught, modality, self._grid)
                weights[modality][pool] = max(1, round(WEIGHT_UNIT * source.weight * times * len(taught)))
                self.size += round(times * len(taught))
        self.left_out = list(dict.fromkeys(self.left_out))  # one that is also asked by a single sense is listed once
        weights = {modality: pools for modality, pools in weights.items() if pools}
        if not weights:
            reasons = Counter(left_out.reason for left_out in self.left_out)
            raise UserError(f"field 'sources': no usable conversation; left out: {dict(reasons) or 'none'}")
        self.steps = config.steps or math.ceil(self.size * (config.epochs or 0) / config.global_batch)
        phases = self._phases({modality: sum(pools.values()) for modality, pools in weights.items()})
        self._schedule = Schedule(config.global_batch, phases, weights)
        self._orders = {
            name: Order(len(pool.conversations), config.seed + i) for i, (name, pool) in enumerate(self._pools.items())
        }
        self.identity = self._digest(phases, weights)

    def _pools_of(self, joined: Joined) -> Iterator[tuple[str, Modality, list[Conversation], float]]:
        """The pools of a source: name, modality, conversations, and how often each conversation is drawn."""
        config = self._config
        if isinstance(config.schedule, str):
            mixed = set(config.mixture or FEATURES_OF)
        else:
            mixed = {modality for phase in config.schedule for modality in phase.mixture}
        for modality in FEATURES_OF:
            conversations = [c for c in joined.usable if c.modality == modality]
            if conversations and modality in mixed:
                yield modality, modality, conversations, 1
        for sense, times in config.augment.items():
            single_sense = [changed for c in joined.usable if (changed := asked_by(sense, c))]
            if single_sense and sense in mixed:
                yield f"audio_visual-as-{sense}", sense, single_sense, times

    def _phases(self, natural: dict[str, int]) -> list[Phase]:
        """The phases of the run, each with its weights of the modalities."""
        config = self._config
        mixture = {str(m): w for m, w in config.mixture.items()} if config.mixture else natural
        if isinstance(config.schedule, str):
            together = {m: w for m, w in mixture.items() if m == "audio_visual"}
            apart = {m: w for m, w in mixture.items() if m != "audio_visual"}
            parts = {"mat": [mixture], "pt1": [together, apart], "pt2": [apart, together]}[config.schedule]
            if not all(parts):
                raise UserError(f"field 'schedule': {config.schedule} needs audio-visual conversations and others")
            shares = [float(sum(part.values())) for part in parts]
        else:
            parts = [{str(m): w for m, w in phase.mixture.items()} for phase in config.schedule]
            shares = [phase.share for phase in config.schedule]
        absent = {modality for part in parts for modality in part} - natural.keys()
        if absent:
            raise UserError(f"field 'mixture': no usable {' or '.join(sorted(absent))} conversations")
        ends = [round(self.steps * sum(shares[: i + 1]) / sum(shares)) for i in range(len(shares))]
        return [Phase(end - start, p) for start, end, p in zip([0, *ends], ends, parts, strict=False) if end > start]

    def _digest(self, phases: list[Phase], weights: dict[str, dict[str, int]]) -> str:
        digest = xxhash.xxh3_128()
        columns = sorted(spec.folder for spec in self.specs.values())
        config = self._config
        digest.update(repr((ORDER_VERSION, config.seed, config.global_batch, phases, weights, columns)).encode())
        for pool in self._pools.values():
            for c in pool.conversations:
                digest.update(repr((c.id, c.key, [(t.instruction, t.modality, t.response) for t in c.turns])).encode())
        return digest.hexdigest()

    @property
    def widths(self) -> dict[str, int]:
        """The width D of each feature."""
        return {feature: row.width for feature, row in self.rows.items()}

    def conversations(self) -> Iterator[tuple[str, Conversation]]:
        """All conversations that are trained on, each with the URL of its store."""
        return ((pool.store, c) for pool in self._pools.values() for c in pool.conversations)

    def counts(self) -> dict[str, int]:
        """Usable conversations of each modality."""
        counts: Counter[str] = Counter()
        for name, pool in self._pools.items():
            counts[name.split(".", 1)[1]] += len(pool.conversations)
        return dict(counts)

    def draw(self, step: int, rank: int, ranks: int) -> list[tuple[str, int]]:
        """One rank's share of a global batch: pairs of a pool `<source>.<modality>` and a conversation's number in it.

        It is a pure function of the step, the seed and the data.
        """
        chosen = (self._schedule[place] for place in places_of(step, self._config.global_batch, rank, ranks))
        return [(pool, self._orders[pool][cursor]) for pool, cursor in chosen]

    def pending(self, step: int, rank: int, ranks: int) -> list[PendingSample]:
        """The drawn conversations, tokenized; no item is read."""
        drawn = self.draw(step, rank, ranks)
        samples: dict[int, PendingSample] = {}
        for name in {pool for pool, _ in drawn}:
            places = [place for place, (pool, _) in enumerate(drawn) if pool == name]
            numbers = [drawn[place][1] for place in places]
            samples |= zip(
                places, self._pools[name].pending(numbers, self._tokenizer, self._config.prompt), strict=True
            )
        return [samples[place] for place in range(len(drawn))]

    def replace(self, pending: PendingSample, error: DamagedError) -> PendingSample:
        """The next conversation of the pool, in place of one whose item is damaged.

        Raises:
            DamagedError: more items are damaged than the run tolerates, or all of the pool's are.
        """
        store, conversations = pending.pool.store, pending.pool.conversations
        self._note(store, pending.conversation.key, error)
        if all((store, conversation.key) in self.damaged for conversation in conversations):
            raise error  # none is left to take its place
        number = (pending.number + 1) % len(conversations)
        (other,) = pending.pool.pending([number], self._tokenizer, self._config.prompt)
        console.print(f"replaced by {other.conversation.id}: {error}")
        return other

    def samples(self, step: int, rank: int, ranks: int) -> list[Sample]:
        """The drawn conversations, with their items in new memory.

        Raises:
            DamagedError: more items are damaged than the run tolerates.
        """
        return [self._read(pending) for pending in self.pending(step, rank, ranks)]

    def remote_shards(self, step: int, rank: int, ranks: int) -> list[tuple[ColumnReader, int]]:
        """The shards of the drawn items that must be copied to the cache before they are read."""
        drawn = self.draw(step, rank, ranks) if self.is_remote else []
        return list(dict.fromkeys(shard for name, number in drawn for shard in self._pools[name].remote_shards(number)))

    @property
    def is_remote(self) -> bool:
        """Whether any column is not on a local disk."""
        return any(not column.storage.local for joined in self._joined for column in joined.columns)

    def items(self, count: int) -> Iterator[Arrays]:
        """The arrays of `count` items of each column, taken from all over it, whether or not they are ever drawn.

        Raises:
            DamagedError: more items are damaged than the run tolerates.
        """
        for spec in self.specs.values():
            readers = {r.column.storage.url: r for j in self._joined for r in j.readers if r.column.spec == spec}
            size = sum(map(len, readers.values()))
            order = Order(max(1, size), 0)
            chosen = sorted(order[n] for n in range(min(count, size)))
            names = [n for f, n in self._grid.stored.items() if f in FEATURES_OF[spec.modality]]
            before = 0
            for url, reader in readers.items():
                stored = reader.keys()
                keys = [stored[n - before] for n in chosen if before <= n < before + len(stored)]
                before += len(stored)
                stream = Stream([reader], keys, names)
                for place, key in enumerate(keys):
                    try:
                        yield self._grid.select(stream[place])
                    except DamagedError as error:
                        self._note(url, key, error)

    def _read(self, pending: PendingSample) -> Sample:
        while True:
            try:
                return pending.sample()
            except DamagedError as error:
                pending = self.replace(pending, error)

    def _note(self, store: str, key: str | None, error: DamagedError) -> None:
        """Record a damaged item, and raise its error if that is more than the run tolerates."""
        self.damaged[store, key] = error
        if len(self.damaged) > self._config.tolerate:
            raise error
