"""What a run says: a JSON line for each logged step, and TensorBoard."""

import json
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writes `log.jsonl` and TensorBoard events into a run's folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = open(folder / "log.jsonl", "w", buffering=1)  # noqa: SIM115
        self._board = SummaryWriter(folder / "tensorboard")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._lines.close()
        self._board.close()
