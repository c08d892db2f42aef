"""Decoded frames, as visual encoders take them; `featurize.grid` says which."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue


@dataclass(frozen=True)
class Frames:
    """Frames of one item.

    Attributes:
        pixels: for each size, the distinct frames, uint8 [U, size, size, 3], RGB.
        index: the distinct frame at each place of the grid, int64 [T].
        times: of each place of the grid, in seconds from the first frame; empty if unknown.
        skipped: number of packets before the last frame that could not be decoded.
        stills: number of stills in their folder, 0 if they come from a file.
    """

    pixels: dict[int, NDArray[np.uint8]]
    index: NDArray[np.int64]
    times: list[float]
    skipped: int = 0
    stills: int = 0

    @property
    def facts(self) -> dict[str, JsonValue]:
        """Facts stored beside the arrays."""
        facts: dict[str, JsonValue] = {"times": [*self.times]} if self.times else {}
        counts = {"skipped": self.skipped, "stills": self.stills}
        return facts | {name: count for name, count in counts.items() if count}
