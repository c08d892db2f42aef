"""`serve table`: evaluations as rows of the paper's tables, with the paper's own row."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from serve.evals.compare import Entry, check_comparable, read_report
from serve.evals.statistics import Estimate, shown
from serve.evals.tasks import TASKS
from store import UserError
from store.console import console, make_table
from store.publish import publishing

PAPER = "the paper"
TABLES = {
    "Questions": ("msrvtt-qa", "msvd-qa", "activitynet-qa", "avsd", "avsd-alone", "avssd", "music-avqa"),
    "Captions": ("vatex", "valor", "avsd-comp"),
    "Choices and long descriptions": ("next-qa", "mvbench", "favdbench"),
    "Five dimensions": tuple(name for name, task in TASKS.items() if task.dimension),
}
NOTE = (
    "In brackets: 95% intervals. The paper names neither prompt, split, judge version nor sampling, and its tables mix "
    "judged rows with rows scored by substring and by exact match: its row is no measure of ours."
)


def show_tables(folders: Sequence[Path], out: Path | None) -> None:
    """Print evaluations as rows of the paper's tables.

    Args:
        folders: of evaluations, a row each.
        out: Markdown file for the same; None writes none.

    Raises:
        UserError: a folder is no scored evaluation, or the scores of a task were not made in the same way.
    """
    reports = {str(folder): read_report(folder) for folder in folders}
    _check(reports)
    own = {name for report in reports.values() for name, entry in report.items() if entry["metrics"]}
    tables = TABLES | {"Other tasks": tuple(sorted(own - {name for names in TABLES.values() for name in names}))}
    lines = ["# Evaluations", ""]
    for title, names in tables.items():
        if columns := [column for name in names if name in own for column in _columns(name, reports)]:
            rows = _rows(reports, columns)
            table = make_table(title, *rows[0][1:])
            for row in rows[1:]:
                table.add_row(*row)
            console.print(table)
            lines += [
                f"## {title}",
                "",
                *(f"| {' | '.join(r)} |" for r in (rows[0], ["-"] * len(rows[0]), *rows[1:])),
                "",
            ]
    lines += [NOTE, "", *(f"- {line}" for line in _remarks(reports, own))]
    console.print("\n".join(lines[lines.index(NOTE) :]), markup=False)
    if out:
        with publishing(out) as temporary:
            temporary.write_text("\n".join(lines) + "\n")


def _check(reports: Mapping[str, Mapping[str, Entry]]) -> None:
    """Refuse scores of a task that were not made in the same way, and scores of two protocols."""
    first: dict[str, tuple[Path, Entry]] = {}
    protocols: dict[str, str] = {}
    for folder, report in reports.items():
        for name, entry in report.items():
            if entry["metrics"]:
                check_comparable(first.setdefault(name, (Path(folder), entry)), (Path(folder), entry))
                if entry["judge"]:
                    protocols.setdefault(entry["judge"]["protocol"], f"{name} in {folder}")
    if len(protocols) > 1:
        said = ", ".join(f"{protocol} ({where})" for protocol, where in protocols.items())
        raise UserError(f"scores of two judging protocols stand in no table: {said}")


def _columns(name: str, reports: Mapping[str, Mapping[str, Entry]]) -> list[tuple[str, str]]:
    """The task with its metrics: those that the paper prints, else the main one."""
    metrics = next(report[name]["metrics"] for report in reports.values() if name in report and report[name]["metrics"])
    paper = TASKS[name].paper if name in TASKS else None
    return [(name, metric) for metric in metrics if paper and metric in paper.figures] or [(name, next(iter(metrics)))]


def _rows(reports: Mapping[str, Mapping[str, Entry]], columns: Sequence[tuple[str, str]]) -> list[list[str]]:
    """Heads, a row for each evaluation, and the paper's."""
    rows = [["evaluation", *(f"{name} {metric}" for name, metric in columns)]]
    rows += [
        [folder, *(_cell(report.get(name), metric) for name, metric in columns)] for folder, report in reports.items()
    ]
    papers = [(TASKS[name].paper if name in TASKS else None, metric) for name, metric in columns]
    figures = [str(paper.figures.get(metric, "")) if paper else "" for paper, metric in papers]
    return [*rows, [PAPER, *figures]] if any(figures) else rows


def _cell(entry: Entry | None, metric: str) -> str:
    if not entry or metric not in entry["metrics"]:
        return ""
    return f"{shown(Estimate(**entry['metrics'][metric]), metric)}{', partial' if entry['partial'] else ''}"


def _remarks(reports: Mapping[str, Mapping[str, Entry]], names: set[str]) -> list[str]:
    """Who judged, on how many of the anchors a judge is right, and how the paper's figures differ."""
    said: dict[str, None] = {}
    for report in reports.values():
        for name, entry in report.items():
            if judge := name in names and entry["judge"]:
                known = judge["anchors"]
                anchors = f"; {known['value']:.1f}% of {known['judged']} anchors judged as known" if known else ""
                said[
                    f"{name}: judged by {judge['model']}, protocol {judge['protocol']}, {judge['prompts']}{anchors}"
                ] = None
    notes = [f"{name}: {task.paper.note}" for name, task in TASKS.items() if name in names and task.paper]
    return [*said, *notes]
