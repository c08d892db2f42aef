"""Start commands as forks of one process that has imported the heavy libraries: importing them takes most of a start.

A fork is a process of its own: it can be killed, and leaves nothing behind. `conftest.Forks` asks for them through a
socket, standard input: a JSON object with a module's words, a folder and an environment, and the files that are the
fork's output and where its id and its exit status are written.
"""

import atexit
import contextlib
import fcntl
import importlib
import json
import multiprocessing.util
import os
import runpy
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

HEAVY = ("torch", "transformers.models.llama.modeling_llama", "transformers.generation", "deepspeed", "trainer.stage",
         "serve.assistant", "trainer.checkpoint.export", "pyarrow.parquet", "matplotlib.pyplot", "peft", "av", "fsspec",
         "ray", "featurize.plan", "featurize.leaks", "featurize.pool", "featurize.shard_job",
         "featurize.encoders.clip", "featurize.encoders.clap")  # fmt: skip
MAX_REQUEST = 1 << 18  # bytes


def serve(control: socket.socket) -> None:
    """Answer until the tests' process ends."""
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watchers
    while True:
        request, files, _, _ = socket.recv_fds(control, MAX_REQUEST, 3)
        if not request:
            return
        if not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            watch(json.loads(request), *files)
            os._exit(0)
        for file in files:
            os.close(file)


def watch(request: dict, reply: int, out: int, err: int) -> None:
    """Fork, and tell the fork's id and how it ended."""
    child = os.fork()
    if not child:
        os.close(reply)
        end(lambda: become(request, out, err))
    os.close(out)
    os.close(err)
    os.write(reply, f"{child}\n".encode())
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(reply, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def end(run: Callable[[], None]) -> NoReturn:
    """Run and end as an interpreter does, but for taking its modules apart, which takes seconds."""
    try:
        run()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def become(request: dict, out: int, err: int) -> None:
    """Run `python -m WORDS` here."""
    os.setsid()
    for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
        os.dup2(source, target)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:0] = [request["cwd"], *filter(None, request["env"].get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = request["words"]
    if sys.argv[:2] in (["featurize", "run"], ["featurize", "repair"]):
        lend_fork_server()
    runpy.run_module(request["words"][0], run_name="__main__", alter_sys=True)


def lend_fork_server() -> None:
    """Make multiprocessing's fork server a fork too, when this process starts it.

    It is made now, while this process has one thread, and waits for the code that it would be started with.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = os.fork()
    if not server:
        ours.close()
        request, files, _, _ = socket.recv_fds(its, MAX_REQUEST, 2)
        its.close()
        if not request:
            os._exit(0)
        code, numbers = json.loads(request)
        copies = [fcntl.fcntl(file, fcntl.F_DUPFD, 200) for file in files]
        for file in files:
            os.close(file)
        for file, number in zip(copies, numbers, strict=True):
            os.dup2(file, number)
            os.close(file)
        end(lambda: exec(code, {}))
    its.close()
    spawn = multiprocessing.util.spawnv_passfds

    def start(path: str, words: list[str], files: list[int]) -> int:
        if ours.fileno() == -1 or "multiprocessing.forkserver" not in words[-1]:
            return spawn(path, words, files)
        with ours:
            socket.send_fds(ours, [json.dumps([words[-1], files]).encode()], files)
        return server

    multiprocessing.util.spawnv_passfds = start


if __name__ == "__main__":
    sys.path.pop(0)
    serve(socket.socket(fileno=os.dup(0)))
