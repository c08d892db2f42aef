"""CIDEr-D: how much of what people say of an item a caption says too, with rare words weighing more.

As the reference's "Cider": n-grams of one to four words without stemming, weighted by how few items' references hold
them, clipped, damped by the difference in length, times 10: scores are from 0 to 10. Papers print them times 100.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serve.evals.ngrams import ORDERS, Counts, Grams, Integers, Tokens, check_items, count, find

SIGMA = 6.0  # words of difference in length that dampen by exp(-1/2)
SCALE = 10.0


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many items' references n-grams are. Build it from a whole corpus, also to score a part of it.

    Attributes:
        items: how many items the corpus has.
        words: word -> its number.
        codes: for each order above one, the sorted codes of its n-grams: see `serve.evals.ngrams`.
        frequencies: for each order, in how many items each n-gram is, [n-grams].
    """

    items: int
    words: Mapping[str, int]
    codes: tuple[Integers, ...]
    frequencies: tuple[Integers, ...]

    @classmethod
    def of(cls, references: Sequence[Sequence[Tokens]]) -> "DocumentFrequencies":
        """The document frequencies of a corpus.

        Args:
            references: the tokenized references of each item, [items][references].
        """
        grams = count(tokens for captions in references for tokens in captions)
        items = np.repeat(np.arange(len(references)), [len(captions) for captions in references])
        frequencies = []
        for counts in grams.counts:
            rows = np.unique(items[counts.captions] * counts.size + counts.grams)
            frequencies.append(np.bincount(rows % max(counts.size, 1), minlength=counts.size))
        return cls(len(references), grams.words, grams.codes, tuple(frequencies))

    def rarities(self, grams: Grams) -> list[NDArray[np.float64]]:
        """The weight of each of some n-grams, [n-grams] for each order: log(items / items that hold it)."""
        known = np.array([self.words.get(word, -1) for word in grams.words], np.int64)
        words, numbers = known, [known]
        for ours, theirs in zip(self.codes, grams.codes, strict=True):
            first, last = numbers[-1][theirs // max(len(words), 1)], words[theirs % max(len(words), 1)]
            hit, places = find(ours, first * len(self.words) + last)
            numbers.append(np.where(hit & (first >= 0) & (last >= 0), places, -1))
        held = [np.append(have, 0)[number] for have, number in zip(self.frequencies, numbers, strict=True)]
        return [np.log(self.items) - np.log(np.maximum(holding, 1)) for holding in held]


def _similarities(
    counts: Counts, rarity: NDArray[np.float64], items: Integers, predictions: int
) -> NDArray[np.float64]:
    """Each reference's clipped cosine with the prediction for its item, by n-grams of one order, [references]."""
    weights = counts.times * rarity[counts.grams]
    norms = np.sqrt(np.bincount(counts.captions, weights**2, minlength=predictions + len(items)))
    split = np.searchsorted(counts.captions, predictions)
    predicted = counts.captions[:split] * counts.size + counts.grams[:split]
    owners, theirs = counts.captions[split:] - predictions, weights[split:]
    hit, places = find(predicted, items[owners] * counts.size + counts.grams[split:])
    shared = np.minimum(weights[places[hit]], theirs[hit]) * theirs[hit]
    sums = np.bincount(owners[hit], shared, minlength=len(items))
    scale = norms[items] * norms[predictions:]
    return np.divide(sums, scale, out=np.zeros(len(items)), where=scale > 0)


def cider(
    predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]], frequencies: DocumentFrequencies
) -> NDArray[np.float64]:
    """CIDEr-D of each item, [items]; the corpus's score is their mean.

    Args:
        predictions: one tokenized caption for each item, [items].
        references: tokenized captions for each item, at least one, [items][references].
        frequencies: of the whole corpus these items are from.

    Raises:
        ValueError: an item has no reference, or not every item has a prediction.
    """
    check_items(predictions, references)
    if not predictions:
        return np.zeros(0)
    each = np.array([len(captions) for captions in references])
    items = np.repeat(np.arange(len(references)), each)
    grams = count([*predictions, *(tokens for captions in references for tokens in captions)])
    total = np.zeros(len(items))
    for counts, rarity in zip(grams.counts, frequencies.rarities(grams), strict=True):
        total += _similarities(counts, rarity, items, len(predictions))
    lengths = np.maximum(grams.lengths - 1, 0)  # the reference takes the number of word pairs for the length
    total *= np.exp(-((lengths[items] - lengths[len(predictions) :]) ** 2) / (2 * SIGMA**2))
    scores: NDArray[np.float64] = np.bincount(items, total, minlength=len(predictions)) / ORDERS / each * SCALE
    return scores
