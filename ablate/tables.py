"""The results of an ablation, as the paper's tables and figures."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ablate.outcomes import Outcome, read_outcome
from ablate.plan import Ablation, Evaluation, Point
from ablate.plots import plot
from ablate.rows import Row, Table, row_of
from ablate.settings import ASKED, AXES
from serve.evals.statistics import DRAWS, Estimate
from store import Storage

FORMAT = 2


class Results:
    """All evaluations finished so far.

    Args:
        ablation: the plan.
        failed: a record of each command that failed.
    """

    def __init__(self, ablation: Ablation, failed: Sequence[Mapping[str, object]]) -> None:
        self._ablation, self._failed = ablation, list(failed)
        seeds, points = ablation.config.seeds, ablation.points()
        evaluations = [e for seed in seeds for point in points for e in ablation.evaluations(point, seed)]
        outcomes = [(evaluation, read_outcome(evaluation, ablation.config.judge)) for evaluation in evaluations]
        self._found = [(evaluation, outcome) for evaluation, outcome in outcomes if outcome]
        self._missing = len(evaluations) - len(self._found)
        self._undecided = sum(outcome.undecided for _, outcome in self._found)

    def numbers(self) -> list[dict[str, Any]]:
        """One record for each point, seed, benchmark and way of asking, with the files and digests behind it."""
        return [self._number(*result) for result in self._found]

    def _number(self, evaluation: Evaluation, outcome: Outcome) -> dict[str, Any]:
        loss = outcome.mean_loss
        return {
            "axis": evaluation.point.axis or "base",
            "value": evaluation.point.value,
            "seed": evaluation.seed,
            "benchmark": evaluation.benchmark,
            "asked": ASKED[evaluation.sense],
            "task": evaluation.task.name if evaluation.task else None,
            "metric": outcome.metric,
            "n": len(outcome.ids),
            "score": asdict(outcome.score),
            "loss": asdict(loss) if loss else None,
            "judge": outcome.judge or None,
            "undecided": outcome.undecided,
            "config_digest": evaluation.run.digest,
            "columns": {sense: getattr(evaluation.run.config, sense) for sense in ("visual", "audio")},
            "checkpoint": str(evaluation.run.checkpoint),
            "report": str(evaluation.file),
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
        return [row_of(axis, value, benchmark, seeds, base) for value, seeds in rows if seeds]

    def _asked(self, benchmark: str) -> list[Row]:
        """Rows of the base point's model, on the questions that it was asked in every way."""
        ways = [sense for sense in (None, *self._ablation.config.axes.ask) if self._of(Point(), benchmark, sense)]
        if len(ways) < 2:
            return []
        by_sense = {sense: self._of(Point(), benchmark, sense) for sense in ways}
        common = set.intersection(*(set(outcome.ids) for seeds in by_sense.values() for outcome in seeds))
        if not common:
            return []
        kept = {sense: [outcome.only(common) for outcome in seeds] for sense, seeds in by_sense.items()}
        return [row_of("ask", ASKED[sense], benchmark, seeds, kept[None]) for sense, seeds in kept.items()]

    def _of(self, point: Point, benchmark: str, sense: str | None) -> list[Outcome]:
        """The outcome of each finished seed."""
        key = (point, benchmark, sense)
        return [outcome for e, outcome in self._found if (e.point, e.benchmark, e.sense) == key]

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
            plot(table.title, table.rows, folder / f"{table.axis}.png")
        Storage(folder).write("results.md", self._markdown(tables).encode())
        Storage(folder).write("results.json", json.dumps(report, indent=1).encode())

    def _markdown(self, tables: Sequence[Table]) -> str:
        base = ", ".join(f"{axis} {self._ablation.base_value(axis)}" for axis in AXES if AXES[axis].field)
        lines = [
            "# Ablations",
            "",
            "One axis is varied at a time. Scores are in %, except a judge's, which are from 0 to 5. Exact answers",
            "are the share of held-out conversations that the model would answer word for word; all else is of",
            "generated answers. Intervals are 95%, by bootstrap over media items (Wilson's where all is right, or all",
            "is wrong); differences are paired, from the base point. The paper's figures are a judge's, of",
            "which it does not give the version or the prompt; they stand in brackets, beside judged rows only.",
            "results.json has all with its digests.",
            "",
            f"Base point: {base}; seeds {', '.join(map(str, self._ablation.config.seeds))}.",
        ]
        if self._missing:
            lines += ["", f"**Incomplete: {self._missing} evaluations are still to come, or have failed.**"]
        if self._undecided:
            lines += ["", f"**{self._undecided} answers are not judged yet; the same command asks again.**"]
        for table in tables:
            lines += ["", f"## {table.title}", ""]
            if table.axis == "ask":
                lines += [
                    "Of the base point's model, on those questions alone that can be asked in all of these ways.",
                    "",
                ]
            lines += [*_grid(table), "", *_details(table), "", f"![{table.title}]({table.axis}.png)"]
        if self._failed:
            said = (f"- `{f['what']}`: {f['said']} (status {f['status']}, {f['log']})" for f in self._failed)
            lines += ["", "## Failed", "", *said]
        return "\n".join([*lines, ""])


def _grid(table: Table) -> list[str]:
    """The paper's form: a line for each value, a column for each benchmark; the paper's figures in brackets."""
    benchmarks = list(dict.fromkeys(row.benchmark for row in table.rows))
    cells = {(row.value, row.benchmark): row for row in table.rows}
    lines = [_line([table.axis, *benchmarks]), _line(["---"] * (1 + len(benchmarks)))]
    for value in dict.fromkeys(row.value for row in table.rows):
        rows = [cells.get((value, benchmark)) for benchmark in benchmarks]
        lines.append(_line([str(value), *("" if row is None else _with_paper(row) for row in rows)]))
    return lines


def _with_paper(row: Row) -> str:
    """A score, and the paper's in brackets."""
    paper = "" if row.paper is None else f" [{row.paper:.1f}]"
    return f"{row.score.value:.{_digits(row)}f}{paper}"


def _details(table: Table) -> list[str]:
    """Every number with its interval; columns that would be empty are left out."""
    heads = [table.axis, "benchmark", "metric", "n", "seeds", "score", "deviation of seeds", "difference", "loss"]
    heads += ["judge", "paper, judged by an LLM"]
    rows = [_cells(row) for row in table.rows]
    kept = [place for place in range(len(heads)) if any(row[place] for row in rows)]
    return [_line([row[place] for place in kept]) for row in (heads, ["---"] * len(heads), *rows)]


def _cells(row: Row) -> list[str]:
    digits = _digits(row)
    return [
        str(row.value),
        row.benchmark,
        row.metric,
        str(row.n),
        str(row.seeds),
        _with_interval(row.score, f".{digits}f"),
        "" if row.deviation is None else f"{row.deviation:.{digits}f}",
        "" if row.difference is None else _with_interval(row.difference, f"+.{digits}f"),
        "" if row.loss is None else _with_interval(row.loss, ".4f"),
        row.judge,
        "" if row.paper is None else f"{row.paper:.1f}",
    ]


def _digits(row: Row) -> int:
    return 2 if row.metric == "score" else 1


def _with_interval(estimate: Estimate, form: str) -> str:
    value, low, high = (f"{number:{form}}" for number in (estimate.value, estimate.low, estimate.high))
    return f"{value} ({low} to {high})"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
