"""Draws that depend on names alone, so that they are the same in every run."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import xxhash

from curate.curation import Cell

T = TypeVar("T")


def draw(seed: int, *names: object) -> int:
    """64 random bits."""
    return xxhash.xxh3_64_intdigest("\0".join(map(str, names)).encode(), seed)


def pick(options: Sequence[T], seed: int, *names: object) -> T:
    """One of some options."""
    return options[draw(seed, *names) % len(options)]


def shuffled(keys: Iterable[str], seed: int, *names: object) -> list[str]:
    """Keys in a random order; a key's place among others does not depend on which others there are."""
    return sorted(keys, key=lambda key: (draw(seed, *names, key), key))


class Ranking:
    """The clips of a cell in random order; each comes `uses` times, a second time after all have come once.

    Args:
        keys: of the clips that have the captions.
        seed: of the order.
        cell: the cell.
        uses: how often a clip comes.
    """

    def __init__(self, keys: Sequence[str], seed: int, cell: Cell, uses: int) -> None:
        self._orders = [shuffled(keys, seed, "rank", cell, use) for use in range(uses)]

    def __len__(self) -> int:
        return sum(map(len, self._orders))

    def __getitem__(self, rank: int) -> str:
        use, place = divmod(rank, len(self._orders[0]))
        return self._orders[use][place]
