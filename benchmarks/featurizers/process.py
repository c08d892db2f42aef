"""Run a command as a user does, and count what it took with all its descendants (Linux)."""

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
        cpu: seconds of all cores, its descendants' among them.
        code: its exit status; negative for a signal.
        said: its lines on both outputs.
    """

    wall: float
    cpu: float
    code: int
    said: list[str]


def never() -> bool:
    """Have a command run to its end."""
    return False


def run_process(words: Sequence[str], log: Path, env: Mapping[str, str], until: Until) -> Spent:
    """Run a command to its end, and wait for all it has started; `until` has it killed (-9) once it is true."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what it leaves behind becomes our child
    began, ended = time.perf_counter(), threading.Event()
    with open(log, "w") as file:
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=env)
    seen: dict[int, float] = {}
    watcher = threading.Thread(target=_watch, args=(process.pid, seen, until, ended))
    watcher.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall, reaped = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    process.returncode = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(ChildProcessError):
        while True:
            _, _, usage = os.wait4(-1, 0)
            reaped += usage.ru_utime + usage.ru_stime
    ended.set()
    watcher.join()
    # A parent that ignores its children's end (Ray's raylet) loses their time, a watcher what came after its last look.
    return Spent(wall, max(reaped, sum(seen.values())), process.returncode, log.read_text().splitlines())


def _watch(pid: int, seen: dict[int, float], until: Until, ended: threading.Event) -> None:
    """Note the CPU seconds of each descendant, again and again."""
    me = psutil.Process()
    while not ended.wait(POLL_SECONDS):
        for child in me.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                times = child.cpu_times()
                seen[child.pid] = times.user + times.system
        if until():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
