"""Count the n-grams of many captions at once, as numbers in arrays.

A word's number is its place in `words`. An n-gram's number is the place of its code among the sorted codes of its
order, where its code is (number of its first n - 1 words) x (how many words there are) + (number of its last word).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Tokens = Sequence[str]
ORDERS = 4  # n-grams of one to four words


@dataclass(frozen=True)
class Counts:
    """How often captions hold n-grams of one order; rows are sorted by caption, then by n-gram.

    Attributes:
        captions: the row's caption, [rows].
        grams: the row's n-gram, [rows].
        times: how often the caption holds it, [rows].
        size: how many n-grams there are.
    """

    captions: Integers
    grams: Integers
    times: Integers
    size: int


@dataclass(frozen=True)
class Grams:
    """The n-grams of captions.

    Attributes:
        words: word -> its number.
        codes: for each order above one, the sorted codes of its n-grams.
        counts: for each order, which caption holds which n-gram.
        lengths: words in each caption, [captions].
    """

    words: Mapping[str, int]
    codes: tuple[Integers, ...]
    counts: tuple[Counts, ...]
    lengths: Integers


def check_items(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    """Refuse what no metric of captions is defined for.

    Raises:
        ValueError: an item has no reference, or not every item has a prediction.
    """
    if len(predictions) != len(references) or not all(map(len, references)):
        raise ValueError("a metric takes one prediction and at least one reference for each item")


def split(tokens: Tokens) -> list[str]:
    """Tokens as the reference's n-gram metrics see them: those with a no-break space inside are several words."""
    return " ".join(tokens).split()


def _counted(captions: Integers, grams: Integers, size: int) -> Counts:
    rows, times = np.unique(captions * size + grams, return_counts=True)
    return Counts(rows // max(size, 1), rows % max(size, 1), times, size)


def count(captions: Iterable[Tokens]) -> Grams:
    """The n-grams of one to four words of each caption."""
    parts = [split(tokens) for tokens in captions]
    lengths = np.array([len(part) for part in parts], np.int64)
    numbers: dict[str, int] = {}
    words = np.array([numbers.setdefault(word, len(numbers)) for part in parts for word in part], np.int64)
    owners = np.repeat(np.arange(len(parts)), lengths)
    starts, grams, size = np.arange(len(words)), words, len(numbers)
    codes, counts = [], [_counted(owners, grams, size)]
    for order in range(2, ORDERS + 1):
        inside = starts + order <= np.repeat(np.cumsum(lengths), lengths)[starts]
        starts = starts[inside]
        found, grams = np.unique(grams[inside] * len(numbers) + words[starts + order - 1], return_inverse=True)
        codes.append(found)
        counts.append(_counted(owners[starts], grams, len(found)))
    return Grams(numbers, tuple(codes), tuple(counts), lengths)


def find(rows: Integers, wanted: Integers) -> tuple[NDArray[np.bool_], Integers]:
    """Which of `wanted` are among the sorted `rows`, and where; the place is meaningless for the others."""
    places = np.searchsorted(rows, wanted)
    places[places == len(rows)] = 0
    return (rows[places] == wanted if len(rows) else np.zeros(len(wanted), np.bool_)), places
