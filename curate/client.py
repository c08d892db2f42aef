"""The client: many requests to OpenAI-style servers, each answered once, whatever fails; every reply is in a ledger."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from curate.ledger import Amount, Ledger, Reply, Request
from curate.pace import pause_before
from curate.server import RejectedError, Server, TransientError, most_of
from curate.settings import ClientSettings
from store import UserError

OnReply = Callable[[Request, Reply], None]


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


class Client:
    """Asks servers.

    Args:
        settings: which, and how.

    Raises:
        UserError: the key cannot be read.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self.settings, self._key = settings, settings.key()

    def ask_all(self, requests: Iterable[Request], ledger: Ledger, on_reply: OnReply) -> Outcome:
        """Ask all requests that the ledger has no reply to; equal ones are sent once.

        Args:
            requests: what to ask; taken as turns become free.
            ledger: keeps the replies, and the budget.
            on_reply: gets each different request with its reply, in any order.

        Raises:
            UserError: no request can succeed, as with a wrong key; the budget is reached; or many requests in a row
                ended without a reply. Replies that came before are kept.
        """
        return asyncio.run(_Asking(self.settings, self._key, requests, ledger, on_reply).run())


@dataclass
class _Job:
    request: Request
    tries: int = 0


class _Asking:
    """One call of `ask_all`."""

    def __init__(
        self, settings: ClientSettings, key: str | None, requests: Iterable[Request], ledger: Ledger, on_reply: OnReply
    ) -> None:
        self._settings, self._key, self._ledger, self._on_reply = settings, key, ledger, on_reply
        self._new = self._unknown(requests)
        self._again: deque[_Job] = deque()
        self._open = 0  # jobs that were taken and are not done
        self._taken = False  # whether all were taken
        self._changed = asyncio.Event()
        self._failed_in_a_row = 0
        self._stop: UserError | None = None
        self._outcome = Outcome()
        self._committing: asyncio.Task[None] | None = None

    async def run(self) -> Outcome:
        """Ask."""
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:  # workers end before servers
            urls = self._settings.urls
            servers = [await stack.enter_async_context(Server(url, self._settings, self._key)) for url in urls]
            workers = [group.create_task(self._work(s)) for s in servers for _ in range(self._settings.concurrency)]
            while not self._is_over():
                await self._changed.wait()
            for worker in workers:  # some may wait for a server that asked for it
                worker.cancel()
        if self._stop:
            raise self._stop
        return self._outcome

    def _is_over(self) -> bool:
        """Whether nothing is in flight, and all is done or the run has to stop."""
        all_done = self._taken and not self._open
        return not self._ledger.in_flight and (self._stop is not None or all_done)

    def _unknown(self, requests: Iterable[Request]) -> Iterator[_Job]:
        """The requests that have to be asked; the replies to others are handed on."""
        seen = set[str]()
        for request in requests:
            if request.digest in seen:
                continue
            seen.add(request.digest)
            if reply := self._ledger.get(request):
                self._outcome.known += 1
                self._on_reply(request, reply)
            else:
                yield _Job(request)

    async def _work(self, server: Server) -> None:
        """Do jobs at one server."""
        while not self._stop:
            job = None
            began = await server.pace.enter()
            try:
                job = self._next()
                if job:
                    await self._ask(server, job, began)
            except UserError as error:
                self._stop = self._stop or error
                self._notify()
            finally:
                server.pace.leave()
            if not job:
                await self._changed.wait()

    def _next(self) -> _Job | None:
        """A job that can be done now."""
        if self._again:
            return self._again.popleft()
        if job := next(self._new, None):
            self._open += 1
        elif not self._taken:
            self._taken = True
            self._notify()
        return job

    async def _ask(self, server: Server, job: _Job, began: float) -> None:
        """Send a job's request once."""
        most = most_of(job.request, self._settings.price)
        if not self._ledger.reserve(job.request, most):
            await self._put_off(job)
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
            self._try_again(job, error)
        except RejectedError as error:
            self._ledger.lose(job.request, Amount())
            self._give_up(job, error)
        except UserError:
            self._ledger.lose(job.request, Amount())
            raise
        else:
            server.pace.answered()
            self._ledger.keep(job.request, reply, spent)
            await self._commit()
            self._outcome.kept += 1
            self._failed_in_a_row = 0
            self._on_reply(job.request, reply)
            self._done()

    async def _commit(self) -> None:
        """Wait until the ledger has written what was noted; all that wait at the same time share a write."""
        if not self._committing:
            self._committing = asyncio.create_task(self._write())
        await self._committing

    async def _write(self) -> None:
        self._committing = None  # what is noted from now on waits for another write
        self._ledger.commit()

    async def _put_off(self, job: _Job) -> None:
        """Wait for requests in flight, which may leave something of what was set aside for them."""
        self._again.appendleft(job)
        if not self._ledger.in_flight:
            raise UserError(
                f"{self._ledger.path}: the budget is reached: {len(self._ledger):,} replies are kept; the next request "
                "might pass it"
            )
        await self._changed.wait()

    def _try_again(self, job: _Job, error: TransientError) -> None:
        """Send a request again after a pause; a wait of 0 seconds counts as none told, as in `Pace.busy`."""
        if job.tries >= self._settings.tries:
            self._give_up(job, error)
            return
        seconds = 0.0  # where a server is busy it has to wait, and another may take the job
        if not error.busy:
            seconds = error.after or pause_before(job.tries, self._settings.longest_pause)
        asyncio.get_running_loop().call_later(seconds, self._put_back, job)
        self._notify()

    def _put_back(self, job: _Job) -> None:
        self._again.append(job)
        self._notify()

    def _give_up(self, job: _Job, error: Exception) -> None:
        """Leave a request undecided; so many in a row are no accident."""
        self._outcome.undecided[job.request.digest] = str(error)
        self._failed_in_a_row += 1
        self._done()
        if self._failed_in_a_row >= self._settings.stop_after:
            raise UserError(f"{self._failed_in_a_row} requests in a row ended without a reply: {error}")

    def _done(self) -> None:
        self._open -= 1
        self._notify()

    def _notify(self) -> None:
        """Wake the workers that wait for a change."""
        self._changed.set()
        self._changed = asyncio.Event()
