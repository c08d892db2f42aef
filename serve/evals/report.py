"""The report of an evaluation: Markdown to read, JSON for programs, a plot, and a file of items for each task."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serve.evals.judge import Judgements
from serve.evals.scores import TaskScores
from serve.evals.statistics import Estimate
from store.console import console, make_table
from store.publish import publishing

NOTE = (
    "Intervals are 95%, by bootstrap over videos. Figures of the paper stand here for orientation: its protocols are "
    "not published whole, as each note says."
)


def write_report(folder: Path, run: Mapping[str, Any], scores: Sequence[TaskScores], leaks: Mapping[str, str]) -> None:
    """Write `report.md`, `report.json`, `report.png` and `<task>.items.jsonl`, and print the table.

    Args:
        folder: where the answers are.
        run: what they have in common.
        scores: of each task.
        leaks: by task, what is to be said of media that were trained on; by the empty name, of all tasks.
    """
    entries = [_entry(each, leaks.get(each.task.name)) for each in scores]
    for each in scores:
        lines = "".join(json.dumps(item) + "\n" for item in each.items)
        _write(folder / f"{each.task.name}.items.jsonl", lines)
    _write(folder / "report.json", json.dumps({"run": dict(run), "tasks": entries}, indent=1))
    _write(folder / "report.md", _markdown(run, scores, leaks))
    scored = [each for each in scores if each.metrics]
    if scored:
        with publishing(folder / "report.png") as temporary:
            _plot(temporary, scored)
    _print(scores, leaks)
    console.print(f"report: {folder}/report.md, {folder}/report.json{', plot beside them' if scored else ''}")


def _write(path: Path, text: str) -> None:
    with publishing(path) as temporary:
        temporary.write_text(text)


def _entry(scores: TaskScores, leak: str | None) -> dict[str, Any]:
    task = scores.task
    return {
        "task": task.name,
        "title": task.title,
        "conversations": scores.conversations,
        "scorer": task.scorer,
        "prompt": task.prompt,
        "answer_prefix": task.answer_prefix,
        "system": task.system,
        "modality": task.modality,
        "digest": scores.digest,
        "questions": scores.questions,
        "expected": scores.expected,
        "scored": scores.scored,
        "partial": scores.is_partial,
        "failed": scores.failed,
        "failed_are": scores.failed_are,
        "reasons": dict(scores.reasons),
        "invalid": scores.invalid,
        "tokens": scores.tokens,
        "cut": scores.cut,
        "length_ratio": scores.length_ratio,
        "judge": _judge(scores),
        "metrics": {name: asdict(value) for name, value in scores.metrics.items()},
        "groups": {name: {"count": group.count, **asdict(group.value)} for name, group in scores.groups.items()},
        "paper": task.paper.model_dump() if task.paper else None,
        "leaks": leak,
        "items": f"{task.name}.items.jsonl",
    }


def _judge(scores: TaskScores) -> dict[str, Any] | None:
    """Who judged, and how."""
    if not (judge := scores.judge):
        return None
    return {
        "protocol": judge.protocol,
        "prompts": judge.prompts,
        "model": judge.model,
        "served": judge.served,
        "refused": judge.refused,
        "undecided": scores.undecided,
    }


def shown(value: Estimate, metric: str = "") -> str:
    """A value with its interval; a judge's score, which ends at 5, has two decimals."""
    digits = 2 if metric == "score" else 1
    return f"{value.value:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def _counts(scores: TaskScores) -> str:
    """How many answers a score is of."""
    of = f"{scores.scored:,} of {scores.questions:,}"
    expected = f", the set has {scores.expected}" if scores.expected else ""
    return f"{of}{expected}{', partial' if scores.is_partial else ''}"


def _remarks(scores: TaskScores, leak: str | None) -> list[str]:
    """What a reader of a score has to know."""
    said = [leak] if leak else []
    if scores.failed:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in scores.reasons.most_common(3))
        said.append(f"{scores.failed} could not be asked, counted as {scores.failed_are}: {reasons}")
    if scores.invalid:
        said.append(f"{scores.invalid} ({scores.invalid / scores.scored:.1%}) could not be parsed and are wrong")
    if scores.cut:
        said.append(f"{scores.cut} were ended at {scores.task.max_new_tokens} tokens")
    if scores.length_ratio is not None:
        said.append(f"words to words of references: {scores.length_ratio:.2f}")
    if judge := scores.judge:
        served = ", ".join(f"{name} ({count:,})" for name, count in judge.served.items())
        said.append(
            f"judged by {judge.model}, served as {served or 'nothing'}; protocol {judge.protocol}, {judge.prompts}"
        )
        said += _warnings(judge, scores.undecided)
    elif scores.task.judged and scores.scored:
        said.append("needs a judge: answered, not scored")
    return said


