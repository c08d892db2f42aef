"""Who writes to a store. An object store has no locks, so a writer there keeps a lease: an object it renews.

Leases are numbered. A writer creates the one after the last, which the store lets a single writer do, if the last one
has ended: it was given back, was not renewed for two minutes, or its process is seen dead. The last lease stays, so
that a number is never given twice.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import UserError

if TYPE_CHECKING:
    from store.storage import Storage

RENEWED = 30.0  # seconds between two renewals
STALE = 120.0  # seconds after which a lease that was not renewed has ended


@dataclass(frozen=True)
class Holder:
    """A process that writes to a store.

    Attributes:
        host: its machine.
        pid: its id there.
        kernel: the machine's boot and pid namespace, within which the id names it.
        since: when it began, seconds UTC.
        renewed: when it was last heard of, seconds UTC.
        released: whether it has given the store back.
    """

    host: str
    pid: int
    kernel: str
    since: float
    renewed: float
    released: bool = False

    @classmethod
    def here(cls, since: float | None = None) -> "Holder":
        """This process, now."""
        now = time.time()
        return cls(socket.gethostname(), os.getpid(), _kernel(), now if since is None else since, now, False)

    @classmethod
    def parse(cls, text: bytes | str) -> "Holder":
        """What `dump` wrote."""
        return cls(**json.loads(text))

    def dump(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @property
    def ended(self) -> bool:
        """Whether it gave the store back, is dead, or was not heard of for so long that it must be."""
        dead = self.kernel == _kernel() and not Path(f"/proc/{self.pid}").exists()
        return self.released or dead or time.time() - self.renewed > STALE

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
    lease = _Lease(storage, folder)
    done = threading.Event()
    renewing = threading.Thread(target=lease.renew, args=(done,), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        held = lease.release()
    if not held:
        raise UserError(f"{storage.url}: the lease on this store ran out; another process may have written to it")


class _Lease:
    """The last lease of a folder, which this process has just created."""

    def __init__(self, storage: "Storage", folder: str) -> None:
        self._storage, self._folder = storage, folder
        self._since = time.time()
        while True:
            last = self._last()
            if last and not (holder := Holder.parse(storage.read(self._name(last)))).ended:
                wait = f"; let it end (if it was killed: {STALE:.0f} s after its end the store is free)"
                raise UserError(f"{storage.url}: another process is writing to this store: {holder}{wait}")
            self._number = last + 1
            if storage.create(self._name(self._number), Holder.here(self._since).dump()):
                if self._is_held():
                    break
                storage.remove(self._name(self._number))
        for number in self._numbers()[:-1]:
            storage.remove(self._name(number))

    def renew(self, done: threading.Event) -> None:
        """Say every half minute that this process lives, until it is done."""
        while not done.wait(RENEWED):
            with contextlib.suppress(UserError):  # the network may be back by the next time
                if self._is_held():
                    self._storage.write(self._name(self._number), Holder.here(self._since).dump())

    def release(self) -> bool:
        """Give the store back; whether it was held until now."""
        if not self._is_held():
            return False
        self._storage.write(self._name(self._number), replace(Holder.here(self._since), released=True).dump())
        return True

    def _is_held(self) -> bool:
        """Whether there is no later lease: one that slept between looking and creating may be late."""
        return self._last() == self._number

    def _last(self) -> int:
        return max(self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        names = (name.removesuffix(".json") for name in self._storage.names(self._folder))
        return sorted(int(name) for name in names if name.isdecimal())

    def _name(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"
