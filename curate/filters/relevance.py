"""Relevance: what an instruction says stands in the captions of its modality, in their order.

The other sense has no rule of its own: words that only its captions hold weigh more.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from curate.filters.order import misplaced
from curate.filters.reference import Reference
from curate.filters.verdict import Verdict, measured
from curate.filters.words import content_of, lexicon, meanings, sentences_of, stems_of, subjects_of
from store import Turn

YES_NO = re.compile(
    r"\s*(?:and |so |but )?(is|are|was|were|do|does|did|can|could|has|have|had|will|would|should|may|might)\b", re.I
)
NEGATIVE = re.compile(r"\s*(no|not|none|nothing|nobody|never|neither)\b", re.I)
DENIED = re.compile(
    r"\b(?:no|not|none|never|without|nobody|neither|nor|rather than|instead of|[a-z]+n't)\b[^.,;]*", re.I
)
HEDGED = re.compile(
    r"\b(probably|likely|perhaps|maybe|may|might|could|suggest\w*|seem\w*|appear\w*|possibly|presumably|as if|would)\b",
    re.I,
)
OTHER_WEIGHT = 0.35  # of words that are neither plain nor concrete: they may be other words for the same
HEDGED_WEIGHT = 0.4  # of words in a careful conclusion
ELSEWHERE_WEIGHT = 0.5  # added for words that only captions of the other modality hold
ONE_CLAIM = 0.3  # the least that a concrete word takes from the score if no caption holds it and nothing hedges it
APART = 3  # words behind a quality, among which its noun is


class Claim(NamedTuple):
    """A content word of an instruction.

    Attributes:
        word: as the text has it.
        stem: of it.
        weight: how much it claims.
        certainty: less than 1 in a careful conclusion.
    """

    word: str
    stem: str
    weight: float
    certainty: float = 1.0


def relevance(turns: Sequence[Turn], reference: Reference, is_description: bool, threshold: float) -> Verdict:
    """By the words that no caption holds, weighed by how much they claim; qualities and order that captions deny."""
    if denied := list(_contradicted(turns, reference)):
        return measured("relevance", 0.0, threshold, "the captions say otherwise", tuple(denied))
    claims = {claim.stem: claim for turn in turns for claim in _claims(turn, is_description)}
    novel = [claim for claim in claims.values() if claim.stem not in reference.meanings]
    weights = [
        claim.weight * claim.certainty + ELSEWHERE_WEIGHT * (claim.stem in reference.elsewhere) for claim in novel
    ]
    share = sum(weights) / max(sum(claim.weight for claim in claims.values()), 1.0)
    strong = sum(weight for weight in weights if weight >= 1)
    score = max(0.0, 1 - max(share, ONE_CLAIM * strong))
    if score >= threshold and is_description and (moved := misplaced(turns[0].response, reference)):
        return measured("relevance", 0.0, threshold, "the captions have another order", moved)
    words = tuple(claim.word for claim in sorted(novel, key=lambda claim: -claim.weight)[:8])
    return measured("relevance", score, threshold, "words that the captions do not hold", words)


def _claims(turn: Turn, is_description: bool) -> Iterator[Claim]:
    """The content words of an exchange; not those that it only asks about or denies."""
    asked = YES_NO.match(turn.instruction)
    denied = NEGATIVE.match(turn.response)
    excused = subjects_of(turn.instruction) if asked and denied else frozenset()
    if not is_description and not (asked and denied):
        yield from _weighed(turn.instruction)
    for sentence in sentences_of(turn.response):
        yield from (claim for claim in _weighed(sentence) if claim.stem not in excused)


def _weighed(sentence: str) -> Iterator[Claim]:
    concrete, certainty = lexicon().concrete, HEDGED_WEIGHT if HEDGED.search(sentence) else 1.0
    for word, stemmed in content_of(DENIED.sub(" ", sentence)):
        yield Claim(word, stemmed, 1.0 if stemmed in concrete else OTHER_WEIGHT, certainty)


def _contradicted(turns: Sequence[Turn], reference: Reference) -> Iterator[str]:
    """Qualities, such as colours, that captions give otherwise to the same noun."""
    known: dict[tuple[str, str], set[str]] = {}
    for text in reference.texts:
        for quality, kind, noun in _qualities(text):
            known.setdefault((kind, noun), set()).add(quality)
    for turn in turns:
        for sentence in sentences_of(DENIED.sub(" ", turn.response)):
            for quality, kind, noun in _qualities(sentence):
                others = known.get((kind, noun))
                if others and not meanings([quality]) & others:
                    yield f"{quality} {noun}"


def _qualities(text: str) -> Iterator[tuple[str, str, str]]:
    """Words of a class with the noun behind them: (stem, class, stem of the noun)."""
    known, stems = lexicon(), stems_of(text)
    for place in [n for n, each in enumerate(stems) if each in known.classes]:
        quality, kind = stems[place], known.classes[stems[place]]
        for noun in itertools.islice(stems, place + 1, place + 1 + APART):
            if noun in known.classes or noun == "and":
                continue
            if noun not in known.plain:
                yield quality, kind, noun
            break
