"""Held-out conversations: the loss on their responses, and how many the model would give word for word.

An answer is exact if every token of the reference is the most likely one after those before it. Exactly then greedy
decoding writes the reference, so one forward pass judges what generation would write, end of text included.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from store import MODALITIES, Conversation, Modality, Order, Sense, UserError
from store.console import Meter
from trainer.batch import Sample, fill_passes, pack
from trainer.engine import Engine
from trainer.features import FEATURES_OF, Grid
from trainer.joined import Joined
from trainer.pool import Pool
from trainer.prompt import PromptFormat
from trainer.settings import Source, TrainConfig

READ_AT_ONCE = 64  # conversations per rank
COMPARED_AT_ONCE = 1024  # conversations


@dataclass(frozen=True)
class Judged:
    """The result of one conversation.

    Attributes:
        id: of the conversation.
        key: of its item.
        modality: all that it perceives.
        tokens: number of response tokens.
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
    """What makes two conversations the same: the medium (a store and a key in it), and the texts."""

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
        limit: most conversations taken; None takes all.
        sense: if set, only audio-visual conversations are taken, with this modality alone; None takes all as written.

    Raises:
        UserError: no conversation is usable.
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
        modalities: tuple[Modality, ...] = (sense,) if sense else MODALITIES
        pairs = itertools.product((Joined(source, visual, audio) for source in sources), modalities)
        members = ((joined, joined.numbers(modality, sense), modality) for joined, modality in pairs)
        self._pools = [Pool(joined, n, modality, grid, sense) for joined, n, modality in members if len(n)]
        ends = list(itertools.accumulate(map(len, self._pools)))
        if not ends:
            raise UserError(
                f"field 'sources': no usable conversation to evaluate on: {[s.conversations for s in sources]}"
            )
        order = Order(ends[-1], 0)
        chosen = [order[i] for i in range(min(ends[-1], limit or ends[-1]))]
        owners = np.searchsorted(ends, chosen, side="right").tolist()
        self._members = [
            (pool, n - ends[pool] + len(self._pools[pool])) for pool, n in zip(owners, chosen, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._members)

    def overlap(self, trained: Sequence[Pool]) -> tuple[int, int]:
        """Count the conversations that are also trained on, by whatever sense, and the others whose media are.

        Only the texts of those about a medium of these conversations, and as long as one of them, are compared.
        """
        asked = [_Asked.of(self._pools[pool].store, self._conversation(pool, place)) for pool, place in self._members]
        leads = [self._pools[pool].leads([place])[0] for pool, place in self._members]
        seen: set[_Asked] = set()
        seen_media: set[tuple[str, str]] = set()
        for pool in trained:
            keys = list({a.medium and a.medium[1] for a in asked if a.medium is None or a.medium[0] == pool.store})
            found = pool.find(keys)
            seen_media |= {(pool.store, key) for n in np.unique(found).tolist() if n >= 0 and (key := keys[n])}
            alike = np.flatnonzero((found >= 0) & np.isin(pool.leads(), leads))
            for first in range(0, len(alike), COMPARED_AT_ONCE):
                batch = pool.conversations(alike[first : first + COMPARED_AT_ONCE])
                seen |= {_Asked.of(pool.store, c) for c in batch}.intersection(asked)
        same = sum(each in seen for each in asked)
        return same, sum(each not in seen and each.medium in seen_media for each in asked)

    def judge(
        self, engine: Engine, tokenizer: Any, prompt: PromptFormat, max_tokens: int, meter: Meter | None = None
    ) -> list[Judged]:
        """Judge this rank's share of the conversations. All ranks must call it together; `meter` counts progress."""
        share = -(-len(self) // engine.ranks)
        mine = self._members[engine.rank * share : (engine.rank + 1) * share]
        judged: list[Judged] = []
        for first in range(0, share, READ_AT_ONCE):
            part = mine[first : first + READ_AT_ONCE]
            members = part or self._members[:1]  # ranks without data still run a pass, or the collectives hang
            samples = self._samples(members, tokenizer, prompt)
            results = _judge(engine, samples, max_tokens)
            for (pool, number), (tokens, loss, exact) in zip(part, results, strict=False):
                c = self._conversation(pool, number)
                judged.append(Judged(c.id, c.key, c.modality, tokens, loss, exact))
            if meter:
                meter.advance(len(part))
        return judged

    def _conversation(self, pool: int, place: int) -> Conversation:
        return self._pools[pool].conversations([place])[0]

    def _samples(self, members: Sequence[tuple[int, int]], tokenizer: Any, prompt: PromptFormat) -> list[Sample]:
        read: dict[tuple[int, int], Sample] = {}
        for number, pool in enumerate(self._pools):
            chosen = [member for member in members if member[0] == number]
            read |= zip(chosen, pool.samples([n for _, n in chosen], tokenizer, prompt), strict=True)
        return [read[member] for member in members]


def _judge(engine: Engine, samples: list[Sample], max_tokens: int) -> list[tuple[int, float, bool]]:
    """Tokens, loss and exactness of each sample."""
    lengths = [min(len(s.tokens.ids), max_tokens) for s in samples]
    shares = fill_passes(lengths, max(max_tokens, *lengths))
    results: dict[int, tuple[int, float, bool]] = {}
    for number in range(engine.largest(len(shares))):
        chosen = shares[min(number, len(shares) - 1)]
        batch = pack([samples[i] for i in chosen], engine.model.widths, max_tokens)
        losses, hits = engine.judge(batch.to(engine.device)).cpu().numpy()
        owner = np.searchsorted(batch.packing.bounds.numpy(), batch.targets_at.numpy(), side="right") - 1
        for place, i in enumerate(chosen):
            of_sample = owner == place
            exact = len(samples[i].tokens.ids) == lengths[i] and bool(hits[of_sample].all())
            results[i] = int(of_sample.sum()), float(losses[of_sample].sum(dtype=np.float64)), exact
    return [results[i] for i in range(len(samples))]


def summary(engine: Engine, judged: Sequence[Judged]) -> dict[str, float]:
    """Mean loss per response token and share of exact answers, in total and by modality, over all ranks.

    Raises:
        UserError: no conversation has a response within `max_tokens`.
    """
    groups = ["", *FEATURES_OF]
    sums: list[float] = []
    for group in groups:
        members = [j for j in judged if group in ("", j.modality)]
        sums += [
            len(members),
            sum(j.tokens for j in members),
            sum(j.loss for j in members),
            sum(j.exact for j in members),
        ]
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
    """The held-out conversations of a run; None if it has none."""
    if config.evaluation is None:
        return None
    grid = Grid(config.frames, config.segments)
    return HeldOut(config.evaluation.sources, config.visual, config.audio, grid, config.evaluation.limit)
