"""Order in time: clauses of a description against the captions' times."""

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from curate.filters.reference import Reference
from curate.filters.words import meanings, subjects_of

CLAUSE = re.compile(
    r"(?<=[.!?;])\s+|,?(?<!only)\s+\b(?=(?:and then|then|before|after|while|until|as)\b)|,\s+and\s+|,\s+", re.I
)
TURNS_BACK = re.compile(
    r"\s*(?:(?:but|and)\s+)?(?:after|once|following|because|since|when|as|while|where|having)\b", re.I
)
# A man may open a door, and a door open with a creak, at any time: only clips open early.
EARLY = re.compile(
    r"\b(first|initially|at the (?:start|beginning)|(?:begins?|starts?) (?:with|by|on)"
    r"|(?:clip|video|film|scene|footage|recording|soundtrack|it) opens (?:with|by|on|in))\b",
    re.I,
)
LATE = re.compile(r"\b(finally|at the end|in the end|lastly|ends? (?:with|by)|eventually)\b", re.I)
MARGIN = 0.05  # of the clip's length
LEAST_SHARED = 2  # words that place a clause


class Placed(NamedTuple):
    """A clause and when it can happen."""

    text: str
    start: float
    end: float
    begins_sentence: bool


def misplaced(text: str, reference: Reference) -> tuple[str, ...]:
    """Two clauses that stand the other way round than the captions, or one that stands at the wrong end; or none."""
    clauses = list(_placed(text, reference))
    for clause in clauses:
        if EARLY.search(clause.text) and clause.start > 0.5 - MARGIN:
            return (clause.text,)
        if LATE.search(clause.text) and clause.end < 0.5 + MARGIN:
            return (clause.text,)
    for before, after in itertools.pairwise(clauses):
        joined = TURNS_BACK.match(after.text) and not after.begins_sentence
        if not joined and before.start > after.start + MARGIN and before.end > after.end + MARGIN:
            return before.text, after.text
    return ()


def _placed(text: str, reference: Reference) -> Iterator[Placed]:
    """The clauses that share enough words with captions to be placed."""
    start = 0
    for match in [*CLAUSE.finditer(text), None]:
        part = text[start : match.start() if match else len(text)].strip()
        begins = start == 0 or text[:start].rstrip()[-1:] in ".!?;"
        start = match.end() if match else start
        if place := _place(part, reference):
            yield Placed(part, *place, begins)


def _place(clause: str, reference: Reference) -> tuple[float, float] | None:
    """From the first to the last caption that shares the most words with a clause."""
    stems = meanings(subjects_of(clause))
    shared = [(len(stems & moment.stems), moment) for moment in reference.moments]
    most = max((count for count, _ in shared), default=0)
    if most < LEAST_SHARED:
        return None
    best = [moment for count, moment in shared if count >= max(LEAST_SHARED, most - 1)]
    return min(moment.start for moment in best), max(moment.end for moment in best)
