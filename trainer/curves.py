"""A plot of a run's losses, made of its log."""

import json
from pathlib import Path

import numpy as np

PLOT = "loss.png"
SMOOTHED = 50  # steps over which the bold line is a mean, at most


def plot_losses(folder: Path) -> None:
    """Draw the training loss of each logged step, its running mean, and held-out losses, into `loss.png`.

    Args:
        folder: of a run, with its `log.jsonl`.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps, losses = (np.array([line[name] for line in lines], float) for name in ("step", "loss"))
    held_out = [(line["step"] + 1, line["eval_loss"]) for line in lines if "eval_loss" in line]
    figure, axes = plt.subplots(figsize=(8, 4.5))
    axes.plot(steps + 1, losses, color="tab:blue", alpha=0.3, linewidth=1)
    width = max(1, min(SMOOTHED, len(losses) // 10))
    means = np.convolve(losses, np.ones(width) / width, "valid")
    axes.plot(steps[width - 1 :] + 1, means, color="tab:blue", label=f"training, mean over {width} logged steps")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", label="held out")
    axes.set(xlabel="step", ylabel="loss per response token")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(folder / PLOT, dpi=120)
    plt.close(figure)
