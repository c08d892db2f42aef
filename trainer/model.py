"""AudioVisualLM: a linear projector for each feature, and any Hugging Face causal LM of the Llama family."""

from collections.abc import Collection, Mapping
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from store import Arrays
from trainer.batch import Batch
from trainer.features import FEATURES

STD_FLOOR = 0.01  # of the median deviation: a dimension that hardly varies is divided by this at least


class Projector(nn.Linear):
    """A linear layer with bias on standardized features: W ((x - mean) / deviation) + b.

    Mean and deviation [D] are those of the column's dimensions and never change, so the layer is affine in x. Its
    weights, however, are learnt on inputs of one scale; otherwise weak features (and random ones) are hardly learnt.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(width, hidden)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Project rows float32 [R, D] to [R, D_l] in the weights' dtype."""
        return super().forward(((rows - self.mean) / self.deviation).to(self.weight.dtype))


class AudioVisualLM(nn.Module):
    """An LLM whose input holds word vectors and rows of features.

    Attributes:
        llm: the language model, of width D_l.
        projectors: a linear layer [D, D_l] with bias for each feature: temporal, spatial, audio (paper, section 3.2).
    """

    def __init__(self, llm: Any, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.llm = llm
        hidden = llm.config.hidden_size
        self.projectors = nn.ModuleDict({name: Projector(widths[name], hidden) for name in FEATURES if name in widths})

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move or cast the module, but keep float32 buffers float32, whatever the weights are cast to.

        These are the projectors' statistics and the frequencies of the LLM's rotary positions.
        """
        exact = {name: buffer for name, buffer in self.named_buffers() if buffer.dtype == torch.float32}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in exact.items():
            if (moved := self.get_buffer(name)).dtype != torch.float32:
                module, _, attribute = name.rpartition(".")
                setattr(self.get_submodule(module), attribute, buffer.to(moved.device))
        return self

    @property
    def widths(self) -> dict[str, int]:
        """The width of each feature."""
        return {name: layer.in_features for name, layer in self.linears.items()}

    @property
    def linears(self) -> dict[str, Projector]:
        """The projectors by feature."""
        return {name: layer for name, layer in self.projectors.items() if isinstance(layer, Projector)}

    def embed(self, batch: Batch) -> torch.Tensor:
        """The LLM's input [S, D_l]: word vectors, with projected features in their places.

        Every projector is called once, with an extra row that counts zero times. So each takes part on every rank in
        every step, and no collective waits for a projector that some rank's batch does not use.
        """
        embedded: torch.Tensor = self.llm.get_input_embeddings()(batch.ids)
        if torch.is_autocast_enabled(embedded.device.type):  # else the hidden states would stay float32
            embedded = embedded.to(torch.get_autocast_dtype(embedded.device.type))
        for name, projector in self.linears.items():
            rows = batch.rows[name].float()
            projected = projector(torch.cat([rows, rows.new_zeros(1, rows.shape[1])])).to(embedded.dtype)
            embedded = embedded.index_copy(0, batch.rows_at[name], projected[:-1]) + 0 * projected[-1]
        return embedded

    def forward(self, batch: Batch, each: bool = False) -> torch.Tensor:
        """The sum of the cross-entropies of the response tokens, float32; logits are computed for these alone.

        With `each`: float32 [2, M], the cross-entropy of each token, and 1 where it is the most likely one.
        """
        output = self.llm(
            inputs_embeds=self.embed(batch)[None],
            position_ids=batch.positions[None],
            packing=batch.packing,
            use_cache=False,
            logits_to_keep=batch.targets_at,
        )
        logits = output.logits[0].float()
        if not each:
            return F.cross_entropy(logits, batch.targets, reduction="sum")
        losses = F.cross_entropy(logits, batch.targets, reduction="none")
        return torch.stack([losses, (logits.argmax(-1) == batch.targets).float()])


class ColumnStatistics:
    """Mean and deviation of each dimension of each feature, over the rows of some items."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[int, NDArray[np.float64], NDArray[np.float64]]] = {}

    def add(self, arrays: Arrays) -> None:
        """Count the rows of an item."""
        for name, array in arrays.items():
            rows = array.astype(np.float64)
            count, total, squares = self._sums.get(name, (0, np.zeros(rows.shape[1]), np.zeros(rows.shape[1])))
            self._sums[name] = count + len(rows), total + rows.sum(0), squares + (rows**2).sum(0)

    def moments(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean [D] and deviation [D] of a feature; 0 and 1 if no item had it."""
        if name not in self._sums:
            return np.zeros(1), np.ones(1)
        count, total, squares = self._sums[name]
        mean = total / count
        return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))


@torch.no_grad()
def initialize_projectors(
    model: AudioVisualLM, statistics: ColumnStatistics, seed: int, names: Collection[str] = FEATURES
) -> None:
    """Initialize projectors so that their outputs have the scale of the LLM's word vectors.

    The paper does not describe the initialization. Weights are random from a seed; mean and deviation are the column's.

    Args:
        model: whose projectors they are.
        statistics: of the columns.
        seed: of the weights.
        names: features whose projectors are initialized.
    """
    scale = model.llm.get_input_embeddings().weight.float().std().item()
    generator = torch.Generator().manual_seed(seed)
    for name, projector in model.linears.items():
        if name not in names:
            continue
        mean, deviation = (torch.from_numpy(x).float() for x in statistics.moments(name))
        projector.mean.copy_(mean)
        projector.deviation.copy_(deviation.clamp(min=max(STD_FLOOR * deviation.median().item(), 1e-6)))
        weight = torch.randn(projector.weight.shape, generator=generator)
        projector.weight.copy_(weight * scale / projector.in_features**0.5)
        projector.bias.zero_()