def _warnings(judge: Judgements, undecided: int) -> list[str]:
    """What casts doubt on judgements."""
    said = []
    if undecided:
        said.append(f"{undecided} are undecided: the judge could not be asked; the same command asks again")
    if judge.refused:
        said.append(f"{judge.refused} judgements were refused")
    if judge.says_one_thing:
        said.append(f"the judge said the same of all {len(judge.by_name)} answers: look whether it works")
    return said


def _print(scores: Sequence[TaskScores], leaks: Mapping[str, str]) -> None:
    table = make_table("task", "metric", "score", "of", "paper")
    for row in _rows(scores):
        table.add_row(*row)
    console.print(table)
    if "" in leaks:
        console.print(leaks[""], markup=False)
    for each in scores:
        for remark in _remarks(each, leaks.get(each.task.name)):
            console.print(f"{each.task.name}: {remark}", markup=False)


def _rows(scores: Sequence[TaskScores]) -> list[list[str]]:
    """A row for each task's main metrics: task, metric, score, number of answers, the paper's figure."""
    rows = []
    for each in scores:
        paper = each.task.paper.figures if each.task.paper else {}
        for name, value in list(each.metrics.items())[:2]:
            rows.append([each.task.name, name, shown(value, name), _counts(each), str(paper.get(name, ""))])
        if not each.metrics:
            rows.append([each.task.name, "needs a judge", "", _counts(each), ""])
    return rows


def _markdown(run: Mapping[str, Any], scores: Sequence[TaskScores], leaks: Mapping[str, str]) -> str:
    lines = [
        "# Evaluation",
        "",
        "| task | metric | score (95% interval) | questions | the paper |",
        "| - | - | - | - | - |",
    ]
    lines += [f"| {' | '.join(row)} |" for row in _rows(scores)]
    lines += ["", NOTE, "", *(f"- {name}: `{json.dumps(value)}`" for name, value in run.items())]
    lines += [*([f"- {leaks['']}"] if "" in leaks else []), ""]
    if any(each.metrics for each in scores):
        lines += ["![scores](report.png)", ""]
    for each in scores:
        task = each.task
        asked = f"Task `{task.name}` of conversations `{each.conversations}`, by {task.modality.replace('_', '-')}"
        lines += [f"## {task.title}", "", f"{asked}; {_counts(each)}; {each.tokens:.1f} tokens an answer.", ""]
        lines += [*(f"- {remark}" for remark in _remarks(each, leaks.get(task.name)))]
        lines += [
            f"- prompt: `{json.dumps(task.prompt)}`; digest of the questions, prompts and references: `{each.digest}`"
        ]
        lines += [f"- the paper: {_figures(task.paper.figures)}. {task.paper.note}"] if task.paper else []
        if each.metrics:
            lines += ["", "| metric | score (95% interval) |", "| --- | --- |"]
            lines += [f"| {name} | {shown(value, name)} |" for name, value in each.metrics.items()]
        if each.groups:
            lines += ["", f"| group | {next(iter(each.metrics))} | questions |", "| --- | --- | --- |"]
            main = next(iter(each.metrics))
            lines += [f"| {n} | {shown(group.value, main)} | {group.count:,} |" for n, group in each.groups.items()]
        lines.append("")
    return "\n".join(lines)


def _figures(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items())


def _plot(path: Path, scores: Sequence[TaskScores]) -> None:
    """Each task's main metric with its interval, and the paper's figure as a mark."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1 + 0.5 * len(scores)))
    for place, each in enumerate(scores):
        name, value = next(iter(each.metrics.items()))
        axes.barh(place, value.value, color="tab:blue")
        axes.plot([value.low, value.high], [place, place], color="black")
        of = f"{each.scored:,} of {each.questions:,}{', partial' if each.is_partial else ''}"
        axes.text(value.high, place, f"  {value.value:.1f} ({of})", va="center", fontsize=7)
        paper = each.task.paper.figures.get(name) if each.task.paper else None
        if paper is not None:
            axes.scatter([paper], [place], marker="|", s=250, color="tab:red", zorder=3)
    axes.set_yticks(range(len(scores)), [f"{e.task.title}\n{next(iter(e.metrics))}" for e in scores], fontsize=8)
    axes.invert_yaxis()
    note = "; red: the paper's figure, of another protocol" if any(e.task.paper for e in scores) else ""
    axes.set(xlabel=f"score and 95% interval{note}", xlim=(0, 1.25 * max(1, axes.get_xlim()[1])))
    figure.tight_layout()
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)
