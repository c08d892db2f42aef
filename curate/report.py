"""The report: one HTML page with nothing remote and no script, in which every text is escaped."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from curate.asking import Role, client_of
from curate.curation import CRITERIA
from curate.ranking import shuffled
from curate.run import Curation, receipt
from curate.selection import REPEATS
from curate.settings import BILLION

BINS = 20
PHRASE = 4  # words
PHRASES = 15
SHOWN_PHRASE = 0.02  # of the kept items have it, or it is not shown
SAME_REPLIES = 20  # different items with one answer, word for word, are no accident
Row = Mapping[str, Any]


class Histogram(NamedTuple):
    """How scores are spread.

    Attributes:
        title: criterion, and who scored.
        bars: for each bin how many, as a share of the largest.
        counts: the numbers.
        threshold: from which on items pass, as a share of the axis.
        label: of the threshold.
    """

    title: str
    bars: tuple[float, ...]
    counts: tuple[int, ...]
    threshold: float
    label: str


def report_page(curation: Curation, rows: Sequence[Row], samples: int) -> str:
    """The page.

    Args:
        curation: what was curated.
        rows: its verdicts.
        samples: kept and dropped items to show of each cell.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    kept = [row for row in rows if row["outcome"] == "kept"]
    return environment.get_template("report.html").render(
        name=curation.settings.name,
        funnel=_funnel(curation, rows),
        reasons=Counter(row["reason"] for row in rows if row["outcome"] == "dropped").most_common(),
        histograms=[*_histograms(rows)],
        samples=[*_samples(rows, samples, curation.settings.seed)],
        phrases=_phrases(kept),
        repeats=[
            (row["id"], verdict["evidence"][0])
            for row in rows
            for verdict in row["verdicts"]
            if verdict["reason"] == REPEATS
        ],
        same=_same(rows),
        served=Counter(receipt["served"] or "not named" for row in rows for receipt in row["receipts"]).most_common(),
        spent=curation.ledger.committed,
        dollars=curation.ledger.committed.cost / BILLION,
        unsettled=curation.ledger.unsettled,
        receipt=json.dumps(receipt(curation), indent=1, sort_keys=True),
    )


def _funnel(curation: Curation, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What became of the items of each cell, and what they took."""
    return [
        _cell_row(curation, cell.task, cell.modality, wanted, [r for r in rows if (r["task"], r["modality"]) == cell])
        for cell in curation.rankings
        for wanted in [curation.settings.mix.of(cell)]
    ]


def _cell_row(curation: Curation, task: str, modality: str, wanted: int, rows: Sequence[Row]) -> dict[str, Any]:
    outcomes = Counter(row["outcome"] for row in rows)
    stopped = Counter(row["reason"].partition(":")[0] for row in rows if row["outcome"] == "dropped")
    receipts = {each["digest"]: each for row in rows for each in row["receipts"]}
    cost = sum(_cost(curation, each) for each in receipts.values())
    return {
        "task": task,
        "modality": modality,
        "wanted": wanted,
        "written": len(rows),
        "stopped": [stopped.pop(criterion, 0) for criterion in CRITERIA],
        "other": sum(stopped.values()),
        "undecided": outcomes["undecided"],
        "kept": outcomes["kept"],
        "lacking": wanted - outcomes["kept"],
        "tokens": sum(each["prompt"] + each["completion"] for each in receipts.values()),
        "dollars": cost / BILLION,
    }


def _cost(curation: Curation, each: Row) -> int:
    role: Role = "judge" if each["template"].startswith("judge:") else "generator"
    price = client_of(curation.settings, role).price
    return price.of(each["prompt"], each["completion"]).cost if price else 0


def _histograms(rows: Sequence[Row]) -> Iterable[Histogram]:
    """One for each criterion, of rules and of the judge."""
    verdicts = [verdict for row in rows for verdict in row["verdicts"]]
    for by, top in (("rule", 1.0), ("judge", 5.0)):
        for criterion in CRITERIA:
            found = [v for v in verdicts if (v["by"], v["criterion"]) == (by, criterion)]
            if found:
                yield _histogram(f"{criterion} ({by})", [v["score"] for v in found], found[0]["threshold"], top)


def _histogram(title: str, scores: Sequence[float], threshold: float, top: float) -> Histogram:
    bins = Counter(min(BINS - 1, int(BINS * score / top)) for score in scores)
    most = max(bins.values())
    counts = tuple(bins[n] for n in range(BINS))
    return Histogram(title, tuple(count / most for count in counts), counts, threshold / top, f"{threshold:g}")


def _samples(rows: Sequence[Row], count: int, seed: int) -> Iterable[dict[str, Any]]:
    """Kept and dropped items of each cell, beside their captions; chosen by a hash."""
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row["outcome"] in ("kept", "dropped"):
            groups.setdefault((row["task"], row["modality"], row["outcome"]), {})[row["id"]] = row
    for (task, modality, outcome), members in groups.items():
        chosen = [members[name] for name in sorted(shuffled(members, seed, "report")[:count])]
        shown = [{**row, "captions": json.loads(row["captions"]), "evidence": [*_evidence(row)]} for row in chosen]
        yield {"title": f"{task}, {modality.replace('_', '-')}, {outcome}", "rows": shown, "of": len(members)}


def _evidence(row: Row) -> Iterable[str]:
    for verdict in row["verdicts"]:
        words = ", ".join(f"“{each}”" for each in verdict["evidence"])
        if verdict["outcome"] == "fail" or verdict["by"] == "judge":
            yield f"{verdict['criterion']} by {verdict['by']}: {verdict['score']:g} of {verdict['threshold']:g} {words}"


def _phrases(rows: Sequence[Row]) -> list[tuple[str, float]]:
    """Runs of words that many answers have, with the share of items that have them."""
    counts = Counter(phrase for row in rows for phrase in _phrases_of(row))
    common = ((phrase, count / len(rows)) for phrase, count in counts.most_common(PHRASES) if count > 1)
    return [(phrase, share) for phrase, share in common if share >= SHOWN_PHRASE]


def _phrases_of(row: Row) -> set[str]:
    runs = set[str]()
    for turn in row["turns"]:
        words = turn["response"].casefold().split()
        runs.update(" ".join(words[n : n + PHRASE]) for n in range(len(words) - PHRASE + 1))
    return runs


def _same(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Answers that many items have word for word: a server that says one thing to all."""
    texts = Counter(row["turns"][0]["response"] for row in rows if row["turns"])
    return list(itertools.takewhile(lambda pair: pair[1] >= SAME_REPLIES, texts.most_common()))
