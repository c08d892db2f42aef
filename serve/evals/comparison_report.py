"""The report of a comparison: a table to see, and Markdown, JSON and a plot in a folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serve.evals.compare import Comparison, Difference, Item
from serve.evals.folder import RunInfo
from serve.evals.plots import plot_differences
from serve.evals.statistics import DRAWS, SWAPS
from store.console import console, make_table
from store.publish import publishing

SAMPLES = 5  # of each direction
NOTE = (
    f"B minus A, paired by question. Intervals are 95%, by {DRAWS:,} bootstrap draws of whole videos; where no answer "
    "turned right or wrong, or all did in one way, they are widened by Wilson's bound. p is two-sided, by "
    f"{SWAPS:,} draws of a paired permutation test that swaps whole videos. Neither is corrected for several tasks."
)
HEADS = ("task", "metric", "questions", "A", "B", "B - A (95% interval)", "p", "up", "down")


def say_comparison(comparisons: Sequence[Comparison]) -> None:
    """Print the table."""
    table = make_table(*HEADS)
    for row in _rows(comparisons):
        table.add_row(*row)
    console.print(table)
    console.print(NOTE)


def write_comparison(folder: Path, comparisons: Sequence[Comparison], runs: Mapping[str, RunInfo]) -> None:
    """Write `comparison.md`, `comparison.json` and `comparison.png`.

    Args:
        folder: made if it does not exist.
        comparisons: of each task.
        runs: what the answers of each side have in common.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = {name: run.model_dump() for name, run in runs.items()}
    report = {"runs": facts, "note": NOTE, "tasks": [_entry(each) for each in comparisons]}
    for name, text in (("json", json.dumps(report, indent=1)), ("md", _markdown(comparisons, runs))):
        with publishing(folder / f"comparison.{name}") as temporary:
            temporary.write_text(text)
    with publishing(folder / "comparison.png") as temporary:
        plot_differences(temporary, {each.title: next(iter(each.metrics.items())) for each in comparisons})
    console.print(f"report: {folder}/comparison.md, {folder}/comparison.json, plot beside them")


def _entry(comparison: Comparison) -> dict[str, Any]:
    main = next(iter(comparison.metrics))
    changed = {
        name: [_ids(pair) for pair in comparison.changed(main, sign)] for name, sign in (("up", 1), ("down", -1))
    }
    metrics = {name: asdict(difference) for name, difference in comparison.metrics.items()}
    return {"task": comparison.task, "title": comparison.title, "metrics": metrics, "changed": {main: changed}}


def _ids(pair: tuple[Item, Item]) -> dict[str, Any]:
    return {"id": pair[0]["id"], "occurrence": pair[0]["occurrence"]}


def _rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    return [
        [each.task, name, *_cells(name, difference), *_moved(each, name)]
        for each in comparisons
        for name, difference in each.metrics.items()
    ]


def _cells(name: str, found: Difference) -> list[str]:
    digits, value = (2 if name == "score" else 1), found.difference
    low, high = (f"{bound:+.{digits}f}" for bound in (value.low, value.high))
    sides = (f"{side:.{digits}f}" for side in (found.first, found.second))
    return [f"{found.count:,}", *sides, f"{value.value:+.{digits}f} ({low} to {high})", f"{found.p:.2g}"]


def _moved(comparison: Comparison, name: str) -> list[str]:
    """How many questions rose and fell; empty for metrics that a question does not have."""
    if name not in comparison.first[0]:
        return ["", ""]
    return [f"{len(comparison.changed(name, sign)):,}" for sign in (1, -1)]


def _markdown(comparisons: Sequence[Comparison], runs: Mapping[str, RunInfo]) -> str:
    lines = [
        "# Comparison",
        "",
        *(f"- {name}: `{run.path}`, weights {run.checkpoint}" for name, run in runs.items()),
        "",
    ]
    lines += [f"| {' | '.join(row)} |" for row in (HEADS, ["-"] * len(HEADS), *_rows(comparisons))]
    lines += ["", NOTE, "", "![differences](comparison.png)", ""]
    for each in comparisons:
        main = each.of_items
        words = (
            ("From wrong to right", "From right to wrong") if main == "accuracy" else (f"{main} rose", f"{main} fell")
        )
        lines += [f"## {each.title}", ""]
        for said, sign in zip(words, (1, -1), strict=True):
            changed = each.changed(main, sign)
            lines += [f"{said}: {len(changed):,}{', for example' if changed else ''}", ""]
            lines += [f"- {line}" for pair in changed[:SAMPLES] for line in [_sample(main, *pair)]]
            lines += [""] if changed else []
    return "\n".join(lines)


def _sample(name: str, first: Item, second: Item) -> str:
    """A question with both replies; JSON strings keep whatever is in them on one line."""
    question, references, *replies = (
        json.dumps(value, ensure_ascii=False)
        for value in (first["question"], first["references"], first["reply"], second["reply"])
    )
    values = f"{name} {first[name]:.4g} and {second[name]:.4g}"
    return f"`{first['id']}` {question}, right: {references}; A: {replies[0]}; B: {replies[1]}; {values}"
