"""The shuffled order of training samples, an endless stream.

Each place depends only on the seed, the pools' sizes, the weights, the phases and the size of a global batch.

`Order` shuffles one pool of conversations. `Schedule` decides how many samples each pool gives to each global batch,
and `Mixture` interleaves them. All are pure functions of the place, so a run can resume at any step, and the global
batches are the same for any number of ranks.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 2  # 2: exact shares in every global batch
BLOCK = 100  # conversations: neighbours stay together, so reads stay nearly sequential
WINDOW = 16  # blocks shuffled together


def _hash(seed: int, epoch: int, part: int, count: int) -> NDArray[np.uint64]:
    """`count` pseudo-random 64-bit numbers (SplitMix64), identical on every machine and numpy version."""
    with np.errstate(over="ignore"):
        base = np.asarray(0, np.uint64)
        for word in (seed, epoch, part):
            base = _mix(base + np.uint64(word) + np.uint64(0x9E3779B97F4A7C15))
        return _mix(base + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Order:
    """A new permutation of `size` conversations per epoch: shuffle the blocks, then shuffle within each window."""

    def __init__(self, size: int, seed: int) -> None:
        assert size > 0
        self.size = size
        self.seed = seed
        self._starts = lru_cache(maxsize=2)(self._block_starts)
        self._window = lru_cache(maxsize=4)(self._shuffled_window)

    def __reduce__(self) -> tuple[Any, ...]:
        return Order, (self.size, self.seed)

    def __getitem__(self, cursor: int) -> int:
        """The conversation at `cursor` of the endless stream; each occurs exactly once per epoch."""
        epoch, place = divmod(cursor, self.size)
        _, ends = self._starts(epoch)
        window = int(np.searchsorted(ends[WINDOW - 1 :: WINDOW], place, side="right"))
        first = int(ends[window * WINDOW - 1]) if window else 0
        return int(self._window(epoch, window)[place - first])

    def _block_starts(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first conversation of each block, in this epoch's block order, and the cumulative block lengths."""
        count = -(-self.size // BLOCK)
        blocks = np.argsort(_hash(self.seed, epoch, 0, count), kind="stable")
        lengths = np.minimum(self.size - blocks * BLOCK, BLOCK)
        return blocks * BLOCK, np.cumsum(lengths)

    def _shuffled_window(self, epoch: int, window: int) -> NDArray[np.int64]:
        starts, _ = self._starts(epoch)
        chosen = starts[window * WINDOW : (window + 1) * WINDOW]
        members = np.concatenate([np.arange(s, min(s + BLOCK, self.size)) for s in chosen])
        return members[np.argsort(_hash(self.seed, epoch, window + 1, len(members)), kind="stable")]


def places_of(step: int, global_batch: int, rank: int, ranks: int) -> range:
    """One rank's places of the stream in one step: step * G + rank * (G / W) + i.

    Args:
        step: the step, from 0; together with the seed it is all that resuming needs.
        global_batch: G, a multiple of `ranks`.
        rank: this process's rank.
        ranks: W, the number of ranks.
    """
    assert global_batch % ranks == 0, f"{global_batch} items for {ranks} ranks"
    first = step * global_batch + rank * (global_batch // ranks)
    return range(first, first + global_batch // ranks)


class Mixture:
    """A periodic interleaving of named pools: up to any place, each pool's count is within one of its share.

    Between any two places, each pool's count is therefore within two of its share.

    Args:
        weights: each pool's positive integer weight; the period is their sum.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        assert all(w > 0 for w in weights.values()), weights
        self.names = tuple(weights)
        shares = np.array([weights[name] for name in self.names], np.int64)
        self.period = int(shares.sum())
        self._pool = np.zeros(self.period, np.int64)
        self._before = np.zeros((self.period, len(shares)), np.int64)
        self._counts = shares
        taken = np.zeros(len(shares), np.int64)
        for place in range(self.period):  # earliest deadline first; largest deficit first can be off by more than one
            ready = taken * self.period < (place + 1) * shares
            due = -(-(taken + 1) * self.period // shares)
            pool = int(np.argmin(np.where(ready, due, self.period + 1)))
            self._pool[place], self._before[place] = pool, taken
            taken[pool] += 1
        assert (taken == shares).all()

    def __getitem__(self, place: int) -> tuple[str, int]:
        """The pool at `place` of the stream, and the number of its samples before that place (its cursor)."""
        period, offset = divmod(place, self.period)
        pool = int(self._pool[offset])
        return self.names[pool], int(period * self._counts[pool] + self._before[offset, pool])


class Phase(NamedTuple):
    """A part of a run: its number of steps, and the integer weight of each group of pools (zero is allowed)."""

    steps: int
    weights: Mapping[str, int]


class Schedule:
    """The pool at each place of a run; in every global batch, shares are exact up to rounding.

    Pools form groups: one per modality, holding the data sets with that modality. In each batch of a phase, a group
    gets its share of G, rounded down or up, and its running count stays within two of its share. A group's places are
    divided among its pools in the same way.

    Args:
        global_batch: G, samples per step over all ranks.
        phases: the phases, in order.
        pools: for each group, the integer weight of each of its pools.
    """

    def __init__(self, global_batch: int, phases: Sequence[Phase], pools: Mapping[str, Mapping[str, int]]) -> None:
        self.global_batch = global_batch
        self.steps = sum(phase.steps for phase in phases)
        groups = [_share_out(np.full(p.steps, global_batch), [p.weights.get(g, 0) for g in pools]) for p in phases]
        in_groups = np.concatenate(groups)
        counts = [_share_out(in_groups[:, i], list(weights.values())) for i, weights in enumerate(pools.values())]
        self.names = tuple(name for weights in pools.values() for name in weights)
        self.counts = np.concatenate(counts, axis=1)
        self._before = np.concatenate([np.zeros((1, len(self.names)), np.int64), np.cumsum(self.counts, axis=0)])
        self._mixture = lru_cache(maxsize=256)(self._mixture_of)

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return self.counts.nbytes + self._before.nbytes

    def __getitem__(self, place: int) -> tuple[str, int]:
        """The pool at `place` of the run, and the number of its samples before that place (its cursor)."""
        step, offset = divmod(place, self.global_batch)
        pool, within = self._mixture(tuple(self.counts[step].tolist()))[offset]
        return pool, int(self._before[step, self.names.index(pool)]) + within

    def _mixture_of(self, counts: tuple[int, ...]) -> Mixture:
        return Mixture({name: count for name, count in zip(self.names, counts, strict=True) if count})


def _share_out(sizes: NDArray[np.int64], weights: Sequence[int]) -> NDArray[np.int64]:
    """Divide each of S batches among P pools by weight: [S, P]. The pools furthest behind are rounded up."""
    total = sum(weights)
    shares = np.zeros((len(sizes), len(weights)), np.int64)
    deficits = [0] * len(weights)  # each pool's shortfall against its share, times `total`
    for step, size in enumerate(sizes.tolist()):
        if not size:
            continue
        counts = [size * weight // total for weight in weights]
        rounded = [p for p, weight in enumerate(weights) if size * weight % total]
        deficits = [b + size * w - total * c for b, w, c in zip(deficits, weights, counts, strict=True)]
        for pool in sorted(rounded, key=lambda p: (-deficits[p], p))[: size - sum(counts)]:
            counts[pool] += 1
            deficits[pool] -= total
        shares[step] = counts
    return shares
