"""The figures of a part, saved after each, and helpers that measure. Imports torch only where it is used."""

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class LeftOutError(Exception):
    """This machine cannot run a part; the message says why."""


class Report:
    """The figures of one part.

    Args:
        path: JSON file, replaced after each figure.
        tiny: tiny shapes on CPUs, whose times and speeds say nothing and are not kept.

    Attributes:
        tiny: as above.
        device: the device the part runs on.
    """

    device: "torch.device"

    def __init__(self, path: Path, tiny: bool) -> None:
        self._path, self.tiny = path, tiny
        self._found: dict[str, Any] = {"status": "running", "rows": []}

    def look_for_gpu(self) -> None:
        """Choose the device.

        Raises:
            LeftOutError: there is no GPU, and the shapes are not tiny.
        """
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cpu" and not self.tiny:
            raise LeftOutError("there is no GPU here; --tiny proves the check on CPUs")

    def fact(self, what: str, value: object, asked: str = "", met: bool | None = None) -> None:
        """Record something that holds at any size: an agreement, a count, a name."""
        self._found["rows"].append({"what": what, "value": str(value), "asked": asked, "met": met})
        self._write()

    def measured(self, what: str, value: str, asked: str = "", met: bool | None = None) -> None:
        """Record a figure about this machine; a tiny check records only that it ran."""
        self.fact(what, "ran" if self.tiny else value, asked, None if self.tiny else met)

    def agrees(self, what: str, error: float, bound: float) -> None:
        """Record a relative error.

        Raises:
            AssertionError: it is above its bound, or NaN.
        """
        self.fact(what, f"{error:.1e}", f"<= {bound:.1e}", error <= bound)
        assert error <= bound, f"{what}: {error} > {bound}"

    def end(self, status: str, reason: str = "") -> None:
        """Record how the part ended."""
        self._found |= {"status": status, "reason": reason}
        self._write()

    def _write(self) -> None:
        write_json(self._path, self._found)


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a file atomically."""
    path.with_suffix(".part").write_text(json.dumps(value, indent=1))
    os.replace(path.with_suffix(".part"), path)


def relative(found: "torch.Tensor", exact: "torch.Tensor") -> float:
    """The relative error: the norm of the difference over that of the exact values."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def race(contenders: Mapping[str, Callable[[], Any]], device: "torch.device", rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round; they take turns, after at most two warm-up rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    warm_up = min(rounds, 2)
    for number in range(warm_up + rounds):
        for name, contender in contenders.items():
            wait_for(device)
            start = time.perf_counter()
            contender()
            wait_for(device)
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(over: list[float], under: list[float]) -> float:
    """The median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def wait_for(device: "torch.device") -> None:
    """Wait until all launched work is done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget(device: "torch.device") -> None:
    """Free unused device memory and reset its peak."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
