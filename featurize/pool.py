"""The workers of a run and the shards in flight. Work is keyed by shard, so any worker may do it, and again."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from featurize.pending import ShardReport
from featurize.settings import FeaturizeConfig
from featurize.worker import Task, WorkerLostError
from store import UserError

CAREFUL = 2  # a shard that lost its worker this often is decoded in child processes: a file in it may crash FFmpeg
LOST_IN_A_ROW = 30  # workers lost without one shard finished in between: something else is wrong
LOOK_SECONDS = 5.0  # between looks at whether the cluster has grown


class Machines(Protocol):
    """Where workers run. A reference stands for a call that may be under way; a worker has one at a time."""

    def resources(self) -> tuple[int, float]:
        """CPU cores and GPUs."""

    def start(self) -> Any:
        """A new worker."""

    def call(self, worker: Any, method: str, *words: Any) -> Any:
        """Begin a call of a worker's method; its reference."""

    def wait(self, references: Sequence[Any], seconds: float) -> Any | None:
        """The reference of a call that has ended, or None if that took too long."""

    def result(self, reference: Any) -> Any:
        """What the call gave.

        Raises:
            WorkerLostError: its worker is gone.
            UserError: the call raised it.
        """

    def end(self, worker: Any) -> None:
        """Let a worker go, whatever it does."""


def connect(store: str, config: FeaturizeConfig) -> Machines:
    """The Ray cluster that RAY_ADDRESS names (a submitted job has it set), or else this machine."""
    if os.environ.get("RAY_ADDRESS"):
        from featurize.cluster import Cluster

        return Cluster(store, config)
    from featurize.local import Local

    return Local(store, config)


class Pool:
    """The workers of a run, and the shards in flight.

    A worker that is lost, alone or with its node, is replaced, and its shard goes to another. Workers join as soon as
    their encoders are loaded, and the pool grows with the cluster; those that find nothing more to do are let go, so
    that an autoscaler can take their nodes.
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
            raise UserError(
                f"fields 'cpus' and 'gpus': a worker takes {config.cpus} and {config.gpus:g}; "
                f"there are {cpus} CPUs and {gpus:g} GPUs"
            )

    @property
    def size(self) -> int:
        """How many workers there are, loading or loaded."""
        return len(self._workers)

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
        # two workers of 0.7 do not fit a GPU, so three do not fit two
        return min(workers, int(gpus) * int(1 / share) if share < 1 else int(gpus / share))

    def _start(self, worker: Any, task: Task) -> None:
        reference = self._machines.call(worker, "encode", task.items, task.names, task.lost >= CAREFUL)
        self._running[reference] = worker, task

    def _grow(self, useful: int) -> None:
        """Have as many workers as the configuration says or the machines fit, but no more than are `useful`."""
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
        """Wait for something to happen: a report, a task that lost its worker, or neither."""
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
        if self._lost_in_a_row > LOST_IN_A_ROW:
            raise UserError(f"{LOST_IN_A_ROW} workers in a row were lost; the last: {' '.join(str(error).split())}")
