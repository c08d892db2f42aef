"""What a run trains on: conversations joined with columns, in one mixed order."""

import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import xxhash

from store import (
    ORDER_VERSION,
    Arrays,
    ColumnReader,
    ColumnSpec,
    DamagedError,
    Modality,
    Order,
    Phase,
    Schedule,
    Sense,
    Stream,
    UserError,
    places_of,
)
from store.console import console
from trainer.batch import Sample
from trainer.features import FEATURES_OF, Grid
from trainer.joined import Joined, LeftOuts
from trainer.pool import PendingSample, Pool, taught
from trainer.prompt import check_prompt
from trainer.settings import TrainConfig

WEIGHT_UNIT = 1000  # sources' weights are kept to three decimals
READ_AT_ONCE = 1024  # conversations
SEALED = "tables-"  # before a digest of tables' checksums; earlier versions saved one of every text


class _Drawn(NamedTuple):
    """A kind of conversations of a source: its name, modality, the sense that alone asks, how often each is drawn."""

    name: str
    modality: Modality
    asked_by: Sense | None
    times: float


class TrainingData:
    """A run's samples, each a function of step and rank; its only state is `damaged`.

    Attributes:
        size: conversations in an epoch, of the kinds that are drawn; how often each is drawn is counted.
        steps: of the run.
        left_out: conversations that are not trained on.
        specs: the columns' specs by modality.
        builds: how to rebuild each column's encoder, by modality.
        rows: width and dtype of a row of each feature.
        damaged: the damaged items met so far, by store and key, each with its error.
        identity: digest of all that determines the stream: order version, seed, G, phases, conversations, columns.
    """

    def __init__(self, config: TrainConfig, tokenizer: Any) -> None:
        started = time.perf_counter()
        check_prompt(tokenizer, config.prompt)
        self._config, self._tokenizer = config, tokenizer
        self._grid = Grid(config.frames, config.segments)
        self._joined = joined = [Joined(source, config.visual, config.audio) for source in config.sources]
        self.left_out = LeftOuts()
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
            for reason, numbers in joined[number].left_out.items():
                self.left_out.add(number, joined[number], reason, numbers)
            for modality in sorted(self._undrawn()):
                reason = f"{modality}, which '{'mixture' if config.mixture else 'schedule'}' leaves out"
                self.left_out.add(number, joined[number], reason, joined[number].numbers(modality))
            for drawn in self._drawn():
                if pool := self._pool_of(number, drawn):
                    name = f"{number}.{drawn.name}"
                    self._pools[name] = pool
                    weight = WEIGHT_UNIT * source.weight * drawn.times * len(pool)
                    weights[drawn.modality][name] = max(1, round(weight))
                    self.size += round(drawn.times * len(pool))
        weights = {modality: pools for modality, pools in weights.items() if pools}
        if not weights:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.left_out.reasons().items())
            raise UserError(f"field 'sources': no usable conversation; left out: {reasons or 'none'}")
        self.steps = config.steps or math.ceil(self.size * (config.epochs or 0) / config.global_batch)
        phases = self._phases({modality: sum(pools.values()) for modality, pools in weights.items()})
        self._schedule = Schedule(config.global_batch, phases, weights)
        self._orders = {name: Order(len(pool), config.seed + i) for i, (name, pool) in enumerate(self._pools.items())}
        self._settings = ORDER_VERSION, config.seed, config.global_batch, phases, weights
        self.identity = self._digest()
        parts = sum(second for j in joined for second in j.seconds.values())
        self._seconds = {"pools and order": time.perf_counter() - started - parts}

    def _mixed(self) -> set[Modality]:
        config = self._config
        if isinstance(config.schedule, str):
            return set(config.mixture or FEATURES_OF)
        return {modality for phase in config.schedule for modality in phase.mixture}

    def _undrawn(self) -> set[Modality]:
        """The modalities whose conversations are not trained on in any way."""
        asked_by_one = {"audio_visual"} if self._config.augment else set()
        return set(FEATURES_OF) - self._mixed() - asked_by_one

    def _drawn(self) -> Iterator[_Drawn]:
        """The kinds of conversations that the mixture asks for.

        Raises:
            UserError: `augment` names a sense that the mixture leaves out, so nothing would be asked by it.
        """
        config, mixed = self._config, self._mixed()
        yield from (_Drawn(modality, modality, None, 1) for modality in FEATURES_OF if modality in mixed)
        for sense, times in config.augment.items():
            if sense not in mixed:
                raise UserError(f"field 'augment': names {sense}, which 'mixture' leaves out; give it a weight there")
            yield _Drawn(f"audio_visual-as-{sense}", sense, sense, times)

    def _pool_of(self, source: int, drawn: _Drawn) -> Pool | None:
        """A source's conversations of a kind, if any; those that teach nothing are left out."""
        joined, config = self._joined[source], self._config
        numbers = joined.numbers(drawn.modality, drawn.asked_by)
        teaches = taught(joined, numbers, drawn.modality, drawn.asked_by, self._grid, self._tokenizer, config)
        reason = f"no response within max_tokens {config.max_tokens}"
        self.left_out.add(source, joined, reason, numbers[~teaches])
        pool = numbers[teaches]
        return Pool(joined, pool, drawn.modality, self._grid, drawn.asked_by) if len(pool) else None

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

    def _digest(self) -> str:
        """The digest of the settings, the conversations' tables, and which of their rows each pool holds."""
        digest = self._digest_of_settings()
        for pool in self._pools.values():
            digest.update(f"{pool.joined.conversations.seal} {pool.asked_by} {len(pool)} ".encode())
            digest.update(pool.numbers.data)
        return SEALED + digest.hexdigest()

    def _digest_of_settings(self) -> "xxhash.xxh3_128":
        columns = sorted(spec.folder for spec in self.specs.values())
        return xxhash.xxh3_128(repr((*self._settings, columns)).encode())

    def has_identity(self, saved: str) -> bool:
        """Whether an identity that was saved is this data's. Earlier versions saved a digest of every text."""
        return saved == (self.identity if saved.startswith(SEALED) else self._digest_of_texts())

    def _digest_of_texts(self) -> str:
        digest = self._digest_of_settings()
        for pool in self._pools.values():
            for first in range(0, len(pool), READ_AT_ONCE):
                for c in pool.conversations(range(first, min(first + READ_AT_ONCE, len(pool)))):
                    turns = [(t.instruction, t.modality, t.response) for t in c.turns]
                    digest.update(repr((c.id, c.key, turns)).encode())
        return digest.hexdigest()

    @property
    def widths(self) -> dict[str, int]:
        """The width D of each feature."""
        return {feature: row.width for feature, row in self.rows.items()}

    @property
    def held(self) -> int:
        """Bytes of the arrays that this process holds for itself."""
        numbers = sum(pool.numbers.nbytes for pool in self.pools)
        return numbers + self._schedule.nbytes + sum(joined.held for joined in self._joined)

    @property
    def mapped(self) -> int:
        """Bytes of the tables and indices that all processes of the machine map."""
        return sum({path: size for joined in self._joined for path, size in joined.maps.items()}.values())

    @property
    def seconds(self) -> Counter[str]:
        """Where the time went when this was made."""
        return sum((Counter(joined.seconds) for joined in self._joined), Counter()) + Counter(self._seconds)

    @property
    def pools(self) -> list[Pool]:
        """The pools that are drawn from."""
        return list(self._pools.values())

    def counts(self) -> dict[str, int]:
        """Usable conversations of each kind: of each modality, and audio-visual ones that one sense alone asks."""
        counts: Counter[str] = Counter()
        for name, pool in self._pools.items():
            counts[name.split(".", 1)[1]] += len(pool)
        return dict(counts)

    def draw(self, step: int, rank: int, ranks: int) -> list[tuple[str, int]]:
        """One rank's share of a global batch: pairs of a pool `<source>.<kind>` and a conversation's place in it.

        It is a pure function of the step, the rank, the number of ranks, the seed and the data; ranks take equal parts
        that follow each other.
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
        pool = pending.pool
        self._note(pool.store, pending.conversation.key, error)
        others = (pool.conversations([place])[0].key for place in range(len(pool)))
        if all((pool.store, key) in self.damaged for key in others):
            raise error  # none is left to take its place
        (other,) = pool.pending([(pending.place + 1) % len(pool)], self._tokenizer, self._config.prompt)
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
                keys = [reader.index.key(n - before) for n in chosen if before <= n < before + len(reader)]
                before += len(reader)
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
