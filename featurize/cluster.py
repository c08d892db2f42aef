"""The Ray graph: workers that hold the encoders, and a driver that hands them shards. Work is keyed by shard."""

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from featurize.report import ShardReport
from featurize.settings import FeaturizeConfig
from store import MediaItem, Storage, UserError, create_column

RETRIES = 3  # times that a shard is tried again after its worker or node was lost


class Worker:
    """Holds every encoder of a configuration; a Ray actor."""

    def __init__(self, store: str, config: FeaturizeConfig) -> None:
        import torch

        from featurize.encoders import build_encoder

        torch.set_num_threads(config.cpus)
        self._decoders = config.decoders
        storage = Storage(store)
        self._encoders = {}
        self._columns = {}
        for settings in config.columns:
            encoder = build_encoder(settings)
            column = create_column(storage, encoder.spec, settings.model_dump(mode="json"))
            self._encoders[column.name], self._columns[column.name] = encoder, column

    def columns(self) -> list[str]:
        """The names of its columns, in the configuration's order."""
        return list(self._columns)

    def encode(self, items: Sequence[MediaItem], names: Sequence[str]) -> ShardReport:
        """Encode a shard into the columns `names`."""
        from featurize.shard_job import encode_shard

        unknown = [name for name in names if name not in self._columns]
        if unknown:
            raise UserError(f"columns {', '.join(unknown)}: this node's weights or settings give {self.columns()}")
        encoders = [self._encoders[name] for name in names]
        return encode_shard(items, encoders, [self._columns[name] for name in names], self._decoders)


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it set), or start a local one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)


class Pool:
    """The workers of a run, and the shards in flight."""

    def __init__(self, store: str, config: FeaturizeConfig) -> None:
        self.size = config.workers or _fitting(config)
        actor: Any = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus, max_restarts=-1, max_task_retries=RETRIES)(
            Worker
        )
        self._workers: list[Any] = [actor.remote(store, config) for _ in range(self.size)]

    def columns(self) -> list[str]:
        """The names of the columns, made if they were not there; waits until one worker has loaded its encoders."""
        return list(_result(self._workers[0].columns.remote()))

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
    except ray.exceptions.ActorDiedError as error:
        cause = str(error)
        if "UserError" in cause:
            line = next(line for line in reversed(cause.splitlines()) if "UserError" in line)
            raise UserError(line.partition("UserError: ")[2]) from None
        raise
