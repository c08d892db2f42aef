"""CPU seconds to tokenize and score captions: 40,000 items of 10 references.

python -m benchmarks.metrics
"""

import random
import string
import time
from itertools import accumulate

from serve.evals.bleu import count_bleu
from serve.evals.cider import DocumentFrequencies, cider
from serve.evals.rouge import rouge
from serve.evals.words import tokenize
from store.console import console, run

ITEMS, REFERENCES = 40_000, 10  # references of each item
WORDS = 12_000  # the size of a caption corpus's vocabulary
ENDS = ("", ".", ".", ".", "!", " ...", "'s dog.", " in the U.S.", " at 5:30 pm.", " (laughing)")


def captions(count: int) -> list[str]:
    """Captions of invented words, as unevenly frequent as in English."""
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(WORDS)]
    weights = list(accumulate(1 / rank for rank in range(1, WORDS + 1)))
    drawn = (rng.choices(words, cum_weights=weights, k=rng.randint(7, 17)) for _ in range(count))
    return [" ".join(chosen) + rng.choice(ENDS) for chosen in drawn]


def metrics() -> None:
    """Print the seconds of each part."""
    texts = captions(ITEMS * (REFERENCES + 1))
    started = time.process_time()
    tokens = [tokenize(text) for text in texts]
    console.print(f"{len(texts):,} captions: tokenize {time.process_time() - started:.1f} s")
    predictions, rest = tokens[:ITEMS], tokens[ITEMS:]
    references = [rest[start : start + REFERENCES] for start in range(0, len(rest), REFERENCES)]
    for name, metric in (
        ("CIDEr", lambda: cider(predictions, references, DocumentFrequencies.of(references))),
        ("BLEU", lambda: count_bleu(predictions, references)),
        ("ROUGE-L", lambda: rouge(predictions, references)),
    ):
        started = time.process_time()
        metric()
        console.print(f"{name} {time.process_time() - started:.1f} s")


if __name__ == "__main__":
    run(metrics)
