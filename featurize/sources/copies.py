"""Find files that are copies of each other: equal in size, in the first 64 KiB and in the last."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import fsspec
import xxhash

from featurize.sources.kinds import guess_kind
from store.console import Meter

THREADS = 16
EDGE = 1 << 16  # bytes at either end of a file that are compared
A = TypeVar("A")
T = TypeVar("T")


def find_copies(sizes: Mapping[str, int], quiet: bool = False) -> list[list[str]]:
    """Groups of the files that are copies of each other, from the size of each in bytes by its URI.

    Only files that share their size are read, with progress unless `quiet`. Folders of stills are not compared.
    """
    shared = Counter(sizes.values())
    alike = [uri for uri, size in sizes.items() if size and shared[size] > 1 and guess_kind(uri)]
    groups: dict[str, list[str]] = {}
    digests = in_threads(lambda uri: _digest(uri, sizes[uri]), alike, "" if quiet else "compare")
    for uri, digest in zip(alike, digests, strict=True):
        groups.setdefault(digest, []).append(uri)
    return [uris for uris in groups.values() if len(uris) > 1]


def in_threads(work: Callable[[A], T], values: Sequence[A], what: str) -> list[T]:
    """Map in order with threads; show progress of `what` unless it is empty."""
    results: list[T] = []
    with ThreadPoolExecutor(THREADS) as pool, contextlib.ExitStack() as stack:
        meter = stack.enter_context(Meter(what, len(values), "files")) if what and values else None
        for result in pool.map(work, values):
            results.append(result)
            if meter:
                meter.advance(1)
    return results


def _digest(uri: str, size: int) -> str:
    """Digest of size and both ends; a file that can no longer be read equals no other."""
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        head = fs.cat_file(path, start=0, end=min(EDGE, size))
        tail = fs.cat_file(path, start=max(0, size - EDGE), end=size)
    except OSError:
        return uri
    return f"{size} {xxhash.xxh3_128_hexdigest(head + tail)}"
