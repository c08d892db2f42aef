"""Held-out conversations: the loss on their responses, and how many the model would give word for word.

An answer is exact if every token of the reference is the most likely one after those before it. Then, and only then,
greedy decoding writes the reference; so one forward pass judges what generation would, end of text included.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from store import Conversation, Order, Sense, UserError
from store.console import Meter
from trainer.batch import Sample, pack, share_out
from trainer.data import Joined, Pool, asked_by
from trainer.engine import Engine
from trainer.features import FEATURES_OF, Grid
from trainer.prompt import PromptFormat
from trainer.settings import Source, TrainConfig

READ_AT_ONCE = 64  # conversations of a rank


@dataclass(frozen=True)
class Judged:
    """What became of a conversation.

    Attributes:
        id: of the conversation.
        key: of its item.
        modality: all that it perceives.
        tokens: of its responses.
        loss: sum of their cross-entropies.
        exact: whether each is the most likely token, and none was cut.
    """

    id: str
    key: str | None
    modality: str
    tokens: int
    loss: float
    exact: bool


class _Asked(NamedTuple):
    """What makes two conversations one: the medium (a store and a key in it), and what is said."""

    medium: tuple[str, str] | None
    said: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, store: str, c: Conversation) -> "_Asked":
        return cls((store, c.key) if c.key else None, tuple((t.instruction, t.response) for t in c.turns))


class HeldOut:
    """Conversations to evaluate on, in a fixed shuffled order.

    Args:
        sources: of the conversations.
        visual: the visual column.
        audio: the audio column.
        grid: that the model reads.
        limit: conversations taken; None takes all.
        sense: ask the audio-visual ones by this sense alone, and no others; None asks each as it stands.

    Raises:
        UserError: there is none.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        visual: str | None,
        audio: str | None,
        grid: Grid,
        limit: int | None = None,
        sense: Sense | None = None,
    ) -> None:
        self._pools: list[Pool] = []
        members: list[tuple[int, int]] = []
        for joined in (Joined(source, visual, audio) for source in sources):
            usable = joined.usable if sense is None else [a for c in joined.usable if (a := asked_by(sense, c))]
            for modality in FEATURES_OF:
                if own := [c for c in usable if c.modality == modality]:
                    members += [(len(self._pools), number) for number in range(len(own))]
                    self._pools.append(Pool(joined, own, modality, grid))
        if not members:
            raise UserError(
                f"field 'sources': no usable conversation to evaluate on: {[s.conversations for s in sources]}"
            )
        order = Order(len(members), 0)
        self._members = [members[order[i]] for i in range(min(len(members), limit or len(members)))]

    def __len__(self) -> int:
        return len(self._members)

    def overlap(self, trained: Iterable[tuple[str, Conversation]]) -> tuple[int, int]:
        """How many conversations are trained on too, whoever asks by which sense; and of how many others the media are.

        Args:
            trained: conversations, each with the URL of its store.
        """
        asked = [_Asked.of(self._pools[pool].store, self._pools[pool].conversations[n]) for pool, n in self._members]
        media = {each.medium for each in asked}
        found = {each for place, c in trained if (each := _Asked.of(place, c)).medium in media}
        known = {each.medium for each in found if each.medium}
        same = sum(each in found for each in asked)
        return same, sum(each not in found and each.medium in known for each in asked)

    def judge(
        self, engine: Engine, tokenizer: Any, prompt: PromptFormat, max_tokens: int, meter: Meter | None = None
    ) -> list[Judged]:
        """This rank's share of the conversations, judged. All ranks call it together; `meter` counts what is done."""
        share = -(-len(self) // engine.ranks)
        mine = self._members[engine.rank * share : (engine.rank + 1) * share]
        judged: list[Judged] = []
        for first in range(0, share, READ_AT_ONCE):
            part = mine[first : first + READ_AT_ONCE]
            asked = part or self._members[:1]  # ranks without data still run a pass, or the collectives hang
            samples = self._samples(asked, tokenizer, prompt)
            found = _judge(engine, samples, max_tokens)
            for (pool, number), (tokens, loss, exact) in zip(part, found, strict=False):
                c = self._pools[pool].conversations[number]
                judged.append(Judged(c.id, c.key, c.modality, tokens, loss, exact))
            if meter:
                meter.advance(len(part))
        return judged

    def _samples(self, members: Sequence[tuple[int, int]], tokenizer: Any, prompt: PromptFormat) -> list[Sample]:
        read: dict[tuple[int, int], Sample] = {}
        for number, pool in enumerate(self._pools):
            chosen = [member for member in members if member[0] == number]
            read |= zip(chosen, pool.samples([n for _, n in chosen], tokenizer, prompt), strict=True)
        return [read[member] for member in members]


def _judge(engine: Engine, samples: list[Sample], max_tokens: int) -> list[tuple[int, float, bool]]:
    """Tokens, loss and exactness of each sample."""
    lengths = [min(len(s.tokens.ids), max_tokens) for s in samples]
    shares = share_out(lengths, max(max_tokens, *lengths))
    found: dict[int, tuple[int, float, bool]] = {}
    for number in range(engine.largest(len(shares))):
        chosen = shares[min(number, len(shares) - 1)]
        batch = pack([samples[i] for i in chosen], engine.model.widths, max_tokens)
        losses, hits = engine.judge(batch.to(engine.device)).cpu().numpy()
        owner = np.searchsorted(batch.packing.bounds.numpy(), batch.targets_at.numpy(), side="right") - 1
        for place, i in enumerate(chosen):
            own = owner == place
            exact = len(samples[i].tokens.ids) == lengths[i] and bool(hits[own].all())
            found[i] = int(own.sum()), float(losses[own].sum(dtype=np.float64)), exact
    return [found[i] for i in range(len(samples))]


def summary(engine: Engine, judged: Sequence[Judged]) -> dict[str, float]:
    """Mean loss a response token and share of exact answers, of all and of each modality, over all ranks.

    Raises:
        UserError: no conversation has a response within the bound of its length.
    """
    groups = ["", *FEATURES_OF]
    sums: list[float] = []
    for group in groups:
        own = [j for j in judged if group in ("", j.modality)]
        sums += [len(own), sum(j.tokens for j in own), sum(j.loss for j in own), sum(j.exact for j in own)]
    totals = engine.total(*sums)
    values: dict[str, float] = {}
    for number, group in enumerate(groups):
        count, tokens, loss, exact = totals[4 * number : 4 * number + 4]
        if tokens:
            at = f"_{group}" if group else ""
            values |= {f"eval_loss{at}": loss / tokens, f"eval_exact{at}": exact / count}
    if not values:
        raise UserError(f"none of {int(totals[0])} held-out conversations has a response within max_tokens")
    return values


def held_out_of(config: TrainConfig) -> HeldOut | None:
    """The held-out conversations of a run, if it has any."""
    if config.evaluation is None:
        return None
    grid = Grid(config.frames, config.segments)
    return HeldOut(config.evaluation.sources, config.visual, config.audio, grid, config.evaluation.limit)
