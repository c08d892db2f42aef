"""An S3 server on this machine, and a count of what is asked of it."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """Run an S3 server with a bucket in its own process. Yields the URL of a store in it."""
    import s3fs

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark"}
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while server.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        s3fs.S3FileSystem().mkdir("benchmark")
        yield "s3://benchmark/store"
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def counted_requests() -> Iterator[Counter[str]]:
    """Count the requests that this process sends meanwhile, by method."""
    import s3fs

    counts, call = Counter[str](), s3fs.S3FileSystem._call_s3

    async def counting(self: Any, method: str, *words: Any, **named: Any) -> Any:
        counts[method] += 1
        return await call(self, method, *words, **named)

    s3fs.S3FileSystem._call_s3 = counting
    try:
        yield counts
    finally:
        s3fs.S3FileSystem._call_s3 = call
