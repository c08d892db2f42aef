"""What a rule or a judge says of an instruction by one criterion."""

from typing import Literal, NamedTuple

from curate.curation import Criterion


class Verdict(NamedTuple):
    """A verdict.

    Attributes:
        criterion: by which.
        by: who gave it.
        outcome: whether the instruction passes.
        score: the higher, the better.
        threshold: from which on an instruction passes.
        reason: why it does not; empty if it does.
        evidence: the words that it rests on.
    """

    criterion: Criterion
    by: Literal["rule", "judge"]
    outcome: Literal["pass", "fail"]
    score: float
    threshold: float
    reason: str = ""
    evidence: tuple[str, ...] = ()


def measured(
    criterion: Criterion, score: float, threshold: float, reason: str, evidence: tuple[str, ...] = ()
) -> Verdict:
    """The verdict of a rule, by its score."""
    score = round(score, 3)
    if score >= threshold:
        return Verdict(criterion, "rule", "pass", score, threshold, "", evidence)
    return Verdict(criterion, "rule", "fail", score, threshold, reason, evidence)
