"""Saved states of a run: what it needs to resume at a step, with any number of ranks, and to export that step's model.

    <output>/steps/00000100/
      part-00000-of-00002.safetensors   rank 0's part of each trained parameter, flattened, float32:
                                        weight/<name>@<first element>, exp_avg/..., exp_avg_sq/...
                                        rank 0 also writes the projectors' untrained tensors
      state.json                        step, settings, metadata of the checkpoint; written last

Each rank copies its part to memory and trains on; a thread writes it. The folder gets its name when all parts exist.
Here is what is read without torch; `tensors.py` reads the rest.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from store import Settings, UserError, parse_settings
from store.publish import TEMPORARY, remove
from trainer.checkpoint.info import CheckpointInfo
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


def state_to_resume(config: TrainConfig) -> State | None:
    """The newest saved state of a run, or None if the run starts anew.

    Raises:
        UserError: it was saved with other settings; names the field that differs.
    """
    states = States(config.output)
    if config.overwrite or not states.steps():
        return None
    state = states.state(states.steps()[-1])
    now, then = config.model_dump(mode="json"), state.config.model_dump(mode="json")
    for field in TrainConfig.model_fields:
        if field not in FREE_ON_RESUME and now[field] != then[field]:
            raise UserError(
                f"field {field!r}: {now[field]}, but the run in {config.output} stopped at step {state.step} with "
                f"{then[field]}; give that, another output, or overwrite=true"
            )
    return state


def check_same_data(state: State, config: TrainConfig, has_identity: Callable[[str], bool]) -> None:
    """Refuse to go on with other data.

    Args:
        state: the saved state.
        config: of the run.
        has_identity: whether the run's data have a saved identity (`TrainingData.has_identity`).

    Raises:
        UserError: the data differ.
    """
    if not has_identity(state.identity):
        raise UserError(
            f"field 'sources': conversations or columns are not those that the run in {config.output} stopped with "
            f"at step {state.step}; take another output, or overwrite=true"
        )
