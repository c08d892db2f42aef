"""The processes of a run, as torchrun or the deepspeed launcher started them."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from store import UserError
from store.console import console
from trainer.settings import TrainConfig

LOCK = ".lock"  # in a run's folder


def world_size() -> int:
    """The number of ranks that torchrun or the deepspeed launcher started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the first rank; works before an engine is built."""
    return os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def alone_in(output: Path) -> Iterator[None]:
    """Keep other runs out of a run's folder; the first rank does it for all.

    Raises:
        UserError: another run is in it.
    """
    if not is_first():
        yield
        return
    output.mkdir(parents=True, exist_ok=True)
    with open(output / LOCK, "ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"field 'output': another run writes into {output}; let it end, or take another") from None
        except OSError as error:  # of a file system without locks
            console.print(f"{output}: cannot be locked ({error.strerror}): see that no other run writes there")
        yield


def uses_deepspeed(config: TrainConfig) -> bool:
    """Whether `zero` is set and a launcher started this process."""
    return config.zero is not None and "RANK" in os.environ


def check_world(config: TrainConfig, ranks: int | None = None) -> None:
    """Refuse a run that cannot be divided evenly among `ranks`, or among those that were started.

    Raises:
        UserError: several ranks without ZeRO, or a global batch that the ranks do not divide.
    """
    ranks = ranks or world_size()
    if ranks > 1 and config.zero is None:
        raise UserError(f"field 'zero': {ranks} processes share the steps; set zero.stage to 1, 2 or 3")
    if config.global_batch % ranks:
        below = config.global_batch // ranks * ranks
        divisible = " or ".join(str(size) for size in (below, below + ranks) if size)
        raise UserError(
            f"field 'global_batch': {config.global_batch} is not divisible by {ranks} ranks; {divisible} would be"
        )
