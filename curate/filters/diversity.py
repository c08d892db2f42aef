"""Diversity within one conversation: its turns differ. Whether instructions repeat others, `selection.py` decides."""

from collections.abc import Sequence
from itertools import combinations

from curate.filters.verdict import Verdict, measured
from curate.filters.words import stems_of, subjects_of
from store import Turn

SHINGLE = 3  # words
SAME_ANSWER, ANSWER_WORDS = 0.75, 3  # answers of so many content words that are so alike say the same
SAME_BOTH = 0.6  # so alike are question and answer of turns that repeat each other


def repeats(turns: Sequence[Turn], threshold: float) -> Verdict:
    """By the most similar two turns of a conversation."""
    sets = [(subjects_of(turn.instruction), subjects_of(turn.response)) for turn in turns]
    worst, pair = 0.0, tuple[str, ...]()
    for first, second in combinations(range(len(turns)), 2):
        (q1, a1), (q2, a2) = sets[first], sets[second]
        answers = jaccard(a1, a2)
        alike = 0.0
        if answers >= SAME_ANSWER and min(len(a1), len(a2)) >= ANSWER_WORDS:
            alike = answers
        elif min(answers, jaccard(q1, q2)) >= SAME_BOTH:
            alike = max(answers, jaccard(q1, q2))
        if alike > worst:
            worst, pair = alike, (turns[first].response[:80], turns[second].response[:80])
    return measured("diversity", 1 - worst, threshold, "turns that repeat each other", pair)


def shingles(turns: Sequence[Turn]) -> frozenset[str]:
    """Triples of neighbouring words of the answers, as stems; of shorter texts, all words as one."""
    found = set[str]()
    for turn in turns:
        stems = stems_of(turn.response)
        found.update(" ".join(stems[n : n + SHINGLE]) for n in range(max(1, len(stems) - SHINGLE + 1)))
    return frozenset(found)


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of what either has that both have; 1 of two empty sets."""
    return len(one & other) / len(one | other) if one or other else 1.0
