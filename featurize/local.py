"""Workers as processes of this machine: the same as a one-node Ray cluster, without its ten seconds of startup."""

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from featurize.hub import check_hub
from featurize.settings import FeaturizeConfig
from featurize.worker import Worker, WorkerLostError
from store import UserError


class Process:
    """One worker: its process, our end of the pipe to it, and its place among the workers that share the GPUs."""

    def __init__(self, context: Any, words: tuple[str, FeaturizeConfig], place: int, gpus: str | None) -> None:
        self.place = place
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, gpus, *words))
        self.process.start()
        theirs.close()

    def end(self) -> None:
        """Kill the process if it still runs, and wait for it to end."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


class Local:
    """Worker processes on this machine; see `featurize.pool.Machines`. A worker doubles as the reference of its call.

    Without GPUs, workers are forked from a server that has imported the encoders' packages once.
    """

    def __init__(self, store: str, config: FeaturizeConfig) -> None:
        self._words, self._config = (store, config), config
        check_hub(config.columns)
        self._places: set[int] = set()
        if config.gpus:  # CUDA does not survive a fork once initialised
            self._context: Any = multiprocessing.get_context("spawn")
        else:
            self._context = multiprocessing.get_context("forkserver")
            families = {settings.family for settings in config.columns}
            self._context.set_forkserver_preload(
                ["featurize.shard_job", *(f"featurize.encoders.{family}" for family in sorted(families))]
            )
        self._gpus = _gpus() if config.gpus else []

    def resources(self) -> tuple[int, float]:
        """CPU cores available to this process, and visible GPUs."""
        return len(os.sched_getaffinity(0)), float(len(self._gpus))

    def start(self) -> Process:
        """A new process."""
        place = min(set(range(len(self._places) + 1)) - self._places)
        self._places.add(place)
        return Process(self._context, self._words, place, self._share(place))

    def call(self, worker: Process, method: str, *words: Any) -> Process:
        """Start a call to a worker's method."""
        with contextlib.suppress(OSError):  # the worker is gone; `result` will raise
            worker.pipe.send((method, words))
        return worker

    def wait(self, references: Sequence[Process], seconds: float) -> Process | None:
        """A worker that has finished its call or died, or None after `seconds`."""
        ready = wait([worker.pipe for worker in references], seconds)
        return next((worker for worker in references if worker.pipe in ready), None)

    def result(self, reference: Process) -> Any:
        """The return value of a worker's call."""
        try:
            result, error = reference.pipe.recv()
        except (EOFError, OSError):
            reference.process.join()
            code = reference.process.exitcode
            self.end(reference)
            raise WorkerLostError(f"a worker ended with exit code {code}") from None
        if error is not None:
            raise error
        return result

    def end(self, worker: Process) -> None:
        """Kill a worker."""
        worker.end()
        self._places.discard(worker.place)

    def _share(self, place: int) -> str | None:
        """CUDA_VISIBLE_DEVICES of the worker at `place`; None without GPUs."""
        if not self._gpus:
            return None
        if self._config.gpus < 1:
            return self._gpus[place // int(1 / self._config.gpus) % len(self._gpus)]
        count = int(self._config.gpus)
        return ",".join(self._gpus[i % len(self._gpus)] for i in range(place * count, (place + 1) * count))


def _gpus() -> list[str]:
    import torch

    count = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return visible.split(",")[:count]


def _serve(pipe: "Connection[Any, Any]", gpus: str | None, store: str, config: FeaturizeConfig) -> None:
    """Main loop of a worker process: answer calls until the run ends, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the run, which stops its workers
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    worker = Worker(store, config)
    while True:
        try:
            method, words = pipe.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, Exception | None] = getattr(worker, method)(*words), None
        except (UserError, ImportError) as error:
            answer = None, error
        except Exception:
            answer = None, RuntimeError(traceback.format_exc())
        pipe.send(answer)


def _end_with_the_run() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)
