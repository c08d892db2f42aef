"""What a judge says of an instruction: a score and quotes for each criterion."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from curate.curation import CRITERIA, Criterion
from curate.filters.verdict import Verdict
from curate.replies import UnusableError, find_object, quoted

JUDGED: tuple[Criterion, ...] = tuple(criterion for criterion in CRITERIA if criterion != "diversity")
BEST = 5
NEEDS_QUOTE = 4  # scores below need evidence


class Opinion(NamedTuple):
    """A judge's opinion by one criterion.

    Attributes:
        score: 1 to 5.
        quotes: the words that it rests on.
    """

    score: int
    quotes: tuple[str, ...]


Judgement = Mapping[Criterion, Opinion]


def read_judgement(text: str, answers: Sequence[str], captions: Sequence[str]) -> Judgement:
    """The opinions in a reply.

    Args:
        text: the reply.
        answers: what was judged.
        captions: by which.

    Raises:
        UnusableError: a criterion lacks its score; or a low score rests on words that neither answers nor captions
            hold, or on none.
    """
    data = find_object(text)
    return {criterion: _opinion(criterion, data.get(criterion), answers, captions) for criterion in JUDGED}


def verdicts_of(judgement: Judgement, threshold: int) -> list[Verdict]:
    """The verdicts of a judgement; scores from the threshold on pass."""
    return [
        Verdict(criterion, "judge", "pass", opinion.score, threshold, "", opinion.quotes)
        if (opinion := judgement[criterion]).score >= threshold
        else Verdict(criterion, "judge", "fail", opinion.score, threshold, "the judge's score", opinion.quotes)
        for criterion in JUDGED
    ]


def _opinion(criterion: Criterion, data: Any, answers: Sequence[str], captions: Sequence[str]) -> Opinion:
    score = data.get("score") if isinstance(data, dict) else None
    if not isinstance(score, int) or isinstance(score, bool) or not 1 <= score <= BEST:
        raise UnusableError(f"no score of {criterion} from 1 to {BEST}")
    listed = data.get("quotes")
    texts = [quote for quote in listed if isinstance(quote, str)] if isinstance(listed, list) else []
    quotes = tuple(quote for quote in texts if quoted(quote, captions if criterion == "completeness" else answers))
    if score < NEEDS_QUOTE and not quotes:
        raise UnusableError(f"a low score of {criterion} that rests on no words of what was judged")
    return Opinion(score, quotes)
