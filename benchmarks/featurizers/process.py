"""Run a command as a user does, and measure it with all its descendants (Linux)."""

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.2
Until = Callable[[], bool]


@dataclass(frozen=True)
class Spent:
    """What a command took and how it ended.

    Attributes:
        wall: seconds until it ended.
        cpu: CPU seconds on all cores, its descendants' included.
        code: its exit status; negative for a signal.
        said: the lines of its stdout and stderr.
    """

    wall: float
    cpu: float
    code: int
    said: list[str]


def never() -> bool:
    """Let a command run to its end."""
    return False


def run_process(words: Sequence[str], log: Path, env: Mapping[str, str], until: Until) -> Spent:
    """Run a command and wait for it and all its descendants; kill it (-9) once `until()` is true."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # its orphans become our children
    start, ended = time.perf_counter(), threading.Event()
    with open(log, "w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=env)
    seen: dict[int, float] = {}
    watcher = threading.Thread(target=_watch, args=(process.pid, seen, until, ended))
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall, reaped = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
    process.returncode = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(ChildProcessError):
        while True:
            _, _, usage = os.wait4(-1, 0)
            reaped += usage.ru_utime + usage.ru_stime
    ended.set()
    watcher.join()
    # Reaping misses children of a parent that ignores their end (Ray's raylet), watching what follows the last poll.
    return Spent(wall, max(reaped, sum(seen.values())), process.returncode, log.read_text().splitlines())


def _watch(pid: int, seen: dict[int, float], until: Until, ended: threading.Event) -> None:
    """Poll the CPU seconds of each descendant; kill the command once `until()` is true."""
    me = psutil.Process()
    while not ended.wait(POLL_SECONDS):
        for child in me.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                times = child.cpu_times()
                seen[child.pid] = times.user + times.system
        if until():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
