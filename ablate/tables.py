"""The results of an ablation, as the paper's tables and figures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from ablate.plan import Ablation, Evaluation, Point
from ablate.settings import AXES, Value
from serve.evals.statistics import DRAWS, Answers, Estimate, averaged, read_answers
from store import Storage
from store.publish import publishing

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FORMAT = 1
ASKED = {None: "as asked", "visual": "sight only", "audio": "sound only"}
# Top-1 accuracies of the paper, in %, judged by an LLM.
BENCHMARKS = ("MSRVTT-QA", "ActivityNet-QA", "AVSSD", "MUSIC-AVQA")
PAPER = {
    "visual": {"clip-vit-l-14": (60.4, 50.6, 48.3, 47.9), "clip-vit-h-14": (60.9, 51.2, 49.0, 48.4)},
    "audio": {
        "clap-htsat-tiny": (60.4, 50.6, 48.3, 47.9),
        "whisper-tiny": (58.5, 48.4, 45.4, 45.7),
        "whisper-base": (59.3, 49.8, 47.8, 48.2),
        "whisper-small": (60.7, 51.3, 49.1, 48.7),
    },
    "llm": {"vicuna-7b-v1.5": (60.4, 50.6, 48.3, 47.9), "vicuna-13b-v1.5": (61.5, 51.9, 50.4, 49.3)},
    "strategy": {
        "pt1": (56.7, 45.3, 43.6, 43.5),
        "pt2": (58.3, 48.1, 45.1, 45.4),
        "mat": (60.4, 50.6, 48.3, 47.9),
    },
}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        value: value on the axis.
        n: conversations asked.
        deviation: standard deviation of the accuracy over seeds; None with one seed.
        difference: accuracy minus the base point's, on the same conversations; None in the base row or without one.
        paper: the paper's accuracy, in %.
    """

    value: Value
    benchmark: str
    n: int
    seeds: int
    accuracy: Estimate
    deviation: float | None
    difference: Estimate | None
    loss: Estimate
    paper: float | None


@dataclass
class Table:
    """The results on one axis."""

    axis: str
    title: str
    rows: list[Row] = field(default_factory=list)


class Results:
    """All evaluations finished so far.

    Args:
        ablation: the plan.
        failed: a record of each command that failed.
    """

    def __init__(self, ablation: Ablation, failed: Sequence[Mapping[str, object]]) -> None:
        self._ablation, self._failed = ablation, list(failed)
        self._found: list[tuple[Evaluation, dict[str, Any], Answers]] = []
        seeds, points = ablation.config.seeds, ablation.points()
        evaluations = [e for seed in seeds for point in points for e in ablation.evaluations(point, seed)]
        for evaluation in evaluations:
            if evaluation.file.exists():
                report = json.loads(evaluation.file.read_bytes())
                self._found.append((evaluation, report, read_answers(report)))
        self._missing = len(evaluations) - len(self._found)

    def numbers(self) -> list[dict[str, Any]]:
        """One record for each point, seed, benchmark and way of asking, with the files and digests behind it."""
        return [self._number(*result) for result in self._found]

    def _number(self, evaluation: Evaluation, report: Mapping[str, Any], answers: Answers) -> dict[str, Any]:
        return {
            "axis": evaluation.point.axis or "base",
            "value": evaluation.point.value,
            "seed": evaluation.seed,
            "benchmark": evaluation.benchmark,
            "asked": ASKED[evaluation.sense],
            "n": len(answers.ids),
            "accuracy": asdict(answers.accuracy),
            "loss": asdict(answers.mean_loss),
            "accuracy_by_modality": {m: {"n": len(p.ids), **asdict(p.accuracy)} for m, p in answers.parts().items()},
            "config_digest": evaluation.run.digest,
            "columns": report["columns"],
            "column_digests": report["digests"],
            "checkpoint_step": report["steps"],
            "checkpoint": str(evaluation.run.checkpoint),
            "answers": str(evaluation.file),
        }

    def tables(self) -> list[Table]:
        """One table for each varied axis, with the rows finished so far."""
        tables = []
        for axis in AXES:
            table = Table(axis, AXES[axis].title)
            for benchmark in self._ablation.config.benchmarks:
                table.rows += self._asked(benchmark) if axis == "ask" else self._trained(axis, benchmark)
            tables.append(table)
        return [table for table in tables if table.rows]

    def _trained(self, axis: str, benchmark: str) -> list[Row]:
        base = self._of(Point(), benchmark, None)
        rows = ((value, self._of(point, benchmark, None)) for value, point in self._ablation.rows(axis))
        return [_row(axis, value, benchmark, seeds, base) for value, seeds in rows if seeds]

    def _asked(self, benchmark: str) -> list[Row]:
        """Rows of the base point's model, on the conversations that it was asked in every way."""
        ways = [sense for sense in (None, *self._ablation.config.axes.ask) if self._of(Point(), benchmark, sense)]
        if len(ways) < 2:
            return []
        by_sense = {sense: self._of(Point(), benchmark, sense) for sense in ways}
        common = set.intersection(*(set(answers.ids) for seeds in by_sense.values() for answers in seeds))
        if not common:
            return []
        kept = {sense: [answers.only(common) for answers in seeds] for sense, seeds in by_sense.items()}
        return [_row("ask", ASKED[sense], benchmark, seeds, kept[None]) for sense, seeds in kept.items()]

    def _of(self, point: Point, benchmark: str, sense: str | None) -> list[Answers]:
        """The answers of each finished seed."""
        key = (point, benchmark, sense)
        return [answers for a, _, answers in self._found if (a.point, a.benchmark, a.sense) == key]

    def write(self, folder: Path) -> None:
        """Write results.json, results.md and a plot of each table, each atomically."""
        tables = self.tables()
        report = {
            "format": FORMAT,
            "settings": self._ablation.config.model_dump(mode="json"),
            "intervals": f"95%, bootstrap over media items, {DRAWS} draws, seed 0",
            "numbers": self.numbers(),
            "tables": [asdict(table) for table in tables],
            "failed": self._failed,
        }
        for table in tables:
            _plot(table, folder)
        Storage(folder).write("results.md", self._markdown(tables).encode())
        Storage(folder).write("results.json", json.dumps(report, indent=1).encode())

    def _markdown(self, tables: Sequence[Table]) -> str:
        base = ", ".join(f"{axis} {self._ablation.base_value(axis)}" for axis in AXES if AXES[axis].field)
        lines = [
            "# Ablations",
            "",
            "One axis is varied at a time. Accuracy is the share of held-out conversations that the model would answer",
            "word for word, in %. Intervals are 95%, by bootstrap over media items (where all is right or all is wrong",
            "they have no width); differences are paired, from the base point. results.json has all with its digests.",
            "",
            f"Base point: {base}; seeds {', '.join(map(str, self._ablation.config.seeds))}.",
        ]
        if self._missing:
            lines += ["", f"**Not whole: {self._missing} evaluations are still to come, or have failed.**"]
        for table in tables:
            has_paper = any(row.paper is not None for row in table.rows)
            head = [table.axis, "benchmark", "n", "seeds", "accuracy", "deviation of seeds", "difference", "loss"]
            head += ["paper, judged by an LLM"] if has_paper else []
            lines += ["", f"## {table.title}", ""]
            if table.axis == "ask":
                lines += [
                    "Of the base point's model, on those conversations alone that can be asked in all of these ways.",
                    "",
                ]
            lines += [_line(head), _line(["---"] * len(head))]
            lines += [_line(_cells(row)[: len(head)]) for row in table.rows]
            lines += ["", f"![{table.title}]({table.axis}.png)"]
        if self._failed:
            lines += [
                "",
                "## Failed",
                "",
                *(f"- `{f['what']}`: {f['said']} (status {f['status']}, {f['log']})" for f in self._failed),
            ]
        return "\n".join([*lines, ""])


