"""Plots of scores and of differences, with their intervals; each scale has a panel."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from serve.evals.compare import Difference
from serve.evals.judge_replies import HIGHEST
from serve.evals.scores import TaskScores
from serve.evals.statistics import shown

T = TypeVar("T")
SCALES = {"score": f"judge's score, 0 to {HIGHEST}", "CIDEr": "CIDEr x 100", "BLEU-1": "BLEU-1 x 100"}


def scale_of(metric: str) -> str:
    """What the axis of a metric says."""
    return SCALES.get(metric, f"{metric}, %")


def plot_scores(path: Path, scores: Sequence[TaskScores]) -> None:
    """Each task's main metric with its interval, and the paper's figure as a mark."""
    _plot(path, [(_main(each), each) for each in scores], _draw_scores)


def plot_differences(path: Path, differences: Mapping[str, tuple[str, Difference]]) -> None:
    """The difference of each task's main metric with its interval; by title of the task, with the metric's name."""
    _plot(path, [(metric, (title, found)) for title, (metric, found) in differences.items()], _draw_differences)


def _plot(path: Path, entries: Sequence[tuple[str, T]], draw: Callable[[Any, str, Sequence[T]], None]) -> None:
    """Draw entries, each with its metric, in panels by scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_metric: dict[str, list[T]] = {}
    for metric, entry in entries:
        by_metric.setdefault(metric, []).append(entry)
    heights = [1 + len(own) for own in by_metric.values()]
    size = (8, 0.7 * len(by_metric) + 0.5 * len(entries))
    figure, panels = plt.subplots(len(by_metric), figsize=size, squeeze=False, height_ratios=heights)
    for axes, (metric, own) in zip(panels[:, 0], by_metric.items(), strict=True):
        draw(axes, metric, own)
        axes.set(ylim=(len(own) - 0.5, -0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def _main(scores: TaskScores) -> str:
    return next(iter(scores.metrics))


def _draw_scores(axes: Any, metric: str, scores: Sequence[TaskScores]) -> None:
    papers = [each.task.paper.figures.get(metric) if each.task.paper else None for each in scores]
    for place, (each, paper) in enumerate(zip(scores, papers, strict=True)):
        value = each.metrics[metric]
        axes.barh(place, value.value, color="tab:blue")
        axes.plot([value.low, value.high], [place, place], color="black")
        of = f"{each.scored:,} of {each.questions:,}{', partial' if each.is_partial else ''}"
        axes.text(value.high, place, f"  {shown(value, metric).partition(' ')[0]} ({of})", va="center", fontsize=7)
        if paper is not None:
            axes.scatter([paper], [place], marker="|", s=250, color="tab:red", zorder=3)
    axes.set_yticks(range(len(scores)), [each.task.title for each in scores], fontsize=8)
    note = "; red: the paper's figure, of another protocol" if any(paper is not None for paper in papers) else ""
    highest = HIGHEST if metric == "score" else axes.get_xlim()[1]
    axes.set(xlim=(0, 1.25 * max(1, highest)))
    axes.set_xlabel(f"{scale_of(metric)}, with 95% interval{note}", fontsize=8)


def _draw_differences(axes: Any, metric: str, differences: Sequence[tuple[str, Difference]]) -> None:
    values = [found.difference for _, found in differences]
    spread = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
    axes.errorbar([v.value for v in values], range(len(values)), xerr=spread, fmt="o", capsize=4)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(values)), [title for title, _ in differences], fontsize=8)
    axes.set_xlabel(f"B minus A with 95% interval; {scale_of(metric)}", fontsize=8)
