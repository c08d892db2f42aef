"""The client: many requests to OpenAI-style servers, each answered once, whatever fails; every reply is in a ledger."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from curate.ledger import Amount, Ledger, Reply, Request
from curate.pace import pause_before
from curate.server import RejectedError, Server, TransientError, most_of
from curate.settings import ClientSettings
from store import UserError

OnReply = Callable[[Request, Reply], None]
AT_ONCE = 64  # requests with known replies that are looked at before those in flight have a turn


@dataclass
class Outcome:
    """What came of some requests.

    Attributes:
        known: replies that the ledger had.
        kept: replies that came now.
        sent: tries, with those that failed.
        undecided: by digest, why a request has no reply. It can be asked again.
    """

    known: int = 0
    kept: int = 0
    sent: int = 0
    undecided: dict[str, str] = field(default_factory=dict)


class Work(Protocol):
    """Requests without a reply, to several clients; some come up only when others are answered."""

    @property
    def is_done(self) -> bool:
        """Whether no more will come."""

    def has_some(self, client: int) -> bool:
        """Whether `take` may find something for a client before another request is settled."""

    def take(self, client: int) -> Request | None:
        """A request that can be sent now. It may find none in the time it has, though there are some."""

    def settle(self, request: Request, reply: Reply | None) -> None:
        """A request has its reply; or None, since there will be none now."""


class Client:
    """Asks servers.

    Args:
        settings: which, and how.

    Raises:
        UserError: the key cannot be read.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings, self.key = settings, settings.key()

    def ask_all(self, requests: Iterable[Request], ledger: Ledger, on_reply: OnReply) -> Outcome:
        """Ask all requests that the ledger has no reply to; equal ones are sent once.

        Args:
            requests: what to ask; taken as turns become free.
            ledger: keeps the replies, and the budget.
            on_reply: gets each different request with its reply, in any order.

        Raises:
            UserError: as `ask_together`.
        """
        listed = _Listed(requests, ledger, on_reply)
        outcome = ask_together([self], listed, ledger)
        outcome.known = listed.known
        return outcome


def ask_together(clients: Sequence[Client], work: Work, ledger: Ledger) -> Outcome:
    """Ask by several clients at once until their work is done.

    Args:
        clients: who asks.
        work: what to ask.
        ledger: keeps the replies, and the budget.

    Raises:
        UserError: no request can succeed, as with a wrong key; the budget is reached; or many requests in a row ended
            without a reply. Replies that came before are kept.
    """
    return asyncio.run(_Asking(clients, work, ledger).run())


class _Listed:
    """Requests of a list, for one client."""

    def __init__(self, requests: Iterable[Request], ledger: Ledger, on_reply: OnReply) -> None:
        self._requests, self._ledger, self._on_reply = iter(requests), ledger, on_reply
        self._seen = set[str]()
        self.is_done, self.known = False, 0

    def has_some(self, client: int) -> bool:
        return not self.is_done

    def take(self, client: int) -> Request | None:
        for _ in range(AT_ONCE):
            request = next(self._requests, None)
            if request is None:
                self.is_done = True
                return None
            if request.digest in self._seen:
                continue
            self._seen.add(request.digest)
            if (reply := self._ledger.get(request)) is None:
                return request
            self.known += 1
            self._on_reply(request, reply)
        return None

    def settle(self, request: Request, reply: Reply | None) -> None:
        if reply:
            self._on_reply(request, reply)


@dataclass
class _Job:
    request: Request
    tries: int = 0


class _Lane:
    """A client and its share of the work."""

    def __init__(self, number: int, client: Client) -> None:
        self.number, self.settings, self.key = number, client.settings, client.key
        self.again: deque[_Job] = deque()
        self.idle: deque[asyncio.Future[None]] = deque()  # workers that wait for a job
        self.failed_in_a_row = 0


