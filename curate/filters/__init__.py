"""Rules that verify instructions by the paper's five criteria. Pure: the same texts always get the same verdicts."""

from collections.abc import Sequence

from curate.curation import TaskName, Thresholds
from curate.filters.completeness import completeness
from curate.filters.diversity import repeats
from curate.filters.fluency import fluency
from curate.filters.reference import Reference
from curate.filters.relevance import relevance
from curate.filters.soundness import soundness
from curate.filters.verdict import Verdict
from store import Turn


def verify(
    task: TaskName, turns: Sequence[Turn], reference: Reference, thresholds: Thresholds, language: str
) -> list[Verdict]:
    """What the rules say of an instruction, by each criterion; text that is not fluent is judged no further.

    Args:
        task: what kind of instruction it is.
        turns: its questions and answers.
        reference: what is known about its clip.
        thresholds: from which scores on it passes.
        language: that it should have.
    """
    fluent = fluency(turns, language, thresholds.fluency)
    if fluent.outcome == "fail":
        return [fluent]
    return [
        fluent,
        soundness(turns, thresholds.soundness),
        repeats(turns, thresholds.diversity),
        relevance(turns, reference, task == "description", thresholds.relevance),
        completeness(task, turns, reference, thresholds.completeness),
    ]
