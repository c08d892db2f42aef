"""One writer at a time for an object store. It has no locks (a local store has flock: `Storage.lock`), so its writer
holds a lease: an object that it renews.

Leases are numbered. Once the last lease has ended, a writer creates the next number with an exclusive create, which
succeeds for one writer only. A lease ends when it is released, is not renewed for two minutes, or its process, of the
same boot and pid namespace, is dead. The last lease is never deleted, so no number is used twice.
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

RENEWED = 30.0  # seconds between renewals
STALE = 120.0  # seconds without a renewal after which a lease has ended


@dataclass(frozen=True)
class Holder:
    """A process that writes to a store.

    Attributes:
        host: the machine's host name.
        pid: the process id.
        kernel: boot id and pid namespace; the pid is unique only within them.
        since: when the process began to write, Unix time in seconds.
        renewed: the last renewal, Unix time in seconds.
        released: whether the process has released the lease.
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
        """Parse the output of `dump`."""
        return cls(**json.loads(text))

    def dump(self) -> bytes:
        """Serialize to JSON."""
        return json.dumps(asdict(self)).encode()

    @property
    def ended(self) -> bool:
        """Whether the lease was released, its process is dead, or it was not renewed for `STALE` seconds.

        The last is told by this machine's clock, which must differ from the holder's by less than `STALE - RENEWED`.
        """
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
    """Hold a lease in `folder` for the duration of the block.

    Raises:
        UserError: another process holds the lease; or this process was paused so long that another took it over.
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
    """A lease in `folder`, acquired on construction."""

    def __init__(self, storage: "Storage", folder: str) -> None:
        self._storage, self._folder = storage, folder
        holder = Holder.here()
        self._since = holder.since
        self._identity = holder.host, holder.pid, holder.kernel, holder.since
        while True:
            last = self._last()
            if last and not (holder := Holder.parse(storage.read(self._name(last)))).ended:
                wait = f"; let it end (if it was killed: the store is free {STALE:.0f} s after its last renewal)"
                raise UserError(f"{storage.url}: another process is writing to this store: {holder}{wait}")
            self._number = last + 1
            if storage.create(self._name(self._number), Holder.here(self._since).dump()):
                if self._is_held():
                    break
                if self._last() != self._number:  # else the lease is another writer's now
                    storage.remove(self._name(self._number))
        for number in self._numbers()[:-1]:
            storage.remove(self._name(number))

    def renew(self, done: threading.Event) -> None:
        """Renew the lease every `RENEWED` seconds until `done` is set."""
        while not done.wait(RENEWED):
            with contextlib.suppress(UserError):  # the network may be back by the next renewal
                if self._is_held():
                    self._storage.write(self._name(self._number), Holder.here(self._since).dump())

    def release(self) -> bool:
        """Release the lease; return whether it was still held."""
        if not self._is_held():
            return False
        self._storage.write(self._name(self._number), replace(Holder.here(self._since), released=True).dump())
        return True

    def _is_held(self) -> bool:
        """Whether the last lease is this one.

        A writer that paused between listing and creating may have been overtaken. On a store that ignores exclusive
        creates, another may have overwritten the lease.
        """
        if self._last() != self._number:
            return False
        holder = Holder.parse(self._storage.read(self._name(self._number)))
        return (holder.host, holder.pid, holder.kernel, holder.since) == self._identity

    def _last(self) -> int:
        return max(self._numbers(), default=0)

    def _numbers(self) -> list[int]:
        names = (name.removesuffix(".json") for name in self._storage.names(self._folder))
        return sorted(int(name) for name in names if name.isdecimal())

    def _name(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"
