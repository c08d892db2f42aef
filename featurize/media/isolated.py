"""Decode in a child process: a crash, a hang or excessive memory there fails one file, not the worker."""

import multiprocessing
import resource
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self, TypeVar

from featurize.media.errors import MediaError

MEMORY = 2 << 30  # bytes of data that a child may allocate
CALL_SECONDS = 3600.0  # that a call may take, and a file that a worker's threads decode; serve gives its own
START_SECONDS = 300.0  # that a child may take to start, which a busy machine makes long
READY = "ready"
ATTEMPTS = 2  # retry once; a second death is blamed on the file
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
R = TypeVar("R")


class LateError(MediaError):
    """Decoding took too long, which may be no fault of the file but of what else the machine does."""


class StoppedError(Exception):
    """Nobody wants the result of a call any more."""


class Isolated:
    """Calls functions in a child process, which is reused until a call kills it; the next call starts a new one.

    A context manager. Functions, arguments and results are pickled, so functions must be importable by name.
    """

    def __init__(self, memory: int = MEMORY, seconds: float = CALL_SECONDS) -> None:
        self._memory, self._seconds = memory, seconds
        self._child: Any = None
        self._is_stopped = False
        self._pipe: Connection[Any, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, function: Callable[..., R], *words: Any) -> R:
        """Return the result of `function(*words)`, or raise what it raises.

        Raises:
            MediaError: the child crashed twice or took too long (`unreadable`), or needed too much memory
                (`too_large`).
            StoppedError: it was stopped.
            RuntimeError: the child ended for another reason, such as a signal from outside.
        """
        for _ in range(ATTEMPTS):
            try:
                if self._child is None:
                    self._start()
                self._check_running()
                result, error = self._ask(function, words)
            except (EOFError, ConnectionError):
                self._check_running()
                death = self._death()
                continue
            if error is not None:
                raise error
            return result  # type: ignore[no-any-return]
        raise death

    def stop(self) -> None:
        """End the call under way, from another thread, and refuse later ones."""
        self._is_stopped = True
        if child := self._child:
            child.kill()

    def close(self) -> None:
        """Kill the child."""
        if self._child is not None:
            assert self._pipe
            self._child.kill()
            self._child.join()
            self._pipe.close()
            self._child = None

    def _check_running(self) -> None:
        if self._is_stopped:
            self.close()
            raise StoppedError

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._child = context.Process(target=_serve, args=(theirs, self._memory), daemon=True)
        resource_tracker.ensure_running()  # else the start of a first child would start it, which unblocks SIGINT
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child inherits it: Ctrl-C is for us
        try:
            self._child.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._check_running()
        if not self._pipe.poll(START_SECONDS):
            self.close()
            raise LateError("unreadable", f"the decoder took more than {START_SECONDS:g} s to start")
        assert self._pipe.recv() == READY

    def _ask(self, function: Callable[..., Any], words: tuple[Any, ...]) -> tuple[Any, Exception | None]:
        assert self._pipe
        self._pipe.send((function, words))
        if not self._pipe.poll(self._seconds):
            self.close()
            return None, LateError("unreadable", f"decoding took more than {self._seconds:g} s")
        answer: tuple[Any, Exception | None] = self._pipe.recv()
        return answer

    def _death(self) -> MediaError:
        self._child.join()
        code = self._child.exitcode
        self.close()
        if -code in CRASHES:
            return MediaError("unreadable", f"the decoder crashed ({signal.Signals(-code).name})")
        if -code == signal.SIGKILL:
            return MediaError("too_large", "the decoder was killed (SIGKILL), as the system does for want of memory")
        raise RuntimeError(f"the decoding process ended with exit code {code}")


def _serve(pipe: "Connection[Any, Any]", memory: int) -> None:
    """Main loop of the child: answer calls until the other end is closed."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send(READY)
    while True:
        try:
            function, words = pipe.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, Exception | None] = function(*words), None
        except MemoryError:
            answer = None, MediaError("too_large", f"decoding takes more than {memory >> 20} MiB of memory")
        except Exception as error:
            answer = None, error
        pipe.send(answer)
