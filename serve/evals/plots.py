"""Plots of scores with their intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serve.evals.compare import Difference
from serve.evals.replies import HIGHEST
from serve.evals.scores import TaskScores
from serve.evals.statistics import shown


def plot_scores(path: Path, scores: Sequence[TaskScores]) -> None:
    """Each task's main metric with its interval, and the paper's figure as a mark; scores to 5 have an axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_axis = [[s for s in scores if (_main(s) == "score") == is_score] for is_score in (False, True)]
    kept = [own for own in by_axis if own]
    figure, panels = plt.subplots(
        len(kept), figsize=(8, len(kept) + 0.5 * len(scores)), squeeze=False, height_ratios=[1 + len(o) for o in kept]
    )
    for axes, own in zip(panels[:, 0], kept, strict=True):
        _plot_tasks(axes, own)
    figure.tight_layout()
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def _main(scores: TaskScores) -> str:
    return next(iter(scores.metrics))


def _plot_tasks(axes: Any, scores: Sequence[TaskScores]) -> None:
    """Tasks whose main metrics have one scale."""
    highest = max(HIGHEST if _main(each) == "score" else 1 for each in scores)
    for place, each in enumerate(scores):
        name, value = _main(each), each.metrics[_main(each)]
        axes.barh(place, value.value, color="tab:blue")
        axes.plot([value.low, value.high], [place, place], color="black")
        of = f"{each.scored:,} of {each.questions:,}{', partial' if each.is_partial else ''}"
        axes.text(value.high, place, f"  {shown(value, name).partition(' ')[0]} ({of})", va="center", fontsize=7)
        paper = each.task.paper.figures.get(name) if each.task.paper else None
        if paper is not None:
            axes.scatter([paper], [place], marker="|", s=250, color="tab:red", zorder=3)
    axes.set_yticks(range(len(scores)), [f"{e.task.title}\n{_main(e)}" for e in scores], fontsize=8)
    axes.invert_yaxis()
    note = "; red: the paper's figure, of another protocol" if any(e.task.paper for e in scores) else ""
    axes.set(xlabel=f"score and 95% interval{note}", xlim=(0, 1.25 * max(highest, axes.get_xlim()[1])))


def plot_differences(path: Path, differences: Mapping[str, tuple[str, Difference]]) -> None:
    """The difference of each task's main metric, by title, with its interval; scores to 5 have an axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_axis = [{t: d for t, d in differences.items() if (d[0] == "score") == is_score} for is_score in (False, True)]
    kept = [own for own in by_axis if own]
    figure, panels = plt.subplots(
        len(kept), figsize=(8, len(kept) + 0.5 * len(differences)), squeeze=False,
        height_ratios=[1 + len(own) for own in kept],
    )  # fmt: skip
    for axes, own in zip(panels[:, 0], kept, strict=True):
        values = [difference.difference for _, difference in own.values()]
        spread = [[v.value - v.low for v in values], [v.high - v.value for v in values]]
        axes.errorbar([v.value for v in values], range(len(own)), xerr=spread, fmt="o", capsize=4)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(own)), [f"{title}\n{metric}" for title, (metric, _) in own.items()], fontsize=8)
        axes.set(xlabel="B minus A, and 95% interval", ylim=(len(own) - 0.5, -0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)