def _row(axis: str, value: Value, benchmark: str, seeds: Sequence[Answers], base: Sequence[Answers]) -> Row:
    answers = averaged(seeds)
    accuracies = [float(seed.exact.mean()) for seed in seeds]
    is_base = [id(seed) for seed in seeds] == [id(seed) for seed in base]
    return Row(
        value=value,
        benchmark=benchmark,
        n=len(answers.ids),
        seeds=len(seeds),
        accuracy=answers.accuracy,
        deviation=float(np.std(accuracies, ddof=1)) if len(seeds) > 1 else None,
        difference=None if is_base or not base else answers.minus(averaged(base)),
        loss=answers.mean_loss,
        paper=paper_accuracy(axis, value, benchmark),
    )


def paper_accuracy(axis: str, value: Value, benchmark: str) -> float | None:
    """The paper's accuracy, in %, if it reports one under this benchmark's name."""
    name = str(value).lower().rpartition("/")[2]
    stem = next((known for known in PAPER.get(axis, {}) if name == known or name.startswith(f"{known}.")), None)
    return PAPER[axis][stem][BENCHMARKS.index(benchmark)] if stem and benchmark in BENCHMARKS else None


def _cells(row: Row) -> list[str]:
    loss = row.loss
    return [
        str(row.value),
        row.benchmark,
        str(row.n),
        str(row.seeds),
        _percent(row.accuracy, ""),
        "" if row.deviation is None else f"{100 * row.deviation:.1f}",
        "" if row.difference is None else _percent(row.difference, "+"),
        f"{loss.value:.4f} ({loss.low:.4f} to {loss.high:.4f})",
        "" if row.paper is None else f"{row.paper:.1f}",
    ]


def _percent(estimate: Estimate, sign: str) -> str:
    value, low, high = (f"{100 * number:{sign}.1f}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plot(table: Table, folder: Path) -> None:
    """Plot accuracies with their intervals: a line over numbers, points over names."""
    figure, axes = plt.subplots(figsize=(6, 4))
    values = list(dict.fromkeys(row.value for row in table.rows))
    numeric = all(isinstance(value, int) for value in values)
    for number, benchmark in enumerate(dict.fromkeys(row.benchmark for row in table.rows)):
        rows = [row for row in table.rows if row.benchmark == benchmark]
        if numeric:
            rows.sort(key=lambda row: row.value)
        places = [row.value if numeric else values.index(row.value) + 0.08 * number for row in rows]
        middle, low, high = (
            100 * np.array([getattr(row.accuracy, name) for row in rows]) for name in ("value", "low", "high")
        )
        spread = np.maximum(0, [middle - low, high - middle])
        axes.errorbar(places, middle, spread, fmt="o-" if numeric else "o", capsize=4, label=benchmark)
    if numeric:
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(values), [str(value) for value in sorted(values)])
        axes.minorticks_off()
    else:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
        axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set(title=table.title, ylabel="exact answers, %")
    axes.legend()
    figure.tight_layout()
    with publishing(folder / f"{table.axis}.png") as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
