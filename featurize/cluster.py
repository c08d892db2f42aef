"""Workers as actors of a Ray cluster."""

import os
from collections.abc import Sequence
from typing import Any

import ray

from featurize.settings import FeaturizeConfig
from featurize.worker import Worker, WorkerLostError
from store import UserError

LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)


class Cluster:
    """The Ray cluster at RAY_ADDRESS; see `featurize.pool.Machines`."""

    def __init__(self, store: str, config: FeaturizeConfig) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(log_to_driver=False)
        self._words = store, config
        self._actor: Any = ray.remote(num_cpus=config.cpus, num_gpus=config.gpus)(Worker)

    def resources(self) -> tuple[int, float]:
        """CPU cores and GPUs of all nodes."""
        totals: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return int(totals.get("CPU", 0)), totals.get("GPU", 0.0)

    def start(self) -> Any:
        """A new actor."""
        return self._actor.remote(*self._words)

    def call(self, worker: Any, method: str, *words: Any) -> Any:
        """Start a call to an actor's method."""
        return getattr(worker, method).remote(*words)

    def wait(self, references: Sequence[Any], seconds: float) -> Any | None:
        """The reference of a finished call, or None after `seconds`."""
        ready, _ = ray.wait(list(references), num_returns=1, timeout=seconds)
        return ready[0] if ready else None

    def result(self, reference: Any) -> Any:
        """A call's result; a `UserError` is raised without the remote traceback."""
        try:
            return ray.get(reference)
        except LOST as error:
            raise WorkerLostError(str(error)) from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise

    def end(self, worker: Any) -> None:
        """Kill an actor."""
        ray.kill(worker)
