"""How fast a server is asked: more at once while it answers, half as many when it does not keep up."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

FIRST_PAUSE = 0.5  # seconds; the most before the first repetition


def pause_before(tries: int, longest: float) -> float:
    """Seconds before the next try: drawn below a bound that doubles, so that clients do not come together."""
    return random.uniform(0, min(longest, FIRST_PAUSE * 2 ** min(tries - 1, 30)))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, by milliseconds, seconds or a date; None if it does not say."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / unit)
        except (KeyError, ValueError):
            continue
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None


class Pace:
    """The turns at one server. Good replies add one turn for each round of turns; a busy server halves them.

    Args:
        most: turns at once, and how many there are at the beginning.
        longest_pause: seconds, unless the server asks for more.
    """

    def __init__(self, most: int, longest_pause: float) -> None:
        self._most, self._longest = most, longest_pause
        self._turns = float(most)
        self._active, self._busy = 0, 0
        self._resume = self._halved = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self) -> float:
        """Wait for a turn; return when it began."""
        while True:
            if (seconds := self._resume - time.monotonic()) > 0:
                await asyncio.sleep(seconds)
            elif self._active < int(self._turns):
                self._active += 1
                return time.monotonic()
            else:
                self._waiting.append(asyncio.get_running_loop().create_future())
                await self._waiting[-1]

    def leave(self) -> None:
        """End a turn."""
        self._active -= 1
        free = int(self._turns) - self._active
        while free > 0 and self._waiting:
            if not (waiting := self._waiting.popleft()).done():
                waiting.set_result(None)
                free -= 1

    def answered(self) -> None:
        """The server has given a reply."""
        self._busy = 0
        self._turns = min(self._most, self._turns + 1 / self._turns)

    def busy(self, began: float, after: float | None) -> None:
        """The server cannot keep up.

        Args:
            began: when the turn began; those that began before the last halving say nothing new.
            after: seconds that the server asks to wait, or None. 0, of a date that has passed too, counts as None: a
                client that came back at once would be refused again.
        """
        if began >= self._halved:
            self._busy += 1
            self._turns, self._halved = max(1.0, self._turns / 2), time.monotonic()
        pause = after or pause_before(max(1, self._busy), self._longest)
        self._resume = max(self._resume, time.monotonic() + pause)
