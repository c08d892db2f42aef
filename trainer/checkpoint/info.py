"""The metadata of a checkpoint, read without torch."""

import json
from pathlib import Path
from typing import Literal

from store import ColumnSpec, Settings, UserError, parse_settings
from trainer.features import Grid
from trainer.prompt import PromptFormat

FOLDER = "avllm"  # of what makes an LLM's folder an `AudioVisualLM`


class CheckpointInfo(Settings):
    """The metadata of a checkpoint.

    Attributes:
        frames: T.
        segments: K.
        columns: the spec of each column that it was trained on, by modality.
        builds: how to rebuild the encoder of each column.
        prompt: the texts around turns.
        stage: the stage that trained it last.
        steps: optimizer steps of that stage.
        base: hub name of the LLM that training began with; None if it was a folder.
        attention: the attention kernel, torch's version and the device of that stage's last run.
        llm: digest of the LLM's weights (`digest_of`); None in checkpoints of earlier versions.
        trained_on: names of the conversations of all stages, for the leakage check of evaluations.
    """

    format: Literal[1] = 1
    frames: int
    segments: int
    columns: dict[str, ColumnSpec]
    builds: dict[str, dict[str, object]]
    prompt: PromptFormat
    stage: int
    steps: int
    base: str | None = None
    attention: str | None = None
    llm: str | None = None
    trained_on: tuple[str, ...] = ()

    @property
    def grid(self) -> Grid:
        """The time grid that the model reads."""
        return Grid(self.frames, self.segments)


def read_info(folder: str | Path) -> CheckpointInfo:
    """The metadata of a checkpoint.

    Raises:
        UserError: the folder is not a checkpoint of this trainer.
    """
    path = Path(folder) / FOLDER / "config.json"
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder")
    if not path.is_file():
        below = Path(folder) / "checkpoint"
        hint = f"; give {below}" if (below / FOLDER / "config.json").is_file() else ""
        raise UserError(f"{folder}: not a checkpoint of avllm: there is no {FOLDER}/config.json in it{hint}")
    return parse_settings(CheckpointInfo, json.loads(path.read_text()), str(path))


def is_checkpoint(model: str) -> bool:
    """Whether a model's name is the folder of one of our checkpoints."""
    return (Path(model) / FOLDER / "config.json").is_file()
