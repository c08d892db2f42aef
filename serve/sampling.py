"""Choose the next token of each answer."""

from collections.abc import Sequence

import torch

from serve.engine import Limits


class Sampler:
    """The random numbers of one answer: a function of its seed and of how many tokens it has, not of its neighbours."""

    def __init__(self, limits: Limits, device: torch.device) -> None:
        self.limits = limits
        self.generator = torch.Generator(device).manual_seed(limits.seed) if limits.temperature else None

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Sample a token from logits float32 [V]: the most likely one after Gumbel noise was added."""
        assert self.generator
        logits = logits / self.limits.temperature
        if self.limits.top_p < 1:
            logits = _nucleus(logits, self.limits.top_p)
        uniform = torch.rand(logits.shape, generator=self.generator, device=logits.device)
        return (logits - torch.log(-torch.log(uniform.clamp(min=1e-20)))).argmax()


def choose_tokens(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int | None]:
    """The next token of each answer, from logits [n, V]; None where they are not finite."""
    highest, likely = logits.float().max(-1)
    tokens: list[int | None] = likely.tolist()
    for row, is_finite in enumerate(torch.isfinite(highest).tolist()):
        if not is_finite:
            tokens[row] = None
        elif samplers[row].generator:
            tokens[row] = int(samplers[row].choose(logits[row].float()))
    return tokens


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest tokens whose probabilities sum to `top_p`, at least one."""
    ordered, order = logits.sort(descending=True)
    probabilities = ordered.softmax(-1)
    dropped = probabilities.cumsum(-1) - probabilities >= top_p
    dropped[0] = False
    return logits.masked_fill(torch.zeros_like(dropped).scatter(0, order, dropped), -torch.inf)
