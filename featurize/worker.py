"""A worker of a run, in its own process on this machine or on a node of a Ray cluster."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from featurize.pending import ShardReport
from featurize.settings import FeaturizeConfig
from store import Column, MediaItem, Storage, create_column


class WorkerLostError(Exception):
    """A worker's process, or its whole node, ended before its call did."""


@dataclass
class Task:
    """A shard to encode into the columns `names`; `lost` counts the workers lost while encoding it."""

    shard: int
    names: Sequence[str]
    lost: int = 0


class Worker:
    """Holds every encoder of a configuration.

    Encoders are loaded by the first call, not by the constructor, so that loading errors reach the caller unchanged.
    """

    def __init__(self, store: str, config: FeaturizeConfig) -> None:
        self._storage, self._config = Storage(store), config
        self._encoders: dict[str, Any] = {}
        self._columns: dict[str, Column] = {}

    def columns(self) -> list[str]:
        """Load the encoders and open their columns, creating missing ones; return the column names."""
        if not self._columns:
            import torch

            from featurize.encoders import build_encoders

            torch.set_num_threads(1)  # sums are split among threads: their number would change a column's last bits
            encoders = build_encoders(self._config.columns)
            for settings, encoder in zip(self._config.columns, encoders, strict=True):
                column = create_column(self._storage, encoder.spec, settings.pinned().model_dump(mode="json"))
                self._encoders[column.name], self._columns[column.name] = encoder, column
        return list(self._columns)

    def encode(self, items: Sequence[MediaItem], names: Sequence[str], careful: bool) -> ShardReport:
        """Encode a shard into the columns `names`."""
        from featurize.shard_job import encode_shard

        self.columns()
        encoders = [self._encoders[name] for name in names]
        return encode_shard(items, encoders, [self._columns[name] for name in names], self._config.cpus, careful)
