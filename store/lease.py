"""Who writes to a store. An object store has no locks, so a writer there keeps a lease: an object it renews.

A writer puts its lease beside the others' and then looks who else is there; of two that begin at once at least one sees
the other. A lease ends when it is removed, when it was not renewed for two minutes, or when its process is seen dead.
"""

import contextlib
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import UserError

if TYPE_CHECKING:
    from store.storage import Storage

RENEWED = 30.0  # seconds between two renewals
STALE = 120.0  # seconds after which a lease that was not renewed has ended
PAUSES = (0.3, 0.6, 1.2)  # seconds, at most, before looking again: two that began at once do not both give up


@dataclass(frozen=True)
class Holder:
    """A process that writes to a store; `kernel` is the machine's boot and pid namespace, times are seconds UTC."""

    host: str
    pid: int
    kernel: str
    since: float
    renewed: float

    @classmethod
    def here(cls, since: float | None = None) -> "Holder":
        """This process, now."""
        now = time.time()
        return cls(socket.gethostname(), os.getpid(), _kernel(), now if since is None else since, now)

    @classmethod
    def parse(cls, text: bytes | str) -> "Holder":
        """What `dump` wrote."""
        return cls(**json.loads(text))

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @property
    def ended(self) -> bool:
        """Whether it is dead, or was not heard of for so long that it must be."""
        dead = self.kernel == _kernel() and not Path(f"/proc/{self.pid}").exists()
        return dead or time.time() - self.renewed > STALE

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"process {self.pid} on {self.host}, since {since}"


def _kernel() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"


@contextlib.contextmanager
def hold_lease(storage: "Storage", folder: str) -> Iterator[None]:
    """Keep a lease in `folder` for the block.

    Raises:
        UserError: another process holds one; or this one was paused so long that another took its place.
    """
    name, since = f"{folder}/{uuid.uuid4().hex}.json", time.time()
    done = threading.Event()
    renewing = threading.Thread(target=_renew, args=(storage, name, since, done), daemon=True)
    try:
        _take(storage, folder, name)
        renewing.start()
        yield
        if not storage.exists(name):
            raise UserError(f"{storage.url}: the lease on this store ran out; another process may have written to it")
    finally:
        done.set()
        if renewing.ident:
            renewing.join()
        storage.remove(name)


def _take(storage: "Storage", folder: str, name: str) -> None:
    for pause in PAUSES:
        storage.write(name, Holder.here().dump())
        others = _others(storage, folder, name)
        live = [holder for holder in others.values() if not holder.ended]
        if not live:
            for other in others:
                storage.remove(other)
            return
        storage.remove(name)
        time.sleep(pause * random.random())
    wait = f"; let it end (if it was killed: {STALE:.0f} s after its end the store is free)"
    raise UserError(f"{storage.url}: another process is writing to this store: {live[0]}{wait}")


def _others(storage: "Storage", folder: str, name: str) -> dict[str, Holder]:
    others = {}
    for other in {f"{folder}/{found}" for found in storage.names(folder)} - {name}:
        try:
            others[other] = Holder.parse(storage.read(other))
        except UserError:
            if storage.exists(other):  # else it has just given up
                raise
    return others


def _renew(storage: "Storage", name: str, since: float, done: threading.Event) -> None:
    while not done.wait(RENEWED):
        with contextlib.suppress(UserError):  # the network may be back by the next time
            if storage.exists(name):
                storage.write(name, Holder.here(since).dump())
