"""Items on their way: each goes on as soon as its replies are there, so that writer and judge work at the same time."""

from collections import deque
from collections.abc import Callable, Iterator

from curate.asking import ROLES, Pending, Role
from curate.client import AT_ONCE
from curate.deciding import Decided, Deciding, Draft
from curate.ledger import Reply, Request
from curate.writing import Item


class Flow:
    """Decides items, and says what is to be asked for that.

    Args:
        items: to decide, taken while there is room.
        deciding: decides them.
        on_way_out: gets each item once: decided; or None if it waits for what could not be asked.
        given_up: digests of requests that are not to be asked again.
        room: how many items may be on their way.
    """

    def __init__(
        self,
        items: Iterator[Item],
        deciding: Deciding,
        on_way_out: Callable[[Item, Decided | None], None],
        given_up: set[str],
        room: int,
    ) -> None:
        self._items, self._deciding, self._on_way_out = items, deciding, on_way_out
        self._given_up, self._room = given_up, room
        self._all_taken = False
        self._drafts: dict[Item, Draft] = {}  # of items on their way
        self._waiting: dict[str, list[Item]] = {}  # by the digest of the request that they wait for
        self._ready: dict[Role, deque[Request]] = {role: deque() for role in ROLES}

    @property
    def is_done(self) -> bool:
        """Whether all items are on their way out."""
        return self._all_taken and not self._drafts

    def has_some(self, client: int) -> bool:
        """Whether there may be a request to a model, by its number in `ROLES`."""
        return bool(self._ready[ROLES[client]]) or self._has_room

    def take(self, client: int) -> Request | None:
        """A request to a model."""
        ready = self._ready[ROLES[client]]
        for _ in range(AT_ONCE):
            if ready or not self._has_room:
                break
            self._take_item()
        return ready.popleft() if ready else None

    def settle(self, request: Request, reply: Reply | None) -> None:
        """Go on with the items that waited for a request."""
        if reply is None:
            self._given_up.add(request.digest)
        for item in self._waiting.pop(request.digest):
            if item in self._drafts:  # it may have failed by another reply that it waited for
                self._go_on(item)

    def start(self) -> bool:
        """Decide what can be decided without asking; return whether anything is to be asked."""
        while self._has_room and not any(self._ready.values()):
            self._take_item()
        return not self.is_done

    @property
    def _has_room(self) -> bool:
        return not self._all_taken and len(self._drafts) < self._room

    def _take_item(self) -> None:
        item = next(self._items, None)
        if item is None:
            self._all_taken = True
            return
        self._drafts[item] = Draft()
        self._go_on(item)

    def _go_on(self, item: Item) -> None:
        """Decide an item, or queue what it waits for."""
        found = self._deciding.decide(item, self._drafts[item])
        if isinstance(found, Pending):
            requests = [request for request in found.requests if request.digest not in self._given_up]
            for request in requests:
                self._wait(item, request, found.role)
            if requests:
                return
        del self._drafts[item]
        self._on_way_out(item, found if isinstance(found, Decided) else None)

    def _wait(self, item: Item, request: Request, role: Role) -> None:
        waiting = self._waiting.setdefault(request.digest, [])
        if not waiting:
            self._ready[role].append(request)
        if item not in waiting:
            waiting.append(item)