class _Asking:
    """One call of `ask_together`."""

    def __init__(self, clients: Sequence[Client], work: Work, ledger: Ledger) -> None:
        self._lanes = [_Lane(number, client) for number, client in enumerate(clients)]
        self._todo, self._ledger = work, ledger
        self._open = 0  # jobs that were taken and are not done
        self._over, self._settled = asyncio.Event(), asyncio.Event()
        self._stop: UserError | None = None
        self._outcome = Outcome()
        self._committing: asyncio.Task[None] | None = None

    async def run(self) -> Outcome:
        """Ask."""
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:  # workers end before servers
            workers = []
            for lane in self._lanes:
                for url in lane.settings.urls:
                    server = await stack.enter_async_context(Server(url, lane.settings, lane.key))
                    workers += [group.create_task(self._work(lane, server)) for _ in range(lane.settings.concurrency)]
            await self._over.wait()
            for worker in workers:  # some may wait for a server that asked for it
                worker.cancel()
        if self._stop:
            raise self._stop
        return self._outcome

    def _see_over(self) -> None:
        """End if nothing is in flight, and all is done or the run has to stop."""
        all_done = self._todo.is_done and not self._open
        if not self._ledger.in_flight and (self._stop is not None or all_done):
            self._over.set()

    async def _work(self, lane: _Lane, server: Server) -> None:
        """Do jobs at one server."""
        while not self._stop:
            if not self._has_some(lane):
                self._see_over()
                lane.idle.append(asyncio.get_running_loop().create_future())
                await lane.idle[-1]
                continue
            began = await server.pace.enter()
            try:
                if job := self._next(lane):
                    await self._ask(lane, server, job, began)
                else:
                    await asyncio.sleep(0)
            except UserError as error:
                self._stop = self._stop or error
                self._see_over()
            finally:
                server.pace.leave()

    def _has_some(self, lane: _Lane) -> bool:
        return bool(lane.again) or self._todo.has_some(lane.number)

    def _next(self, lane: _Lane) -> _Job | None:
        """A job that can be done now."""
        if lane.again:
            return lane.again.popleft()
        request = self._todo.take(lane.number)
        self._wake()
        if request is None:
            return None
        self._open += 1
        return _Job(request)

    def _wake(self) -> None:
        """Wake a worker of each client that has something to do; it wakes the next one."""
        for lane in self._lanes:
            if lane.idle and self._has_some(lane):
                waiting = lane.idle.popleft()
                if not waiting.done():
                    waiting.set_result(None)

    async def _ask(self, lane: _Lane, server: Server, job: _Job, began: float) -> None:
        """Send a job's request once."""
        most = most_of(job.request, lane.settings.price)
        if not self._ledger.reserve(job.request, most):
            await self._put_off(lane, job)
            return
        job.tries += 1
        try:
            await self._commit()
            self._outcome.sent += 1
            reply, spent = await server.ask(job.request, most)
        except TransientError as error:
            self._ledger.lose(job.request, error.spent)
            if error.busy:
                server.pace.busy(began, error.after, error.limited)
            self._try_again(lane, job, error)
        except RejectedError as error:
            self._ledger.lose(job.request, Amount())
            self._give_up(lane, job, error)
        except UserError:
            self._ledger.lose(job.request, Amount())
            raise
        else:
            server.pace.answered()
            self._ledger.keep(job.request, reply, spent)
            await self._commit()
            self._outcome.kept += 1
            lane.failed_in_a_row = 0
            self._done(job, reply)

    async def _commit(self) -> None:
        """Wait until the ledger has written what was noted; all that wait at the same time share a write."""
        if not self._committing:
            self._committing = asyncio.create_task(self._write())
        await self._committing

    async def _write(self) -> None:
        self._committing = None  # what is noted from now on waits for another write
        self._ledger.commit()

    async def _put_off(self, lane: _Lane, job: _Job) -> None:
        """Wait for requests in flight, which may leave something of what was set aside for them."""
        lane.again.appendleft(job)
        if not self._ledger.in_flight:
            raise UserError(
                f"{self._ledger.path}: the budget is reached: {len(self._ledger):,} replies are kept; the next request "
                "might pass it"
            )
        await self._settled.wait()

    def _try_again(self, lane: _Lane, job: _Job, error: TransientError) -> None:
        """Send a request again after a pause; a wait of 0 seconds counts as none told, as in `Pace.busy`."""
        if job.tries >= lane.settings.tries:
            self._give_up(lane, job, error)
            return
        seconds = 0.0  # where a server is busy it has to wait, and another may take the job
        if not error.busy:
            seconds = error.after or pause_before(job.tries, lane.settings.longest_pause)
        asyncio.get_running_loop().call_later(seconds, self._put_back, lane, job)
        self._see_settled()

    def _put_back(self, lane: _Lane, job: _Job) -> None:
        lane.again.append(job)
        self._wake()

    def _give_up(self, lane: _Lane, job: _Job, error: Exception) -> None:
        """Leave a request undecided; so many in a row are no accident."""
        self._outcome.undecided[job.request.digest] = str(error)
        lane.failed_in_a_row += 1
        self._done(job, None)
        if lane.failed_in_a_row >= lane.settings.stop_after:
            raise UserError(f"{lane.failed_in_a_row} requests in a row ended without a reply: {error}")

    def _done(self, job: _Job, reply: Reply | None) -> None:
        self._open -= 1
        self._todo.settle(job.request, reply)
        self._wake()
        self._see_settled()

    def _see_settled(self) -> None:
        """Wake those that wait for what was set aside."""
        self._settled.set()
        self._settled = asyncio.Event()
        self._see_over()
