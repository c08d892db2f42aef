"""Exact-match accuracy of short answers: MUSIC-AVQA's rule (case and a closing full stop do not count)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve.engine import Assistant, Question


@dataclass(frozen=True)
class Asked:
    """A question, the answer that counts as right, and what to group it by."""

    question: Question
    answer: str
    group: str


@dataclass(frozen=True)
class Score:
    """How many of a group's questions were answered right."""

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return self.right / self.total


def normalize(text: str) -> str:
    """Upper case, without surrounding space and closing full stops."""
    return text.strip().rstrip(" .").upper()


def exact_match(
    assistant: Assistant, asked: Sequence[Asked], batch: int = 32, on_batch: Callable[[int], None] = lambda _: None
) -> tuple[dict[str, Score], list[str]]:
    """Ask every question; the scores by group, and the raw answers. An empty answer is wrong."""
    answers: list[str] = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        answers += assistant.answer([each.question for each in part])
        on_batch(len(part))
    scores: dict[str, Score] = {}
    for each, answer in zip(asked, answers, strict=True):
        score = scores.get(each.group, Score(0, 0))
        right = normalize(answer) == normalize(each.answer) != ""
        scores[each.group] = Score(score.right + right, score.total + 1)
    return scores, answers
