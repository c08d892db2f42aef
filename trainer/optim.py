"""AdamW with the run's settings, and the cosine schedule with warm-up."""

import math

import torch

from trainer.model import AudioVisualLM
from trainer.settings import TrainConfig


def build_optimizer(model: AudioVisualLM, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW over the trained parameters, in two groups: the projectors and the LLM."""
    groups = [
        {"params": [p for p in part.parameters() if p.requires_grad], "peak": peak}
        for part, peak in ((model.projectors, config.projector_lr or config.lr), (model.llm, config.lr))
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def lr_factor(step: int, steps: int, warmup_ratio: float) -> float:
    """The learning rate at `step` (from 0) as a share of its peak: linear warm-up, then a cosine to zero."""
    warmup = math.ceil(steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of each group to `factor` times its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor
