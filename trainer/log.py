"""The log of a run: a JSON line for each logged step, TensorBoard, and a tracking service if one is chosen."""

import importlib
import json
import uuid
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from store import UserError
from trainer.settings import TrainConfig


class RunLog:
    """Writes `log.jsonl` and TensorBoard events into a run's folder; a resumed run appends to them.

    Args:
        config: of the run.
        first_step: the first that will be logged; lines from it on, left by a killed run, are dropped.
        attention: `Engine.attention`, which every line repeats.
    """

    def __init__(self, config: TrainConfig, first_step: int, attention: str) -> None:
        folder = Path(config.output)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        kept = [line for line in _lines(path) if json.loads(line)["step"] < first_step]
        path.write_text("".join(kept))
        self._attention = attention
        self._lines = open(path, "a", buffering=1)  # noqa: SIM115
        self._board = SummaryWriter(folder / "tensorboard", purge_step=first_step)
        self._tracker = _tracker(config, first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step."""
        self._lines.write(json.dumps({"step": step, **values, "attention": self._attention}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._tracker:
            self._tracker.log(values, step=step)

    def close(self) -> None:
        """Flush and close all outputs."""
        self._lines.close()
        self._board.close()
        if self._tracker:
            self._tracker.finish()


def _lines(path: Path) -> list[str]:
    """The complete lines of a log; a kill may have cut the last one."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _tracker(config: TrainConfig, first_step: int) -> Any:
    """The module of the tracking service, with a run started or resumed; wandb and trackio have the same interface."""
    if config.track is None:
        return None
    service = import_tracker(config.track)
    run = {"project": "avllm", "name": config.output, "config": config.model_dump(mode="json")}
    if config.track == "trackio":
        service.init(**run, resume="allow" if first_step else "never")
        return service
    path = Path(config.output) / "wandb" / "run"
    if not first_step or not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(uuid.uuid4().hex)
    try:
        service.init(**run, dir=config.output, id=path.read_text(), resume="allow")
    except service.Error as error:
        raise UserError(f"field 'track': wandb: {' '.join(str(error).split())[:300]}") from None
    return service


def import_tracker(name: str) -> Any:
    """The package of a tracking service.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"field 'track': {name} is not installed: pip install 'avllm[track]'") from None
