"""Give freed memory back to the system."""

import asyncio
import ctypes

SECONDS = 10.0  # between two times


async def trim_often() -> None:
    """Have glibc give back what it keeps free, now and then, until cancelled.

    Large bodies, media and features are freed in other threads than they were allocated in, and in between small
    objects: left alone, a server grows by a megabyte or so for each file that it is sent.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
    while trim:
        await asyncio.sleep(SECONDS)
        await asyncio.to_thread(trim, 0)
