"""Anchors: answers with known verdicts, judged along, so that a judge that errs or has changed shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from serve.evals.judge_replies import HIGHEST
from serve.evals.judgements import Item, Judgements
from serve.evals.protocols import Kind
from serve.evals.statistics import percentage
from store import Settings, load_settings

BUILT_IN = Path(__file__).with_name("anchors.yaml")


class Anchor(Settings):
    """An answer whose judgement nobody doubts.

    Attributes:
        kind: of judgement.
        question: that was asked.
        answer: the right one.
        prediction: the one to judge.
        question2: the other question, for consistency.
        prediction2: the answer to it.
        verdict: the right one, for the kind `judged`.
        score: the lowest and the highest right one, for all other kinds.
    """

    kind: Kind = "judged"
    question: str
    answer: str
    prediction: str
    question2: str | None = Field(default=None, validate_default=True)
    prediction2: str | None = Field(default=None, validate_default=True)
    verdict: Literal["yes", "no"] | None = Field(default=None, validate_default=True)
    score: tuple[int, int] | None = Field(default=None, validate_default=True)

    @field_validator("question2", "prediction2")
    @classmethod
    def _check_pair(cls, text: str | None, info: ValidationInfo) -> str | None:
        if (text is None) == (info.data.get("kind") == "consistency"):
            raise ValueError("is for kind consistency, which needs it")
        return text

    @field_validator("verdict")
    @classmethod
    def _check_verdict(cls, verdict: str | None, info: ValidationInfo) -> str | None:
        if (verdict is None) == (info.data.get("kind") == "judged"):
            raise ValueError("is for kind judged, which needs it; other kinds need a score")
        return verdict

    @field_validator("score")
    @classmethod
    def _check_score(cls, score: tuple[int, int] | None, info: ValidationInfo) -> tuple[int, int] | None:
        if (score is None) != (info.data.get("kind") == "judged"):
            raise ValueError("is for all kinds but judged, and these need it")
        if score and not 0 <= score[0] <= score[1] <= HIGHEST:
            raise ValueError(f"expected a lowest and a highest score from 0 to {HIGHEST}")
        return score

    def item(self, task: int, number: int) -> Item:
        """What a judge is asked; `number` stands for its query."""
        names = ("question", "answer", "prediction", "question2", "prediction2")
        texts = {name: text for name in names if (text := getattr(self, name)) is not None}
        return Item(task, self.kind, (("anchor", number),), texts)

    def agrees(self, verdict: str | None, score: float | None) -> bool:
        """Whether a judgement is right."""
        if self.score is None:
            return verdict == self.verdict
        return score is not None and self.score[0] <= score <= self.score[1]


class AnchorFile(Settings):
    """A file of anchors.

    Attributes:
        anchors: in any order.
    """

    anchors: tuple[Anchor, ...]


def load_anchors(path: Path | None = None) -> tuple[Anchor, ...]:
    """The anchors of a user's file; the built-in ones without it.

    Raises:
        UserError: the file cannot be read, or a field is wrong.
    """
    return load_settings(AnchorFile, path or BUILT_IN).anchors


def compare(anchors: Sequence[Anchor], found: Judgements, into: Sequence[Judgements]) -> None:
    """Tell judgements how their judge did on the anchors; those it could not be asked about are left out."""
    judged = {number: each.judgement for (_, number), each in found.by_name.items()}
    right = [100.0 * anchors[number].agrees(each.verdict, each.score) for number, each in judged.items()]
    for judgements in into if right else ():
        judgements.anchors = percentage(np.array(right), [str(number) for number in judged])
        judgements.anchors_judged = len(right)


def by_kind(anchors: Sequence[Anchor]) -> Mapping[Kind, list[Anchor]]:
    """The anchors of each kind."""
    kinds: dict[Kind, list[Anchor]] = {}
    for anchor in anchors:
        kinds.setdefault(anchor.kind, []).append(anchor)
    return kinds
