"""What a curation would take, from a sample of it: requests, tokens, money, hours, and how many instructions pass."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from curate.asking import ROLES, Role, Usage, client_of
from curate.curation import Cell, CurationSettings
from curate.deciding import Decided
from curate.run import Curation
from curate.selection import Chosen
from curate.settings import BILLION
from store.console import console, make_table

Z = 1.96  # of a 95% interval


@dataclass(frozen=True)
class CellEstimate:
    """What a cell would take.

    Attributes:
        wanted: instructions.
        sampled: items of the sample that are decided.
        passed: those of them that passed.
        available: items that there can be.
        usage: what all sampled items took together, by the role that was asked; fusions aside.
    """

    wanted: int
    sampled: int
    passed: int
    available: int
    usage: Mapping[Role, Usage]

    @property
    def yields(self) -> tuple[float, float, float]:
        """The share that passes: low, measured, high (Wilson's 95% interval)."""
        n, p = max(self.sampled, 1), self.passed / max(self.sampled, 1)
        middle, spread = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        scale = 1 + Z * Z / n
        return (middle - spread) / scale, p, (middle + spread) / scale

    def items(self, share: float) -> int:
        """How many items are to be written, if a share of them passes."""
        return self.available if share <= 0 else min(self.available, math.ceil(self.wanted / share))


@dataclass(frozen=True)
class Estimate:
    """What a curation would take.

    Attributes:
        cells: by cell.
        fusion: what the fused captions of a clip took, by modality of the caption.
        seconds: that the sample took.
        sent: requests that were sent for it.
    """

    cells: Mapping[Cell, CellEstimate]
    fusion: Mapping[str, Usage]
    seconds: float
    sent: int

    def total(self, bound: int) -> dict[Role, tuple[float, float, float]]:
        """Requests, prompt and completion tokens of each role; by the low (0), measured (1) or high (2) yield."""
        sums: dict[Role, list[float]] = {"generator": [0.0, 0.0, 0.0], "judge": [0.0, 0.0, 0.0]}
        clips: dict[str, int] = {}
        for cell, one in self.cells.items():
            count = one.items(one.yields[bound])
            for role, usage in one.usage.items():
                _add(sums[role], usage, count / max(one.sampled, 1))
            for part in ("visual", "audio", "audio_visual") if cell.modality == "audio_visual" else (cell.modality,):
                clips[part] = max(clips.get(part, 0), count)
        for part, usage in self.fusion.items():
            _add(sums["generator"], usage, clips.get(part, 0))
        return {role: (n, prompt, completion) for role, (n, prompt, completion) in sums.items()}


def _add(sums: list[float], usage: Usage, times: float) -> None:
    for place, amount in enumerate(usage):
        sums[place] += amount * times


def estimate(curation: Curation, sample: int) -> Estimate:
    """Ask for a sample of each cell, and count what it took."""
    began = time.monotonic()
    curation.ask_first(sample)
    seconds = time.monotonic() - began
    everything = {cell: Chosen(0, 0, looked_at=len(states)) for cell, states in curation.states.items()}
    found = list(curation.decided(everything))
    cells = {cell: _of_cell(curation, cell, [one for one in found if one.item.cell == cell]) for cell in everything}
    return Estimate(cells, _fusion(found), seconds, curation.asked)


def _of_cell(curation: Curation, cell: Cell, found: Iterable[Decided]) -> CellEstimate:
    decided = [one for one in found if one.result != "undecided"]
    usage: dict[Role, Usage] = {"generator": Usage(), "judge": Usage()}
    for one in decided:
        for receipt in one.receipts:
            role: Role = "judge" if receipt.template.startswith("judge:") else "generator"
            if not receipt.template.startswith("fusion-"):
                usage[role] = usage[role].plus(receipt.usage)
    passed = sum(one.result == "passed" for one in decided)
    return CellEstimate(curation.settings.mix.of(cell), len(decided), passed, len(curation.rankings[cell]), usage)


def _fusion(found: Iterable[Decided]) -> dict[str, Usage]:
    """The mean usage of a fusion, by modality."""
    usages: dict[str, dict[str, Usage]] = {}
    for receipt in (receipt for one in found for receipt in one.receipts if receipt.template.startswith("fusion-")):
        part = receipt.template.partition(":")[0].removeprefix("fusion-")
        usages.setdefault(part, {})[receipt.digest] = receipt.usage
    means: dict[str, Usage] = {}
    for part, by_digest in usages.items():
        total = Usage(*map(sum, zip(*by_digest.values(), strict=True)))
        means[part] = Usage(*(-(-amount // len(by_digest)) for amount in total))
    return means


def say_estimate(found: Estimate, settings: CurationSettings) -> None:
    """Print what a curation would take."""
    table = make_table("task", "modality", "wanted", "sampled", "pass", "95%", "to write", "clips")
    for cell, one in found.cells.items():
        low, share, high = one.yields
        lacks = " (too few)" if one.items(share) * share < one.wanted else ""
        table.add_row(
            cell.task, cell.modality, f"{one.wanted:,}", f"{one.sampled}", f"{share:.0%}", f"{low:.0%}-{high:.0%}",
            f"{one.items(share):,}", f"{one.available:,}{lacks}",
        )  # fmt: skip
    console.print(table)
    for role in ROLES:
        _say_role(found, settings, role)
    rate = found.sent / found.seconds if found.sent else 0.0
    requests = sum(found.total(1)[role][0] for role in ROLES)
    hours = f", {requests / rate / 3600:,.1f} hours at the sample's {rate:.1f} requests/s" if rate else ""
    console.print(f"together about {requests:,.0f} requests{hours}")


def _say_role(found: Estimate, settings: CurationSettings, role: Role) -> None:
    if role == "judge" and settings.judge is None:
        return
    (_, *high), (requests, prompt, completion), (_, *low) = (found.total(bound)[role] for bound in (0, 1, 2))
    line = f"{role}: {requests:,.0f} requests, {prompt:,.0f} tokens sent, {completion:,.0f} generated"
    if price := client_of(settings, role).price:
        few, most_likely, many = (
            price.of(round(p), round(c)).cost / BILLION for p, c in (low, (prompt, completion), high)
        )
        line += f"; ${most_likely:,.2f} (${few:,.2f} to ${many:,.2f}), in batch files ${most_likely / 2:,.2f}"
    console.print(line)
