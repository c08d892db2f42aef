"""ROUGE-L: the longest common subsequence of a caption and its references.

As the reference's "Rouge": the best precision and the best recall may come from different references.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.evals.ngrams import Tokens, check_items

BETA = 1.2  # weight of recall against precision


def common(first: Tokens, second: Tokens) -> int:
    """The length of the longest common subsequence.

    One bit a word of `first`: a row of the usual table is one number, so a caption costs as many steps as it has words.
    """
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    full = row = (1 << len(first)) - 1
    for word in second:
        same = row & places.get(word, 0)
        row = ((row + same) | (row - same)) & full
    return len(first) - row.bit_count()


def _score(prediction: Tokens, references: Sequence[Tokens]) -> float:
    prediction = prediction or [""]  # as the reference splits an empty line: so empty equals empty
    texts = [reference or [""] for reference in references]
    shared = [common(text, prediction) for text in texts]
    precision = max(shared) / len(prediction)
    recall = max(length / len(text) for length, text in zip(shared, texts, strict=True))
    weighted = recall + BETA**2 * precision
    return (1 + BETA**2) * precision * recall / weighted if weighted else 0.0


def rouge(predictions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> NDArray[np.float64]:
    """ROUGE-L of each item, [items]; the corpus's score is their mean.

    Args:
        predictions: one tokenized caption for each item, [items].
        references: tokenized captions for each item, at least one, [items][references].

    Raises:
        ValueError: an item has no reference, or not every item has a prediction.
    """
    check_items(predictions, references)
    return np.array([_score(*item) for item in zip(predictions, references, strict=True)], np.float64)
