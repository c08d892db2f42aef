"""Memory that a server has freed."""

import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
PINNED = """
import asyncio
from pathlib import Path

from serve.api import memory


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def main():
    blocks = [bytes(size) for _ in range(2000) for size in (100_000, 1000)]
    del blocks[::2]  # the small ones in between keep the heap as long as it was
    kept = resident()
    memory.SECONDS = 0.01
    trimming = asyncio.create_task(memory.trim_often())
    await asyncio.sleep(1)
    trimming.cancel()
    print(kept - resident())


asyncio.run(main())
"""


def test_what_is_freed_between_small_blocks_is_given_back():
    """200 MB of freed blocks; without trimming they stay the process's."""
    done = subprocess.run(
        [sys.executable, "-c", PINNED], cwd=REPO, capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) > 100_000_000
