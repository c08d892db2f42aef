"""The Ray graph: workers that hold the encoders, and a driver that hands them shards. Work is keyed by shard."""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from featurize.report import ShardReport
from featurize.settings import FeaturizeConfig
from store import Column, MediaItem, Storage, UserError, create_column

RETRIES = 3  # times that a shard is tried again after its worker or node was lost


class Worker:
    """Holds every encoder of a configuration; a Ray actor.

    Encoders are loaded by the first call, not when the actor is made: what goes wrong then comes out as it is.
    """

    def __init__(self, store: str, config: FeaturizeConfig) -> None:
        self._storage, self._config = Storage(store), config
        self._encoders: dict[str, Any] = {}
        self._columns: dict[str, Column] = {}

    def columns(self) -> list[str]:
        """Load the encoders and open their columns, making those that the store has not; their names."""
        if not self._columns:
            import torch

            from featurize.encoders import build_encoder

            torch.set_num_threads(self._config.cpus)
            encoders = [build_encoder(settings) for settings in self._config.columns]
            for settings, encoder in zip(self._config.columns, encoders, strict=True):
                column = create_column(self._storage, encoder.spec, settings.model_dump(mode="json"))
                self._encoders[column.name], self._columns[column.name] = encoder, column
        return list(self._columns)

    def encode(self, items: Sequence[MediaItem], names: Sequence[str]) -> ShardReport:
        """Encode a shard into the columns `names`."""
        from featurize.shard_job import encode_shard

        if not set(names) <= set(self.columns()):
            raise UserError(f"columns {', '.join(names)}: this node's weights or packages give {self.columns()}")
        encoders = [self._encoders[name] for name in names]
        return encode_shard(items, encoders, [self._columns[name] for name in names], self._config.decoders)


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it set), or start a local one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


class Pool:
    """The workers of a run, and the shards in flight."""

    def __init__(self, store: str, config: FeaturizeConfig) -> None:
        self.size = config.workers or _fitting(config)
        actor: Any = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_restarts=-1, max_task_retries=RETRIES)(
            Worker
        )
        self._workers: list[Any] = [actor.remote(store, config) for _ in range(self.size)]

    def columns(self) -> list[str]:
        """The names of the columns, made if they were not there; waits until all workers have loaded their encoders.

        Raises:
            UserError: an encoder cannot be had, or two nodes have other weights or packages.
        """
        named: list[list[str]] = []
        errors: list[UserError] = []
        for reference in [worker.columns.remote() for worker in self._workers]:
            try:
                named.append(_result(reference))
            except UserError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        first, *others = named
        if any(other != first for other in others):
            raise UserError(f"the cluster's nodes have other weights or packages: {first} and {others}")
        return list(first)

    def encode(self, tasks: Sequence[tuple[list[MediaItem], list[str]]]) -> Iterator[ShardReport]:
        """Run tasks on whichever worker is free; reports come as they are done."""
        waiting = list(reversed(tasks))
        running: dict[Any, Any] = {}
        idle = list(self._workers)
        while waiting or running:
            while waiting and idle:
                worker = idle.pop()
                running[worker.encode.remote(*waiting.pop())] = worker
            (done,), _ = ray.wait(list(running), num_returns=1)
            idle.append(running.pop(done))
            yield _result(done)


def _fitting(config: FeaturizeConfig) -> int:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = int(resources.get("CPU", 0)) // config.cpus
    if config.gpus:
        workers = min(workers, int(resources.get("GPU", 0) / config.gpus))
    if not workers:
        have = f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
        raise UserError(f"fields 'cpus' and 'gpus': a worker takes {config.cpus} and {config.gpus:g}; Ray has {have}")
    return workers


def _result(reference: Any) -> Any:
    """A task's result; an error of the user's comes out as itself, without the remote traceback."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
