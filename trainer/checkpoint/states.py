"""Saved states of a run: what it needs to resume at a step, with any number of ranks, and to export that step's model.

    <output>/steps/00000100/
      part-00000-of-00002.safetensors   rank 0's part of each trained parameter, flattened, float32:
                                        weight/<name>@<first element>, exp_avg/..., exp_avg_sq/...
                                        rank 0 also writes the projectors' untrained tensors
      state.json                        step, settings, metadata of the checkpoint; written last

Each rank copies its part to memory and trains on; a thread writes it. The folder gets its name when all parts exist.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from store import Settings, UserError, parse_settings
from store.console import console
from store.publish import TEMPORARY, remove
from trainer.checkpoint.info import CheckpointInfo
from trainer.engine import Engine
from trainer.launch import is_first
from trainer.llm import are_weights
from trainer.model import AudioVisualLM
from trainer.settings import FREE_ON_RESUME, TrainConfig

FOLDER = "steps"


class State(Settings):
    """The metadata of a saved state.

    Attributes:
        step: optimizer steps that were taken.
        identity: digest of the data's order (`TrainingData.identity`).
        config: of the run.
        checkpoint: metadata for a checkpoint of this step.
        ranks: number of ranks that wrote it.
        loss: on the held-out conversations at this step.
        best: the lowest such loss so far, and its step.
        base: digest of the LLM's initial weights (`digest_of`); None in states of earlier versions.
    """

    format: Literal[1] = 1
    step: int
    identity: str
    config: TrainConfig
    checkpoint: CheckpointInfo
    ranks: int
    loss: float | None = None
    best: tuple[float, int] | None = None
    base: str | None = None

    @property
    def asked(self) -> tuple[list[str], int | None] | None:
        """The held-out conversations that `loss` and `best` were measured on."""
        return self.config.evaluation.asked if self.config.evaluation else None


class States:
    """The saved states of a run."""

    def __init__(self, output: str | Path) -> None:
        self.folder = Path(output) / FOLDER

    def steps(self) -> list[int]:
        """The saved steps, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit() and (p / "state.json").is_file())

    def state(self, step: int) -> State:
        """The metadata of a step's state.

        Raises:
            UserError: it is damaged, or of a newer version.
        """
        path = self.path(step) / "state.json"
        try:
            return parse_settings(State, json.loads(path.read_bytes()), str(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / f"{step:08d}"

    def best(self) -> int | None:
        """The saved step with the lowest held-out loss, or None.

        Only steps judged on the same held-out conversations as the newest one are compared.
        """
        states = [self.state(step) for step in self.steps()]
        losses = {s.step: s.loss for s in states if s.loss is not None and s.asked == states[-1].asked}
        return min(losses, key=lambda step: (losses[step], step), default=None)

    def clear(self) -> None:
        """Remove what a killed run left half-written."""
        for leftover in self.folder.glob(f"{TEMPORARY}*"):
            remove(leftover)

    def load(self, step: int) -> "SavedTensors":
        """The tensors of a step."""
        return SavedTensors(self.path(step))


def check_same_run(state: State, config: TrainConfig, has_identity: Callable[[str], bool]) -> None:
    """Refuse to resume a run with other settings or data than those its state was saved with.

    Args:
        state: the saved state.
        config: of the run.
        has_identity: whether the run's data have a saved identity (`TrainingData.has_identity`).

    Raises:
        UserError: names the field that differs.
    """
    now, then = config.model_dump(mode="json"), state.config.model_dump(mode="json")
    for field in TrainConfig.model_fields:
        if field not in FREE_ON_RESUME and now[field] != then[field]:
            raise UserError(
                f"field {field!r}: {now[field]}, but the run in {config.output} stopped at step {state.step} with "
                f"{then[field]}; give that, another output, or overwrite=true"
            )
    if not has_identity(state.identity):
        raise UserError(
            f"field 'sources': conversations or columns are not those that the run in {config.output} stopped with "
            f"at step {state.step}; take another output, or overwrite=true"
        )


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
