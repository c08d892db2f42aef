"""What a model is asked to write about a clip: fused captions, then instructions, each from its own captions alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from curate.asking import Answered, Failed, Pending, Question, Receipt, Role, client_of, settle
from curate.captions import Captions, Clip, Span
from curate.curation import Cell, CurationSettings, Perceived, Sampling
from curate.filters.reference import Reference
from curate.judging import Judgement, read_judgement
from curate.ledger import Ledger
from curate.prompts import Template, Templates, turns_block, untrusted_block
from curate.ranking import draw, pick
from curate.recent import Recent
from curate.replies import FORMS, read_caption, read_exchanges, schema_of
from curate.texts import clean
from store import Turn

T = TypeVar("T")
PARTS: dict[Perceived, tuple[Perceived, ...]] = {
    "audio": ("audio",),
    "visual": ("visual",),
    "audio_visual": ("visual", "audio", "audio_visual"),
}
REMEMBERED = 4096  # fused captions
FUSED_LENGTH = 4  # times the longest caption


@dataclass(frozen=True)
class Item:
    """An instruction to be: a place in a cell's ranking.

    Attributes:
        cell: the cell.
        rank: in the cell, from 0.
        key: of the clip.
    """

    cell: Cell
    rank: int
    key: str


@dataclass(frozen=True)
class Fused:
    """A clip's captions, each fused to one; by modality.

    Attributes:
        clip: the clip.
        modality: of the instructions that are written from them.
        texts: the captions.
        receipts: of the replies that they come from.
    """

    clip: Clip
    modality: Perceived
    texts: Mapping[Perceived, str]
    receipts: tuple[Receipt, ...]

    @cached_property
    def shown(self) -> str:
        """All captions, as models are shown them."""
        return captions_block(self.clip, self.modality, self.texts)

    @cached_property
    def reference(self) -> Reference:
        """All captions, as rules compare texts with them."""
        return Reference.of(self.clip, self.modality, self.texts)


class Writing:
    """Asks for fused captions, instructions and judgements, and reads the replies.

    Args:
        settings: of the curation.
        captions: of the store's clips.
        templates: what is asked.
        ledger: the replies.
    """

    def __init__(self, settings: CurationSettings, captions: Captions, templates: Templates, ledger: Ledger) -> None:
        self.settings, self.captions, self.templates, self.ledger = settings, captions, templates, ledger
        self._parts: Recent[tuple[str, Perceived], Question[str] | Answered[str] | Failed] = Recent(REMEMBERED)
        self._fused: Recent[tuple[str, Perceived], Fused | Failed] = Recent(REMEMBERED)

    def fused(self, key: str, modality: Perceived) -> Fused | Failed | Pending:
        """The captions of a clip that an instruction of a modality is written from; an audio-visual one needs all."""
        if known := self._fused.get((key, modality)):
            return known
        found = self._fuse(self.captions[key], modality)
        if not isinstance(found, Pending):
            self._fused[key, modality] = found
        return found

    def settle(self, question: Question[T]) -> Answered[T] | Failed | Pending:
        """What the replies to a question say, or what is to be sent next."""
        return settle(question, self.ledger, self.settings.asks)

    def judgement(self, item: Item, fused: Fused, turns: tuple[Turn, ...]) -> Question[Judgement]:
        """What the judge is asked of an item."""
        clip = fused.clip
        places = {
            "captions": fused.shown,
            "modality": item.cell.modality.replace("_", "-"),
            "task": item.cell.task,
            "turns": turns_block(turns),
        }
        texts = [turn.response for turn in turns]
        sources = [*fused.texts.values(), *(span.text for span in (*clip.frames, *clip.segments))]
        return self._question(
            "judge", "judge", places, self.settings.judging, lambda text: read_judgement(text, texts, sources)
        )

    def _fuse(self, clip: Clip, modality: Perceived) -> Fused | Failed | Pending:
        if not clip.has(modality):
            return Failed("captions without text", Receipt("captions"))
        texts: dict[Perceived, str] = {}
        receipts: list[Receipt] = []
        waiting: list[Pending] = []
        for part in PARTS[modality]:
            if waiting and part == modality:
                break
            found = self._part(clip, part, texts)
            if isinstance(found, Failed):
                return Failed(f"fusion-{part}: {found.reason}", found.receipt)
            if isinstance(found, Pending):
                waiting.append(found)
            else:
                texts[part] = found.value
                receipts.append(found.receipt)
        if waiting:
            return Pending("generator", tuple(request for pending in waiting for request in pending.requests))
        return Fused(clip, modality, texts, tuple(receipts))

    def _part(self, clip: Clip, part: Perceived, texts: Mapping[Perceived, str]) -> Answered[str] | Failed | Pending:
        """One fused caption of a clip, which instructions of several modalities need."""
        known = self._parts.get((clip.key, part)) or self._fusion(clip, part, texts)
        if isinstance(known, Question):
            found = self.settle(known)
            self._parts[clip.key, part] = known if isinstance(found, Pending) else found
            return found
        return known

    def _fusion(self, clip: Clip, modality: Perceived, texts: Mapping[Perceived, str]) -> Question[str]:
        longest = FUSED_LENGTH * self.settings.captions.longest
        return self._question(
            "generator",
            f"fusion-{modality}",
            {"captions": captions_block(clip, modality, texts)},
            self.settings.fusion,
            lambda text: clean(read_caption(text, longest), longest),
        )

    def instruction(self, item: Item, fused: Fused) -> Question[tuple[Turn, ...]]:
        """What the generator is asked to write for an item."""
        settings, cell = self.settings, item.cell
        asked = self._style(item)
        places = {
            "captions": fused.shown,
            "form": FORMS[settings.form][cell.task],
            **asked,
        }

        def read(text: str) -> tuple[Turn, ...]:
            exchanges = read_exchanges(text, cell, settings.turns, settings.longest)
            return self._turns(cell, [(question or asked["instruction"], answer) for question, answer in exchanges])

        more = {"response_format": schema_of(cell)} if settings.structured and settings.form == "json" else {}
        return self._question("generator", str(cell), places, settings.generation, read, more)

    def _style(self, item: Item) -> dict[str, str]:
        """How an item differs from others: drawn by seed, the list's name, cell and rank."""
        styles, cell, seed = self.templates.styles, item.cell, self.settings.seed
        style: Any = getattr(styles, cell.task)
        lists = {name: getattr(style, name) for name in type(style).model_fields}
        if cell.task == "description":
            lists["instruction"] = lists["instruction"][cell.modality]
        places = {name: pick(options, seed, name, cell, item.rank) for name, options in lists.items()}
        if cell.task == "conversation":
            fewest, most = self.settings.turns
            places["count"] = str(fewest + draw(seed, "count", cell, item.rank) % (most - fewest + 1))
        return places

    def _turns(self, cell: Cell, exchanges: list[tuple[str, str]]) -> tuple[Turn, ...]:
        """The modality token stands in the first question, or in all."""
        in_all = self.settings.token_in_all_turns
        return tuple(
            Turn(question, cell.modality if in_all or not number else "text", answer)
            for number, (question, answer) in enumerate(exchanges)
        )

    def _question(
        self, role: Role, name: str, places: Mapping[str, str], sampling: Sampling, read: Any, more: Any = None
    ) -> Question[Any]:
        template: Template = self.templates[name]
        messages = template.messages(places, self.settings.form)
        body = {"model": client_of(self.settings, role).model, "messages": messages, **(more or {})}
        return Question(role, f"{name}:{template.digest}", body, sampling, read)


def captions_block(clip: Clip, modality: Perceived, fused: Mapping[Perceived, str]) -> str:
    """The captions that an instruction of a modality may see, in order of time, the fused ones first."""
    heads = {"visual": "seen", "audio": "heard", "audio_visual": "seen and heard"}
    lines = [f"{heads[part]}, in short: {fused[part]}" for part in PARTS[modality] if part in fused]
    timed: list[tuple[str, Span]] = []
    if modality != "audio":
        timed += [("seen", span) for span in clip.frames]
    if modality != "visual":
        timed += [("heard", span) for span in clip.segments]
    timed.sort(key=lambda pair: pair[1].start or 0.0)
    return untrusted_block(
        "captions", lines + [f"{head}, {span}" if modality == "audio_visual" else str(span) for head, span in timed]
    )
