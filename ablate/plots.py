"""The plot of a table: scores with their intervals over the values of an axis."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from ablate.rows import Row
from serve.evals.plots import scale_of
from store.publish import publishing

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def plot(title: str, rows: Sequence[Row], path: Path) -> None:
    """Plot scores with their intervals, a panel for each scale: a line over numbers, points over names.

    Args:
        title: of the table.
        rows: its rows.
        path: PNG file; appears whole.
    """
    scales = list(dict.fromkeys(scale_of(row.metric) for row in rows))
    figure, panels = plt.subplots(1, len(scales), figsize=(1 + 5 * len(scales), 4), squeeze=False)
    values = list(dict.fromkeys(row.value for row in rows))
    for panel, scale in zip(panels[0], scales, strict=True):
        _draw(panel, [row for row in rows if scale_of(row.metric) == scale], values)
        panel.set(ylabel=scale)
        panel.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.suptitle(title)
    figure.tight_layout()
    with publishing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def _draw(panel: Any, rows: Sequence[Row], values: Sequence[str | int]) -> None:
    """A line or points for each benchmark, and the paper's figures as crosses."""
    numeric = all(isinstance(value, int) for value in values)
    for number, benchmark in enumerate(dict.fromkeys(row.benchmark for row in rows)):
        own = [row for row in rows if row.benchmark == benchmark]
        if numeric:
            own.sort(key=lambda row: row.value)
        places = [row.value if numeric else values.index(row.value) + 0.08 * number for row in own]
        middle, low, high = (np.array([getattr(row.score, name) for row in own]) for name in ("value", "low", "high"))
        spread = np.maximum(0, [middle - low, high - middle])
        line = panel.errorbar(places, middle, spread, fmt="o-" if numeric else "o", capsize=4, label=benchmark)
        papers = [(place, row.paper) for place, row in zip(places, own, strict=True) if row.paper is not None]
        if papers:
            colour, label = line.lines[0].get_color(), f"{benchmark}, the paper"
            panel.scatter(*zip(*papers, strict=True), marker="x", color=colour, label=label, zorder=3)
    if numeric:
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted(values), [str(value) for value in sorted(values)])
        panel.minorticks_off()
    else:
        panel.set_xticks(range(len(values)), [str(value) for value in values])
        panel.set_xlim(-0.5, len(values) - 0.5)
