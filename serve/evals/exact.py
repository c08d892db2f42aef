"""Exact-match accuracy of short answers by MUSIC-AVQA's rule: case and closing full stops are ignored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve.assistant import Assistant, Question
from serve.engine import Limits


@dataclass(frozen=True)
class Asked:
    """A question, its reference answer, and the group it is scored in."""

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
    """Ask every question. Returns the scores by group and the raw answers; an empty answer is wrong."""
    answers: list[str] = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        answers += [reply.text for reply in assistant.answer([entry.question for entry in part], Limits(32))]
        on_batch(len(part))
    scores: dict[str, Score] = {}
    for entry, answer in zip(asked, answers, strict=True):
        score = scores.get(entry.group, Score(0, 0))
        right = normalize(answer) == normalize(entry.answer) != ""
        scores[entry.group] = Score(score.right + right, score.total + 1)
    return scores, answers
