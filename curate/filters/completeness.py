"""Completeness: descriptions cover the clip to its end, by both senses; reasoning has reasons; nothing is cut off."""

import re
from collections.abc import Sequence

from curate.curation import Perceived, TaskName
from curate.filters.reference import Reference
from curate.filters.verdict import Verdict, measured
from curate.filters.words import meanings, subjects_of, words_of
from store import Turn

SENSES: tuple[Perceived, ...] = ("visual", "audio")
ENDED = re.compile(r"[.!?…。][\"'”’)\]]*\s*\Z")
REASONED = 5  # words of the shortest answer that can hold a reason
LAST = 2 / 3  # of the clip; what comes then is its last third
PARTLY = 0.5  # of what is asked of the whole, for each part
DANGLING = re.compile(r"\b(?:a|an|the|and|or|but|because|than|into|their|its)\s*[.!?]*\s*\Z", re.I)


def completeness(task: TaskName, turns: Sequence[Turn], reference: Reference, threshold: float) -> Verdict:
    """By the share of the captions' words that a description has; by ends and lengths of other answers."""
    if cut := [turn.response[-40:] for turn in turns if not _is_whole(turn.response, task)]:
        return measured("completeness", 0.0, threshold, "an answer that stops in a sentence", tuple(cut))
    if task == "reasoning":
        words = len(words_of(turns[0].response))
        return measured("completeness", min(1.0, words / (2 * REASONED)), threshold, "an answer without a reason")
    if task == "conversation":
        return measured("completeness", 1.0, threshold, "")
    return _coverage(turns[0].response, reference, threshold)


def _is_whole(text: str, task: TaskName) -> bool:
    return not DANGLING.search(text) and (task == "conversation" or bool(ENDED.search(text)))


def _coverage(text: str, reference: Reference, threshold: float) -> Verdict:
    """The worst of: all captions, those of each sense, and the best told caption of the last third."""
    said = meanings(subjects_of(text))
    shares: dict[str, float] = {"the captions": _share(said, subjects_of(reference.fused[reference.modality]))}
    if reference.modality == "audio_visual":
        seen, heard = (subjects_of(reference.fused[sense]) for sense in SENSES)
        shares["what is seen"] = _share(said, seen - meanings(heard)) / PARTLY
        shares["what is heard"] = _share(said, heard - meanings(seen)) / PARTLY
    last = [moment.stems for moment in reference.moments if (moment.start + moment.end) / 2 > LAST]
    if last:
        shares["the end"] = max(len(said & stems) / max(len(stems), 1) for stems in last) / PARTLY
    worst = min(shares, key=lambda part: shares[part])
    return measured("completeness", min(1.0, shares[worst]), threshold, f"too little of {worst}")


def _share(said: set[str], stems: frozenset[str]) -> float:
    """The share of stems that was said."""
    return len(stems & said) / len(stems) if stems else 1.0
