"""Give freed memory back to the system."""

import asyncio
import ctypes

SECONDS = 10.0  # between two times


async def trim_often() -> None:
    """Have glibc return freed memory every `SECONDS`, until cancelled.

    glibc keeps it otherwise: a server grew by a megabyte for each file that it was sent (`benchmarks.api uploads`).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    while trim:
        await asyncio.sleep(SECONDS)
        await asyncio.to_thread(trim, 0)
