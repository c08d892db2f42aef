"""The Ray graph: workers that hold the encoders, and a driver that hands them shards. Work is keyed by shard."""

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from featurize.report import ShardReport
from featurize.settings import FeaturizeConfig
from store import Column, MediaItem, Storage, UserError, create_column
from store.console import console

LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)
CAREFUL = 2  # a shard that lost its worker this often is decoded in child processes: a file in it may crash FFmpeg
LOST_IN_A_ROW = 30  # workers lost without one shard finished in between: something else is wrong
LOOK_SECONDS = 5.0  # between looks at whether the cluster has grown
STARTS = 4  # of a local Ray


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
            # torch's threads must not spin while they wait: the decoders need the cores
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            import torch

            from featurize.encoders import build_encoder

            torch.set_num_threads(self._config.cpus)
            encoders = [build_encoder(settings) for settings in self._config.columns]
            for settings, encoder in zip(self._config.columns, encoders, strict=True):
                column = create_column(self._storage, encoder.spec, settings.model_dump(mode="json"))
                self._encoders[column.name], self._columns[column.name] = encoder, column
        return list(self._columns)

    def encode(self, items: Sequence[MediaItem], names: Sequence[str], careful: bool) -> ShardReport:
        """Encode a shard into the columns `names`."""
        from featurize.shard_job import encode_shard

        self.columns()
        encoders = [self._encoders[name] for name in names]
        return encode_shard(items, encoders, [self._columns[name] for name in names], self._config.cpus, careful)


@dataclass
class Task:
    """A shard to encode into the columns `names`; `lost` counts the workers that were lost with it."""

    items: Sequence[MediaItem]
    names: Sequence[str]
    lost: int = 0


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (a submitted job has it set), or start a local one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False)
    else:
        _start_local()


def _start_local() -> None:
    """Start a local Ray. It gives its own node 30 s to come up, which can be too short on a busy machine."""
    for attempt in range(STARTS):
        try:
            ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # Ray raises nothing more special
            if "timed out during startup" not in str(error) or attempt == STARTS - 1:
                raise
            console.print("Ray's node took more than 30 s to start (is the machine busy?); starting it again")
            ray.shutdown()


class Pool:
    """The workers of a run, and the shards in flight.

    A worker that is lost, alone or with its node, is replaced, and its shard goes to another. Workers join as soon as
    their encoders are loaded, and the pool grows with the cluster; those that find nothing more to do are let go, so
    that an autoscaler can take their nodes.
    """

    def __init__(self, store: str, config: FeaturizeConfig) -> None:
        self._store, self._config = store, config
        self._actor: Any = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus)(Worker)
        self._loading: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, Task]] = {}
        self._idle: list[Any] = []
        self._names: list[str] = []
        self._lost_in_a_row = 0
        self._looked = 0.0
        if not config.workers and not _fitting(config):
            raise UserError(
                f"fields 'cpus' and 'gpus': a worker takes {config.cpus} and {config.gpus:g}; Ray has {_resources()}"
            )

    @property
    def size(self) -> int:
        """How many workers there are, loading or loaded."""
        return len(self._loading) + len(self._idle) + len(self._running)

    def columns(self, useful: int) -> list[str]:
        """The names of the columns, made if they were not there; waits for the first of at most `useful` workers.

        Raises:
            UserError: an encoder cannot be had.
        """
        while not self._names:
            self._grow(useful)
            self._next()
        return list(self._names)

    def encode(self, tasks: Iterable[Task]) -> Iterator[ShardReport]:
        """Run tasks on whichever worker is free; reports come as they are done.

        Raises:
            UserError: two nodes have other weights or packages, or workers are lost again and again.
        """
        waiting = deque(tasks)
        while waiting or self._running:
            self._grow(len(waiting) + len(self._running))
            while waiting and self._idle:
                self._start(self._idle.pop(), waiting.popleft())
            if not waiting:
                self._release_idle()
            done = self._next()
            if isinstance(done, Task):
                waiting.appendleft(done)
            elif done:
                yield done

    def _start(self, worker: Any, task: Task) -> None:
        reference = worker.encode.remote(task.items, task.names, task.lost >= CAREFUL)
        self._running[reference] = worker, task

    def _grow(self, useful: int) -> None:
        """Have as many workers as the configuration says or the cluster fits, but no more than are `useful`."""
        now = time.monotonic()
        if self.size and now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for _ in range(min(useful, self._config.workers or _fitting(self._config)) - self.size):
            worker = self._actor.remote(self._store, self._config)
            self._loading[worker.columns.remote()] = worker

    def _release_idle(self) -> None:
        for worker in self._idle:
            ray.kill(worker)
        self._idle.clear()

    def _next(self) -> ShardReport | Task | None:
        """Wait for something to happen: a report, a task that lost its worker, or neither."""
        pending = [*self._loading, *self._running]
        if not pending:  # the cluster has no room for a worker just now
            time.sleep(1)
            return None
        ready, _ = ray.wait(pending, num_returns=1, timeout=LOOK_SECONDS)
        if not ready:
            return None
        (reference,) = ready
        if reference in self._loading:
            self._loaded(self._loading.pop(reference), reference)
            return None
        worker, task = self._running.pop(reference)
        try:
            report: ShardReport = _result(reference)
        except LOST as error:
            task.lost += 1
            self._count_loss(error)
            return task
        self._lost_in_a_row = 0
        self._idle.append(worker)
        return report

    def _loaded(self, worker: Any, reference: Any) -> None:
        try:
            names = _result(reference)
        except LOST as error:
            self._count_loss(error)
            return
        if self._names and names != self._names:
            raise UserError(f"the cluster's nodes have other weights or packages: {self._names} and {names}")
        self._names = names
        self._idle.append(worker)

    def _count_loss(self, error: Exception) -> None:
        self._lost_in_a_row += 1
        self._looked = 0.0  # replace it at once
        if self._lost_in_a_row > LOST_IN_A_ROW:
            raise UserError(f"{LOST_IN_A_ROW} workers in a row were lost; the last: {' '.join(str(error).split())}")


def _fitting(config: FeaturizeConfig) -> int:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    workers = int(resources.get("CPU", 0)) // config.cpus
    return min(workers, int(resources.get("GPU", 0) / config.gpus)) if config.gpus else workers


def _resources() -> str:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def _result(reference: Any) -> Any:
    """A task's result; an error of the user's comes out as itself, without the remote traceback."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
