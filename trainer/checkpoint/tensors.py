"""The tensors of a saved state, and whether they fit the LLM that they are put on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from store import UserError
from store.console import console
from trainer.checkpoint.states import State
from trainer.engine import Engine
from trainer.launch import is_first
from trainer.llm import are_weights
from trainer.model import AudioVisualLM


def check_same_llm(state: State, llm: Any, output: str | Path) -> None:
    """Refuse to put a run's trained weights on an LLM with other weights than the run began with.

    Args:
        state: of the run.
        llm: as its folder holds it now.
        output: of the run.

    Raises:
        UserError: the weights differ.
    """
    model = state.config.model
    if not are_weights(state.base, llm):
        raise UserError(
            f"field 'model': {model}: its weights are not those that the run in {output} began with; "
            "put those back, or train anew with another output"
        )
    if state.base is None and is_first():
        console.print(f"{state.step} steps were saved by an earlier version: whether {model} is the same is not known")


class SavedTensors:
    """The tensors of one state, whichever ranks wrote them.

    Raises:
        UserError: a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._pieces: dict[str, list[tuple[int, Any, str]]] = {}
        for path in sorted(folder.glob("part-*.safetensors")):
            try:
                part = safe_open(path, "pt")
            except SafetensorError as error:
                raise UserError(f"{path}: cannot be read: {error}; remove {folder}") from None
            for key in part.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118
                name, _, start = key.rpartition("@")
                self._pieces.setdefault(name, []).append((int(start), part, key))
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece[0])

    def read(self, name: str, start: int, size: int) -> torch.Tensor:
        """Elements [start, start + size) of a flattened tensor."""
        pieces = []
        for first, part, key in self._pieces.get(name, []):
            piece = part.get_slice(key)
            low, high = max(start, first), min(start + size, first + piece.get_shape()[0])
            if low < high:
                pieces.append(piece[low - first : high - first])
        whole = torch.cat(pieces) if pieces else torch.empty(0)
        if len(whole) != size:
            raise UserError(f"a saved state does not hold {name}: {len(whole)} of {size} elements are there")
        return whole

    def load_weights(self, model: AudioVisualLM) -> None:
        """Load the trained weights and the whole projectors into a model."""
        trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
        for name, tensor in (*trained, *untrained(model)):
            tensor.data.copy_(self.read(f"weight/{name}", 0, tensor.numel()).view(tensor.shape))

    def load_optimizer(self, engine: Engine, step: int) -> None:
        """Load the float32 originals and AdamW's moments into an engine whose model has its weights already."""
        engine.start_moments(step)
        for fragment in engine.fragments():
            size = fragment.weight.numel()
            fragment.weight.copy_(self.read(f"weight/{fragment.name}", fragment.start, size))
            for kind, moment in fragment.moments.items():
                moment.copy_(self.read(f"{kind}/{fragment.name}", fragment.start, size))


def untrained(model: AudioVisualLM) -> Iterator[tuple[str, torch.Tensor]]:
    """The projectors' tensors that no optimizer updates: their statistics, and frozen parameters."""
    yield from model.projectors.named_buffers("projectors")
    yield from ((name, p) for name, p in model.projectors.named_parameters("projectors") if not p.requires_grad)
