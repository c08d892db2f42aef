"""Conversations of the kinds and lengths of LLaVA's, Valley's and the paper's, with random features of their media.

Counts of each kind are as published: LLaVA-1.5's mixture (arXiv 2310.03744, table 7), Valley (arXiv 2306.07207), and
the paper's own instructions. Turns (Poisson) and words (log-normal) are drawn with a seed, around averages that follow
from the sets' sizes on disk and their papers.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from store import Conversation, Turn
from trainer.batch import Sample
from trainer.features import rows_of
from trainer.prompt import PromptFormat, tokenize

T, N, K = 32, 256, 4
WIDTHS = {"temporal": 1024, "spatial": 1024, "audio": 768}
MAX_TOKENS = 2048
SPREAD = 0.5  # standard deviation of the logarithm of a text's word count
WORDS = [
    *("the", "a", "of", "and", "to", "in", "is", "on", "with", "at", "man", "woman", "dog", "child", "street", "music"),
    *("voice", "water", "hand", "table", "red", "small", "large", "slowly", "while", "then", "near", "behind"),
    *("playing", "holding", "speaking", "standing", "appears", "background", "image", "video", "sound", "because"),
]
Medium = Literal["image", "video", "audio", "audio_visual", "text"]


class Kind(NamedTuple):
    """A kind of conversation: source, count in thousands, medium, mean turns, median words of questions and answers."""

    source: str
    thousands: int
    medium: Medium
    turns: int
    asked: int
    answered: int


OWN_MEDIA: tuple[Medium, ...] = ("audio", "video", "audio_visual")
OWN = {(1, 60): (20, 50, 30), (3, 20): (20, 60, 40), (1, 90): (5, 20, 15)}  # (turns, words): thousands by medium
KINDS = (
    Kind("LLaVA", 58, "image", 4, 10, 27),  # conversations
    Kind("LLaVA", 23, "image", 1, 10, 100),  # detailed descriptions
    Kind("LLaVA", 77, "image", 1, 14, 115),  # complex reasoning
    Kind("LLaVA", 310, "image", 5, 10, 1),  # VQAv2, GQA, OKVQA, OCRVQA, A-OKVQA
    Kind("LLaVA", 22, "image", 1, 12, 12),  # TextCaps
    Kind("LLaVA", 134, "image", 5, 10, 10),  # RefCOCO, Visual Genome
    Kind("LLaVA", 40, "text", 4, 30, 150),  # ShareGPT
    Kind("Valley", 702, "video", 1, 10, 12),  # captions of WebVid
    Kind("Valley", 73, "video", 2, 12, 60),  # instructions
    *(
        Kind("paper", thousands, medium, turns, 12, words)
        for (turns, words), counts in OWN.items()
        for medium, thousands in zip(OWN_MEDIA, counts, strict=True)
    ),
)


class Drawn(NamedTuple):
    """A conversation and its medium."""

    medium: Medium
    conversation: Conversation


def draw(count: int, sources: Sequence[str], seed: int = 0) -> list[Drawn]:
    """Draw conversations in the sources' proportions, in random order; the i-th is about the item `<i>-clip`."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in KINDS if kind.source in sources]
    shares = np.array([kind.thousands for kind in kinds], float)
    return [_draw(kinds[n], i, rng) for i, n in enumerate(rng.choice(len(kinds), count, p=shares / shares.sum()))]


def _draw(kind: Kind, number: int, rng: np.random.Generator) -> Drawn:
    def text(median: int) -> str:
        return " ".join(rng.choice(WORDS, max(1, round(rng.lognormal(np.log(median), SPREAD)))))

    modality = "visual" if kind.medium in ("image", "video") else kind.medium
    turns = tuple(
        Turn(text(kind.asked), "text" if n else modality, text(kind.answered))  # type: ignore[arg-type]
        for n in range(1 + rng.poisson(kind.turns - 1))
    )
    key = None if kind.medium == "text" else f"{number}-clip"
    return Drawn(kind.medium, Conversation(str(number), key, turns))


def random_arrays(medium: Medium, rng: np.random.Generator) -> dict[str, Any]:
    """Random float16 features of an item, as `Grid.select` gives them."""
    shapes: dict[str, tuple[int, int]] = {}
    if medium in ("image", "video", "audio_visual"):
        shapes |= {"temporal": (1 if medium == "image" else T, 1024), "spatial": (N, 1024)}
    if medium in ("audio", "audio_visual"):
        shapes["audio"] = (K, 768)
    return {name: rng.standard_normal(shape, np.float32).astype(np.float16) for name, shape in shapes.items()}


def make_samples(drawn: Sequence[Drawn], tokenizer: Any) -> list[Sample]:
    """Tokenize the conversations; those of a medium share features, whose values affect nothing measured."""
    rng = np.random.default_rng(0)
    arrays = {medium: random_arrays(medium, rng) for medium in {d.medium for d in drawn}}
    return [
        Sample(tokenize(c.turns, rows_of(arrays[medium]), tokenizer, PromptFormat()), arrays[medium])
        for medium, c in drawn
    ]


def lengths_of(samples: Sequence[Sample]) -> list[int]:
    """Length of each sample in tokens, at most `MAX_TOKENS`."""
    return [min(len(sample.tokens.ids), MAX_TOKENS) for sample in samples]
