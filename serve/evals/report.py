"""The report of an evaluation: Markdown to read, JSON for programs, a plot, and a file of items for each task."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serve.evals.judgements import Judgements
from serve.evals.plots import plot_scores
from serve.evals.scores import TaskScores
from serve.evals.statistics import Estimate, shown
from store.console import console, make_table
from store.publish import publishing

NOTE = (
    "Intervals are 95%, by bootstrap over videos; where all answers are right, or all are wrong, they are Wilson's. "
    "Figures of the paper stand here for orientation: its protocols are not published whole, as each note says."
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
            plot_scores(temporary, scored)
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
        "metrics": _metrics(scores),
        "groups": {name: {"count": group.count, **asdict(group.value)} for name, group in scores.groups.items()},
        "paper": task.paper.model_dump() if task.paper else None,
        "leaks": leak,
        "items": f"{task.name}.items.jsonl",
    }


def _judge(scores: TaskScores) -> dict[str, Any] | None:
    """Who judged, how, and how far judges can be trusted."""
    if not (judge := scores.judge):
        return None
    return {
        "protocol": judge.protocol,
        "prompts": judge.prompts,
        "model": judge.model,
        "served": judge.served,
        "refused": judge.refused,
        "undecided": scores.undecided,
        "anchors": judge.anchors and {"judged": judge.anchors_judged, **asdict(judge.anchors)},
        "others": [_judge(o) | {"metrics": _metrics(o), "invalid": o.invalid} for o in scores.others],  # type: ignore[operator]
        "agreement": scores.agreement and asdict(scores.agreement),
    }


def _metrics(scores: TaskScores) -> dict[str, Any]:
    return {name: asdict(value) for name, value in scores.metrics.items()}


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
        counted = "not in the mean" if scores.task.scorer == "dimension" else "wrong"
        said.append(f"{scores.invalid} ({scores.invalid / scores.scored:.1%}) could not be parsed and are {counted}")
    if scores.cut:
        said.append(f"{scores.cut} were ended at {scores.task.max_new_tokens} tokens")
    if scores.length_ratio is not None:
        said.append(f"words to words of references: {scores.length_ratio:.2f}")
    for each in (scores, *scores.others) if scores.judge else ():
        said += _judge_remarks(each, is_first=each is scores)
    if scores.agreement:
        said.append(_agreement(scores))
    if scores.task.judged and scores.scored and not scores.judge:
        said.append("needs a judge: answered, not scored")
    return said


def _judge_remarks(scores: TaskScores, is_first: bool) -> list[str]:
    """Who judged, what another judge than the first would give, and what casts doubt on it."""
    judge = scores.judge
    assert judge
    served = ", ".join(f"{name} ({count:,})" for name, count in judge.served.items())
    metrics = "; ".join(f"{name} {shown(value, name)}" for name, value in scores.metrics.items())
    own = "" if is_first else f": {metrics or 'no scores'}; {scores.invalid or 0} invalid"
    anchors = f"; {_anchors(judge)} of the anchors as known" if judge.anchors else ""
    said = f"judged by {judge.model}, served as {served or 'nothing'}; protocol {judge.protocol}, {judge.prompts}"
    return [f"{said}{own}{anchors}", *_warnings(judge, scores.undecided)]


def _anchors(judge: Judgements) -> str:
    """On how many of the anchors a judge is right."""
    return f"{_percent(judge.anchors)} of {judge.anchors_judged}" if judge.anchors else ""


def _percent(value: Estimate) -> str:
    return f"{value.value:.1f}% ({value.low:.1f} to {value.high:.1f})"


def _agreement(scores: TaskScores) -> str:
    agreement = scores.agreement
    assert agreement
    alpha = agreement.alpha
    known = f"{alpha.value:.2f} ({alpha.low:.2f} to {alpha.high:.2f})" if alpha else "undefined: all said one thing"
    return (
        f"{1 + len(scores.others)} judges say the same of {_percent(agreement.exact)} of {agreement.count:,} answers; "
        f"Krippendorff's alpha {known}"
    )


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
    heads, rows = _table(scores)
    table = make_table(*heads)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if "" in leaks:
        console.print(leaks[""], markup=False)
    for each in scores:
        for remark in _remarks(each, leaks.get(each.task.name)):
            console.print(f"{each.task.name}: {remark}", markup=False)


def _table(scores: Sequence[TaskScores]) -> tuple[list[str], list[list[str]]]:
    """Heads, and a row for each task's main metrics; the judge's anchors where one judged."""
    heads = ["task", "metric", "score (95% interval)", "questions", "judge's anchors", "the paper"]
    rows = [row for each in scores for row in _rows(each)]
    if not any(each.judge for each in scores):
        return [*heads[:4], *heads[5:]], [[*row[:4], *row[5:]] for row in rows]
    return heads, rows


def _rows(scores: TaskScores) -> list[list[str]]:
    name, judge = scores.task.name, scores.judge
    if not scores.metrics:
        return [[name, "no score" if judge else "needs a judge", "", _counts(scores), "", ""]]
    paper, anchors = scores.task.paper.figures if scores.task.paper else {}, _anchors(judge) if judge else ""
    main = list(scores.metrics.items())[:2]
    return [[name, n, shown(value, n), _counts(scores), anchors, str(paper.get(n, ""))] for n, value in main]


def _markdown(run: Mapping[str, Any], scores: Sequence[TaskScores], leaks: Mapping[str, str]) -> str:
    heads, rows = _table(scores)
    lines = ["# Evaluation", "", *(f"| {' | '.join(row)} |" for row in (heads, ["-"] * len(heads), *rows))]
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
