"""What becomes of an item, by the stored replies: written, verified by rules, then by a judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from curate.asking import Answered, Failed, Pending, Question, Receipt
from curate.curation import CurationSettings, Perceived
from curate.filters import verify
from curate.filters.verdict import Verdict
from curate.judging import Judgement, verdicts_of
from curate.writing import Fused, Item, Writing
from store import Turn

Result = Literal["passed", "failed", "undecided"]
Review = Literal["keep", "drop"]
UNUSABLE = "no usable reply: {}"


@dataclass(frozen=True)
class Decided:
    """What became of an item.

    Attributes:
        item: the item.
        result: whether it passed; `undecided` while a request of it has no reply (`Curation.decided`).
        turns: questions and answers; empty if there was no usable reply.
        verdicts: of rules and judge.
        reason: why it did not pass; empty if it did.
        receipts: of the captions, the instruction and the judgement.
        fused: captions that it was written from; by modality.
    """

    item: Item
    result: Result
    turns: tuple[Turn, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    reason: str = ""
    receipts: tuple[Receipt, ...] = ()
    fused: Mapping[Perceived, str] = field(default_factory=dict)


@dataclass
class Draft:
    """What is known of an item while it is not decided, so that each step is done once; None for what came not yet.

    Attributes:
        asked: what the generator is asked.
        written: its reply.
        verdicts: of the rules.
        judging: what the judge is asked.
    """

    asked: Question[tuple[Turn, ...]] | None = None
    written: Answered[tuple[Turn, ...]] | None = None
    verdicts: Sequence[Verdict] = ()
    judging: Question[Judgement] | None = None


class Deciding:
    """Decides items.

    Args:
        writing: what models were asked, and their replies.
        reviews: what a person said of instructions, by the digest of the request that wrote them.
    """

    def __init__(self, writing: Writing, reviews: Mapping[str, Review]) -> None:
        self.writing, self._reviews = writing, reviews

    @property
    def settings(self) -> CurationSettings:
        """Of the curation."""
        return self.writing.settings

    def decide(self, item: Item, draft: Draft | None = None) -> Decided | Pending:
        """What becomes of an item, or what has to be asked first.

        Args:
            item: the item.
            draft: what is known of it; is brought up to date.
        """
        draft = draft or Draft()
        fused = self.writing.fused(item.key, item.cell.modality)
        if isinstance(fused, Pending):
            return fused
        if isinstance(fused, Failed):
            return Decided(item, "failed", reason=UNUSABLE.format(fused.reason), receipts=(fused.receipt,))
        if draft.written is None:
            draft.asked = draft.asked or self.writing.instruction(item, fused)
            written = self.writing.settle(draft.asked)
            if isinstance(written, Pending):
                return written
            if isinstance(written, Failed):
                receipts = (*fused.receipts, written.receipt)
                return Decided(item, "failed", (), (), UNUSABLE.format(written.reason), receipts, fused.texts)
            draft.written, draft.verdicts = written, self._by_rules(item, fused, written.value)
        return self._verified(item, fused, draft.written, draft)

    def _verified(
        self, item: Item, fused: Fused, written: Answered[tuple[Turn, ...]], draft: Draft
    ) -> Decided | Pending:
        verdicts = list(draft.verdicts)
        receipts = (*fused.receipts, written.receipt)
        reason = next((f"{v.criterion}: {v.reason}" for v in verdicts if v.outcome == "fail"), "")
        review = self._reviews.get(written.receipt.digest)
        if review is None and not reason and self.settings.judge:
            draft.judging = draft.judging or self.writing.judgement(item, fused, written.value)
            judged = self.writing.settle(draft.judging)
            if isinstance(judged, Pending):
                return judged
            receipts = (*receipts, judged.receipt)
            if isinstance(judged, Failed):
                reason = f"judge: {judged.reason}"
            else:
                verdicts += verdicts_of(judged.value, self.settings.thresholds.judge)
                reason = next((f"{v.criterion}: {v.reason}" for v in verdicts if v.outcome == "fail"), "")
        if review is not None:
            reason = "review" if review == "drop" else ""
        result: Result = "failed" if reason else "passed"
        return Decided(item, result, written.value, tuple(verdicts), reason, receipts, fused.texts)

    def _by_rules(self, item: Item, fused: Fused, turns: tuple[Turn, ...]) -> list[Verdict]:
        return verify(item.cell.task, turns, fused.reference, self.settings.thresholds, self.settings.language)
