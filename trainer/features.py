"""Feature rows of an item, for the T frames and K segments of a run, from the columns of a store."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from store import Arrays, ColumnSpec, Modality, UserError

FEATURES = ("temporal", "spatial", "audio")  # in the order of their rows in the LLM's input
FEATURES_OF: dict[Modality, frozenset[str]] = {
    "text": frozenset(),
    "visual": frozenset({"temporal", "spatial"}),
    "audio": frozenset({"audio"}),
    "audio_visual": frozenset({"temporal", "spatial", "audio"}),
}


class RowType(NamedTuple):
    """A row of a feature: its width D, and its dtype as stored."""

    width: int
    dtype: "np.dtype[Any]"


@dataclass(frozen=True)
class Grid:
    """The time grid of a run: T frames and K segments."""

    frames: int
    segments: int

    @property
    def stored(self) -> dict[str, str]:
        """The name of the stored array that each feature is taken from."""
        return {"temporal": "temporal", "spatial": f"spatial.t{self.frames}", "audio": f"audio.k{self.segments}"}

    def select(self, arrays: Arrays) -> Arrays:
        """Select a run's features from an item's stored arrays: temporal [T, D_t], spatial [N, D_s], audio [K, D_a].

        Arrays that the item lacks are skipped. Temporal tokens of a coarser grid are a subset of the finer one's, so
        they are sub-sampled. A still has one.
        """
        chosen = {feature: arrays[name] for feature, name in self.stored.items() if name in arrays}
        if "temporal" in chosen:
            chosen["temporal"] = chosen["temporal"][:: max(1, len(chosen["temporal"]) // self.frames)]
        return chosen

    def row_types(self, specs: Iterable[ColumnSpec]) -> dict[str, RowType]:
        """Width and dtype of a row, for each feature that the columns give.

        Raises:
            UserError: a column does not hold this grid; names what it holds.
        """
        types: dict[str, RowType] = {}
        for spec in specs:
            for feature in (f for f in FEATURES if f in FEATURES_OF[spec.modality]):
                stored = self.stored[feature]
                if stored not in spec.features:
                    raise UserError(self._missing(spec, feature))
                width = spec.features[stored].shape[-1]
                assert width is not None
                types[feature] = RowType(width, np.dtype(spec.features[stored].dtype))
        return types

    def _missing(self, spec: ColumnSpec, feature: str) -> str:
        """Why a column does not give a feature: it has another grid, or is of another kind."""
        stored = self.stored[feature]
        before = stored.rstrip("0123456789")
        grids = sorted(
            int(name.removeprefix(before)) for name in spec.features if name.startswith(before) and name != before
        )
        if before == stored or not grids:
            has = ", ".join(sorted(spec.features))
            return f"field {spec.modality!r}: column {spec.folder} does not hold {stored}; it holds {has}"
        field, asked = ("segments", self.segments) if feature == "audio" else ("frames", self.frames)
        held = " or ".join(map(str, grids))
        return f"field {field!r}: column {spec.folder} was not featurized with {asked} {field}, but with {held}"

    def widths(self, specs: Mapping[str, ColumnSpec]) -> dict[str, int]:
        """The width D of each feature that the columns give. Raises as `row_types`."""
        return {feature: row.width for feature, row in self.row_types(specs.values()).items()}


def rows_of(arrays: Arrays) -> dict[Modality, int]:
    """How many rows each modality takes, from an item's selected arrays."""
    return {
        modality: sum(len(arrays[name]) for name in perceives if name in arrays)
        for modality, perceives in FEATURES_OF.items()
    }
