"""How fast a server is asked: more at once while it answers, half as many when it does not keep up."""

import asyncio
import math
import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

FIRST_PAUSE = 0.5  # seconds; the most before the first repetition
STEP = 0.9  # of the rate that was refused: how far one goes at once
NEAR = 0.7  # rates of this ratio or closer are nearly the same
CREEP = 1.005  # growth of a rate in the first second near that which was refused
SLACK = 0.05  # seconds that a late start may be made up for
SHORTEST = 0.01  # seconds that first requests are taken to need at least
MEASURED = 0.25  # seconds over which later rates are measured at least
SOON = 2.0  # seconds before which a refusal says that the rate is far too high


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
    """When requests to one server begin.

    A server that is busy (503) halves the turns, and each round of good replies adds one. A server with a limit (429)
    halves the rate at which requests begin; then the rate doubles each second up to a little below where it was
    refused, and creeps on from there, ever faster, so that refusals and the pauses that they ask for become rare.

    Args:
        most: turns at once, and how many there are at the beginning.
        longest_pause: seconds, unless the server asks for more.
    """

    def __init__(self, most: int, longest_pause: float) -> None:
        self._most, self._longest = most, longest_pause
        self._turns = float(most)
        self._active, self._busy = 0, 0
        self._resume = self._halved = 0.0
        self._gate, self._left = asyncio.Lock(), asyncio.Event()
        self._rate = self._refused_at = self._near = math.inf  # requests that begin in a second
        self._next = self._grown = 0.0  # when the next request may begin, and when the rate was computed
        self._counted, self._since = 0, time.monotonic()  # requests that began since then

    async def enter(self) -> float:
        """Wait for a turn; return when it began."""
        async with self._gate:
            while True:
                now = time.monotonic()
                if self._active >= int(self._turns):
                    self._left.clear()
                    await self._left.wait()
                elif (seconds := max(self._resume, self._next) - now) > 0:
                    await asyncio.sleep(seconds)
                else:
                    self._active += 1
                    self._counted += 1
                    self._next = max(self._next, now - SLACK) + 1 / self._grow(now)
                    return now

    def leave(self) -> None:
        """End a turn."""
        self._active -= 1
        self._left.set()

    def answered(self) -> None:
        """The server has given a reply."""
        self._busy = 0
        self._turns = min(self._most, self._turns + 1 / self._turns)

    def busy(self, began: float, after: float | None, limited: bool = False) -> None:
        """The server cannot keep up.

        Args:
            began: when the turn began; those that began before the last halving say nothing new.
            after: seconds that the server asks to wait, or None. 0, of a date that has passed too, counts as None: a
                client that came back at once would be refused again.
            limited: whether it refused for a limit.
        """
        now = time.monotonic()
        if began >= self._halved:
            self._busy += 1
            self._halved = now
            if limited:
                self._slow_down(now)
            else:
                self._turns = max(1.0, self._turns / 2)
        pause = after or pause_before(max(1, self._busy), self._longest)
        self._resume = max(self._resume, now + pause)
        self._since = max(self._since, self._resume)

    def _slow_down(self, now: float) -> None:
        """Halve the rate; or lower it a little, if it was known well."""
        seconds = now - self._since
        measured = seconds > MEASURED or self._rate == math.inf
        rate = min(self._rate, self._counted / max(seconds, SHORTEST)) if measured else self._rate
        known = NEAR * self._refused_at <= rate <= self._refused_at / NEAR
        step = STEP if seconds > SOON else STEP**2
        self._rate, self._near = rate * (step if known else 0.5), rate * (step if known else STEP)
        self._refused_at = rate
        self._grown, self._counted, self._since = now, 0, now

    def _grow(self, now: float) -> float:
        """The rate now: it doubles each second up to where it is near what was refused, and then grows ever faster."""
        if self._rate == math.inf:
            return self._rate
        seconds = max(0.0, now - max(self._grown, self._resume))
        if self._rate < self._near:
            self._rate = min(self._rate * 2**seconds, self._near)
        else:
            self._rate *= CREEP ** (seconds * (1 + max(0.0, now - self._since) / SOON))
        self._grown = now
        return self._rate
