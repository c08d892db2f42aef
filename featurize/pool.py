"""The workers of a run and the shards in flight. A task is a shard, so any worker may run it, and rerun it."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from featurize.pending import ShardReport
from featurize.settings import FeaturizeConfig
from featurize.worker import Task, WorkerLostError
from store import MediaItem, UserError

CAREFUL = 2  # after losing this many workers a shard is decoded in child processes: a file may crash or hang FFmpeg
LOST_IN_A_ROW = 30  # workers lost without a finished shard in between: not one file's fault, so the run stops
LOOK_SECONDS = 5.0  # between checks for cluster growth


class Machines(Protocol):
    """Where workers run. A reference identifies a call in progress; a worker runs one call at a time."""

    def resources(self) -> tuple[int, float]:
        """CPU cores and GPUs."""

    def start(self) -> Any:
        """A new worker."""

    def call(self, worker: Any, method: str, *words: Any) -> Any:
        """Start a call to a worker's method and return its reference."""

    def wait(self, references: Sequence[Any], seconds: float) -> Any | None:
        """The reference of a finished call, or None after `seconds`."""

    def result(self, reference: Any) -> Any:
        """The call's return value.

        Raises:
            WorkerLostError: its worker is gone.
            UserError: the call raised it.
        """

    def end(self, worker: Any) -> None:
        """Stop a worker, even in the middle of a call."""


def connect(store: str, config: FeaturizeConfig) -> Machines:
    """The Ray cluster at RAY_ADDRESS (set in submitted jobs), else this machine."""
    if os.environ.get("RAY_ADDRESS"):
        from featurize.cluster import Cluster

        return Cluster(store, config)
    from featurize.local import Local

    return Local(store, config)


class Pool:
    """The workers of a run, and the shards in flight.

    A lost worker, alone or with its node, is replaced, and its shard is given to another. Workers join as soon as their
    encoders are loaded, and the pool grows with the cluster. Once no shard is waiting, idle workers are stopped, so
    that an autoscaler can reclaim their nodes.
    """

    def __init__(self, machines: Machines, config: FeaturizeConfig) -> None:
        self._machines, self._config = machines, config
        self._workers: set[Any] = set()
        self._loading: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, Task]] = {}
        self._idle: list[Any] = []
        self._names: list[str] = []
        self._lost_in_a_row = 0
        self._looked = 0.0
        if not config.workers and not self._fitting():
            cpus, gpus = machines.resources()
            asked = {"cpus": (config.cpus, cpus), "gpus": (config.gpus, gpus)}
            fitting = " ".join(f"{name}={there:g}" for name, (wanted, there) in asked.items() if wanted > there)
            raise UserError(
                f"fields 'cpus' and 'gpus': a worker takes {config.cpus} and {config.gpus:g}; "
                f"there are {cpus} CPUs and {gpus:g} GPUs{fitting and ': say '}{fitting}"
            )

    @property
    def size(self) -> int:
        """Number of workers, loading or loaded."""
        return len(self._workers)

    def columns(self, useful: int) -> list[str]:
        """The column names, with missing columns created; starts up to `useful` workers and waits for the first.

        Raises:
            UserError: an encoder cannot be loaded.
        """
        while not self._names:
            self._grow(useful)
            self._next()
        return list(self._names)

    def encode(self, tasks: Iterable[Task], shards: Mapping[int, Sequence[MediaItem]]) -> Iterator[ShardReport]:
        """Run tasks on free workers; yield reports as shards finish.

        Args:
            tasks: the shards to encode.
            shards: the items of each; they are asked for when a worker takes the shard.

        Raises:
            UserError: two nodes have different weights or packages, or workers keep being lost.
        """
        waiting = deque(tasks)
        while waiting or self._running:
            self._grow(len(waiting) + len(self._running))
            while waiting and self._idle:
                task = waiting.popleft()
                self._start(self._idle.pop(), task, shards[task.shard])
            if not waiting:
                self._release_idle()
            outcome = self._next()
            if isinstance(outcome, Task):
                waiting.appendleft(outcome)
            elif outcome:
                yield outcome

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers:
            self._machines.end(worker)
        self._workers.clear()

    def _fitting(self) -> int:
        cpus, gpus = self._machines.resources()
        workers, share = cpus // self._config.cpus, self._config.gpus
        if not share:
            return workers
        # a worker cannot span GPUs: at 0.7 each, two GPUs fit two workers
        return min(workers, int(gpus) * int(1 / share) if share < 1 else int(gpus / share))

    def _start(self, worker: Any, task: Task, items: Sequence[MediaItem]) -> None:
        reference = self._machines.call(worker, "encode", items, task.names, task.lost >= CAREFUL)
        self._running[reference] = worker, task

    def _grow(self, useful: int) -> None:
        """Start workers up to the configured number, or what the machines fit, but at most `useful`."""
        now = time.monotonic()
        if self.size and now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for _ in range(min(useful, self._config.workers or self._fitting()) - self.size):
            worker = self._machines.start()
            self._workers.add(worker)
            self._loading[self._machines.call(worker, "columns")] = worker

    def _release_idle(self) -> None:
        for worker in self._idle:
            self._workers.remove(worker)
            self._machines.end(worker)
        self._idle.clear()

    def _next(self) -> ShardReport | Task | None:
        """Wait for the next event: a report, a task that lost its worker, or None for anything else."""
        pending = [*self._loading, *self._running]
        if not pending:  # the cluster has no room for a worker just now
            time.sleep(1)
            return None
        reference = self._machines.wait(pending, LOOK_SECONDS)
        if reference is None:
            return None
        if reference in self._loading:
            self._loaded(self._loading.pop(reference), reference)
            return None
        worker, task = self._running.pop(reference)
        try:
            report: ShardReport = self._machines.result(reference)
        except WorkerLostError as error:
            task.lost += 1
            self._count_loss(worker, error)
            return task
        self._lost_in_a_row = 0
        self._idle.append(worker)
        return report

    def _loaded(self, worker: Any, reference: Any) -> None:
        try:
            names = self._machines.result(reference)
        except WorkerLostError as error:
            self._count_loss(worker, error)
            return
        if self._names and names != self._names:
            raise UserError(f"the cluster's nodes have other weights or packages: {self._names} and {names}")
        self._names = names
        self._idle.append(worker)

    def _count_loss(self, worker: Any, error: Exception) -> None:
        self._workers.remove(worker)
        self._lost_in_a_row += 1
        self._looked = 0.0  # replace it at once
        if self._lost_in_a_row >= LOST_IN_A_ROW:
            raise UserError(f"{LOST_IN_A_ROW} workers in a row were lost; the last: {' '.join(str(error).split())}")
