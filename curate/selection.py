"""Which items are kept: of each cell the first that pass, in rank order, unless they repeat one that is kept.

Of two that repeat each other, in whichever cells, the lower rank is kept; at one rank, the cell that comes first.

Pure: the order in which replies came, and items asked beyond the last that is needed, change nothing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash
from rensa import RMinHash, RMinHashLSH

from curate.curation import Cell, CurationSettings
from curate.filters.diversity import shingles
from curate.filters.verdict import Verdict, measured
from curate.ranking import Ranking
from curate.writing import Item
from store import Turn

REPEATS = "repeats another"
PERMUTATIONS, BANDS, SEED = 128, 32, 1  # of MinHash


class Passed(NamedTuple):
    """So much of an item that passed as tells whether it repeats another.

    Attributes:
        text: a sketch of its answers.
        question: a hash of its questions; 0 for descriptions, which share them by nature.
    """

    text: RMinHash
    question: int


State = Passed | str | None  # passed; failed; None while a reply is still to come, or could not be had


def sketch(cell: Cell, turns: Sequence[Turn]) -> Passed:
    """What tells whether an item repeats another."""
    text = RMinHash(num_perm=PERMUTATIONS, seed=SEED)
    text.update(sorted(shingles(turns)))
    question = " ".join(turn.instruction.casefold() for turn in turns) if cell.task != "description" else ""
    return Passed(text, xxhash.xxh3_64_intdigest(question.encode()) if question else 0)


@dataclass
class Chosen:
    """What is chosen of a cell.

    Attributes:
        wanted: how many.
        kept: their ranks.
        repeats: ranks that passed and repeat another, or ask a question that too many others ask; with the verdict.
        undecided: ranks that are not decided and come before the last that is needed.
        looked_at: how many ranks were looked at.
        available: how many ranks there can be.
    """

    wanted: int
    available: int
    kept: list[int] = field(default_factory=list)
    repeats: dict[int, Verdict] = field(default_factory=dict)
    undecided: list[int] = field(default_factory=list)
    looked_at: int = 0

    @property
    def is_full(self) -> bool:
        """Whether there are as many as wanted."""
        return len(self.kept) >= self.wanted


def select(
    states: Mapping[Cell, Sequence[State]], ranked: Mapping[Cell, Ranking], settings: CurationSettings
) -> dict[Cell, Chosen]:
    """Choose: rank by rank, at each rank cell by cell.

    Args:
        states: of each cell's ranks, so far as they were asked.
        ranked: the keys of each cell's ranks.
        settings: of the curation.
    """
    chosen = {cell: Chosen(settings.mix.of(cell), len(ranked[cell])) for cell in states}
    seen = _Seen(settings)
    for rank in range(max((len(cell_states) for cell_states in states.values()), default=0)):
        for cell, cell_states in states.items():
            if rank < len(cell_states) and not chosen[cell].is_full:
                _choose(chosen[cell], Item(cell, rank, ranked[cell][rank]), cell_states[rank], seen)
    return chosen


def _choose(chosen: Chosen, item: Item, state: State, seen: "_Seen") -> None:
    chosen.looked_at = item.rank + 1
    if state is None:
        chosen.undecided.append(item.rank)
    elif isinstance(state, Passed):
        verdict = seen.verdict(item, state)
        if verdict.outcome == "pass":
            seen.add(item, state)
            chosen.kept.append(item.rank)
        else:
            chosen.repeats[item.rank] = verdict


class _Seen:
    """The items that were kept."""

    def __init__(self, settings: CurationSettings) -> None:
        self._settings = settings
        alike = 1 - settings.thresholds.diversity_elsewhere
        self._near = RMinHashLSH(threshold=alike, num_perm=PERMUTATIONS, num_bands=BANDS)
        self._items: list[tuple[Item, Passed]] = []
        self._of_clip: dict[tuple[Cell, str], list[int]] = {}
        self._questions: Counter[tuple[Cell, int]] = Counter()

    def add(self, item: Item, passed: Passed) -> None:
        """Remember an item."""
        number = len(self._items)
        self._items.append((item, passed))
        self._near.insert(number, passed.text)
        self._of_clip.setdefault((item.cell, item.key), []).append(number)
        self._questions[item.cell, passed.question] += 1

    def verdict(self, item: Item, passed: Passed) -> Verdict:
        """Whether an item differs enough from those before it."""
        limits = self._settings.thresholds
        most = max(1, int(self._settings.same_instruction * self._settings.mix.of(item.cell)))
        if passed.question and self._questions[item.cell, passed.question] >= most:
            return Verdict("diversity", "rule", "fail", 0.0, limits.diversity, "a question that too many others ask")
        here = self._nearest(passed, self._of_clip.get((item.cell, item.key), []))
        if here and 1 - here[0] < limits.diversity:
            return self._repeats(here, limits.diversity)
        elsewhere = self._nearest(passed, self._near.query(passed.text)) or (0.0, -1)
        return self._repeats(elsewhere, limits.diversity_elsewhere)

    def _nearest(self, passed: Passed, numbers: Sequence[int]) -> tuple[float, int] | None:
        """The greatest similarity to items, and the first of those."""
        found = ((round(passed.text.jaccard(self._items[n][1].text), 3), -n) for n in numbers)
        best = max(found, default=None)
        return (best[0], -best[1]) if best else None

    def _repeats(self, nearest: tuple[float, int], threshold: float) -> Verdict:
        alike, number = nearest
        other = f"{self._items[number][0].cell} {self._items[number][0].rank}" if number >= 0 else ""
        return measured("diversity", 1 - alike, threshold, REPEATS, (other,) if other else ())
