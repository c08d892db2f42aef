"""Time grids that nest: the frames of a coarse grid are a subset of a finer one's."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def frame_indices(total: int, count: int) -> NDArray[np.int64]:
    """`count` uniformly spaced frame indices out of `total`: index `i` is `floor(i * total / count)`.

    For every `coarse` that divides `count`, the coarse grid is every `(count / coarse)`-th index of this one, exactly.
    A clip with fewer frames than `count` repeats some of them. Source: paper, section 3 (T frames, uniformly).
    """
    return np.arange(count, dtype=np.int64) * total // count


def segment_bounds(samples: int, count: int) -> list[tuple[int, int]]:
    """Start and end (in samples) of `count` segments, whose lengths differ by one sample at most.

    Source: paper, section 3 (K even segments).
    """
    edges = [i * samples // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def check_nested(counts: Sequence[int]) -> tuple[int, ...]:
    """Sort grid sizes; each must divide the largest.

    Raises:
        ValueError: one does not, or none is given.
    """
    grid = tuple(sorted(set(counts)))
    if not grid or grid[0] < 1 or any(grid[-1] % count for count in grid):
        raise ValueError(f"{list(counts)}: expected whole numbers that each divide the largest, such as [8, 16, 32]")
    return grid
