"""BLEU of one to four words, from counts for each item that may be summed over any choice of items.

As the reference's "Bleu(4)": precision over the corpus, the closest reference's length, and small constants in place
of smoothing. Scores are fractions: papers print them times 100.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.evals.ngrams import ORDERS, Integers, Tokens, check_items, count, find

SMALL, TINY = 1e-9, 1e-15  # the reference's, against division by zero


@dataclass(frozen=True)
class BleuCounts:
    """What BLEU is computed from, for each item or summed over items; the leading dimensions are free.

    Attributes:
        matches: n-grams of the prediction that a reference has too, [..., 4].
        guesses: n-grams of the prediction, [..., 4].
        lengths: words in the prediction, [...].
        reference_lengths: words in the reference of the closest length, the shorter of two equally close, [...].
    """

    matches: NDArray[np.float64]
    guesses: NDArray[np.float64]
    lengths: NDArray[np.float64]
    reference_lengths: NDArray[np.float64]

    def sums(self, weights: NDArray[np.float64] | None = None) -> "BleuCounts":
        """The counts summed over items.

        Args:
            weights: how often each item is drawn, [samples, items]; None takes each once.

        Returns:
            Counts with the leading dimensions [samples], or none.
        """
        fields = (self.matches, self.guesses, self.lengths, self.reference_lengths)
        return BleuCounts(*((field.sum(0) if weights is None else weights @ field) for field in fields))

    def scores(self) -> NDArray[np.float64]:
        """BLEU-1 to BLEU-4, [..., 4]."""
        precisions = np.cumprod((self.matches + TINY) / (self.guesses + SMALL), axis=-1)
        ratio = (self.lengths + TINY) / (self.reference_lengths + SMALL)
        brevity = np.exp(np.minimum(1 - 1 / ratio, 0))
        scores: NDArray[np.float64] = precisions ** (1 / np.arange(1, ORDERS + 1)) * brevity[..., None]
        return scores


def _closest(lengths: Integers, references: Integers, items: Integers) -> Integers:
    """The length closest to the prediction's among its references, [items]."""
    order = np.lexsort((references, np.abs(references - lengths[items]), items))
    closest: Integers = references[order[np.searchsorted(items, np.arange(len(lengths)))]]
    return closest


def count_bleu(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> BleuCounts:
    """The counts of each item, with the leading dimensions [items].

    Args:
        predictions: one tokenized caption for each item, [items].
        references: tokenized captions for each item, at least one, [items][references].

    Raises:
        ValueError: an item has no reference, or not every item has a prediction.
    """
    check_items(predictions, references)
    size = len(predictions)
    items = np.repeat(np.arange(size), [len(captions) for captions in references])
    grams = count([*predictions, *(tokens for captions in references for tokens in captions)])
    matches = np.zeros((size, ORDERS))
    for order, counts in enumerate(grams.counts):
        split = np.searchsorted(counts.captions, size)
        predicted = counts.captions[:split] * counts.size + counts.grams[:split]
        theirs = items[counts.captions[split:] - size] * counts.size + counts.grams[split:]
        hit, places = find(predicted, theirs)
        most = np.zeros(split, np.int64)
        np.maximum.at(most, places[hit], counts.times[split:][hit])
        clipped = np.minimum(most, counts.times[:split])
        matches[:, order] = np.bincount(counts.captions[:split], clipped, minlength=size)
    lengths = grams.lengths[:size]
    guesses = np.maximum(lengths[:, None] - np.arange(ORDERS), 0)
    closest = _closest(lengths, grams.lengths[size:], items)
    return BleuCounts(matches, *(values.astype(np.float64) for values in (guesses, lengths, closest)))
