"""The ledger: a receipt for every reply of an outside LLM, known by the digest of what was sent.

A ledger is a file of JSON lines that only grows. `sent` reserves the most that a request can cost, before it is sent;
`kept` is its reply with what it cost; `lost` says that there was none. Each begins with digest, cost and tokens at
fixed places, so that opening a ledger of a million lines parses no JSON. Errors are never kept as replies. Lines are
noted, and written by the next `commit`, so that requests and replies of the same moment share a write.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

from curate.recent import Recent
from store import UserError

LINE = re.compile(rb'\{"(sent|kept|lost)":"([0-9a-f]{64})","cost":(\d+),"tokens":(\d+)[,}]')
SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
BEHIND = b',"request":'  # stands once in a line: within its texts, quotes are escaped
RECENT = 1024
BUFFER = 1 << 20
SYNC_SECONDS = 1.0  # the most that a power cut takes; a kill of the process takes nothing that was written


@dataclass(frozen=True)
class Request:
    """A request to a chat model.

    Attributes:
        body: what is sent: model, messages and sampling.
        ask: how often the same was asked before, so that a model may be asked for another reply.
    """

    body: Mapping[str, Any]
    ask: int = 0

    @cached_property
    def text(self) -> str:
        """The body as JSON, as it is sent and kept."""
        return SORTED.encode(self.body)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that shapes the reply; which server is asked, and with which key, is no part of it."""
        return hashlib.sha256(f"[{self.text},{self.ask}]".encode()).hexdigest()


@dataclass(frozen=True)
class Reply:
    """A reply and its receipt.

    Attributes:
        text: what the model said.
        served: the model that the server says it is.
        finish: why the reply ended, in the server's words.
        refused: whether the server marked it as a refusal.
        prompt_tokens: as the server counts; None if it does not.
        completion_tokens: the same.
        server: the URL that was asked, or the line of a batch file.
        seconds: from sending to the last byte.
        time: of the last byte, Unix time in seconds.
    """

    text: str
    served: str = ""
    finish: str = ""
    refused: bool = False
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    server: str = ""
    seconds: float = 0.0
    time: float = field(default_factory=time.time)


FIELDS = tuple(each.name for each in fields(Reply))


class Amount(NamedTuple):
    """What was or may be spent: billionths of a dollar, and tokens."""

    cost: int = 0
    tokens: int = 0

    def plus(self, other: "Amount") -> "Amount":
        """The sum of both."""
        return Amount(self.cost + other.cost, self.tokens + other.tokens)

    def minus(self, other: "Amount") -> "Amount":
        """The difference of both."""
        return Amount(self.cost - other.cost, self.tokens - other.tokens)


class Limit(NamedTuple):
    """The most that may be spent, in the units of `Amount`; None for no limit."""

    cost: int | None = None
    tokens: int | None = None

    def allows(self, amount: Amount) -> bool:
        """Whether an amount is within the limit."""
        return all(most is None or part <= most for part, most in zip(amount, self, strict=True))


class Ledger:
    """The receipts in a file. A context manager; one process writes a file at a time.

    Requests that were sent and never settled, because the process was killed, count as spent at the most they can have
    cost: what was spent is never told too low.

    Args:
        path: of the file; made if it does not exist.
        limit: the most that may be spent, counting all that the file has cost before.

    Attributes:
        committed: what was spent, and what is set aside for requests in flight.
        unsettled: how many requests of killed processes may have been billed without a reply.

    Raises:
        UserError: another process writes the file, it cannot be opened, or a line of it is not a receipt.
    """

    def __init__(self, path: Path, limit: Limit = Limit()) -> None:
        self.path, self.limit = path, limit
        self.committed, self.unsettled = Amount(), 0
        self._places: dict[bytes, int] = {}  # digest -> where its receipt begins
        self._recent: Recent[str, Reply] = Recent(RECENT)  # replies that need not be read from the file
        self._reserved: dict[str, Amount] = {}  # digest -> what is set aside
        self._file = _open(path)
        self._reader = open(path, "rb")  # noqa: SIM115 closed in __exit__
        self._synced = time.monotonic()
        self._noted: list[bytes] = []
        try:
            self._size = self._noted_size = self._read()  # bytes of the file; with the lines that are noted
        except UserError:
            self._close()
            raise
        self._file.truncate(self._size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.commit()
            os.fsync(self._file.fileno())
        finally:
            self._close()

    def __len__(self) -> int:
        """How many replies there are."""
        return len(self._places)

    def __contains__(self, request: Request) -> bool:
        return bytes.fromhex(request.digest) in self._places

    @property
    def in_flight(self) -> int:
        """How many requests were sent and are not settled."""
        return len(self._reserved)

    def get(self, request: Request) -> Reply | None:
        """The reply to a request, or None if there is none yet."""
        if recent := self._recent.get(request.digest):
            return recent
        place = self._places.get(bytes.fromhex(request.digest))
        if place is None:
            return None
        if place >= self._size:
            self.commit()
        self._reader.seek(place)
        line = self._reader.readline()
        before = line.partition(BEHIND)[0]
        entry = json.loads(before + b"}" if b'"text":' in before else line)  # the request came first once
        return Reply(**{name: entry[name] for name in FIELDS})

    def reserve(self, request: Request, most: Amount) -> bool:
        """Set aside the most that a request can cost; False if that is above the limit. Commit before it is sent."""
        if not self.limit.allows(self.committed.plus(most)):
            return False
        self._note("sent", request, most)
        self._reserved[request.digest] = most
        self.committed = self.committed.plus(most)
        return True

    def keep(self, request: Request, reply: Reply, spent: Amount) -> None:
        """Keep the reply to a request, and what it cost; what was set aside for it is free again."""
        receipt = f',"ask":{request.ask},{SORTED.encode(vars(reply))[1:-1]},"request":{request.text}'
        self._places[bytes.fromhex(request.digest)] = self._note("kept", request, spent, receipt)
        self._recent[request.digest] = reply
        self._settle(request, spent)

    def lose(self, request: Request, spent: Amount) -> None:
        """Settle a request that was reserved and got no reply, at what it may have cost."""
        self._note("lost", request, spent)
        self._settle(request, spent)

    def _settle(self, request: Request, spent: Amount) -> None:
        self.committed = self.committed.minus(self._reserved.pop(request.digest, Amount())).plus(spent)

    def commit(self) -> None:
        """Write what was noted, in one go. What does not fit on the disk leaves nothing behind, and stays noted.

        Raises:
            UserError: the disk is full, or cannot be written.
        """
        lines = b"".join(self._noted)
        try:
            if self._file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._file.truncate(self._size)
            raise UserError(f"{self.path}: {error.strerror}") from None
        self._size += len(lines)
        self._noted.clear()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fdatasync(self._file.fileno())
            self._synced = time.monotonic()

    def _note(self, kind: str, request: Request, amount: Amount, more: str = "") -> int:
        """Note a line for the next commit, and return where it will begin."""
        begins = self._noted_size
        line = f'{{"{kind}":"{request.digest}","cost":{amount.cost},"tokens":{amount.tokens}{more}}}\n'  # as LINE wants
        self._noted.append(line.encode())
        self._noted_size += len(self._noted[-1])
        return begins

    def _read(self) -> int:
        """Read what is there; return where its last whole line ends: a kill may have cut the next one."""
        place, sent = 0, dict[bytes, Amount]()
        with open(self.path, "rb", buffering=BUFFER) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break
                parsed = LINE.match(line)
                if not parsed:
                    raise UserError(f"{self.path}, line {number}: not a receipt of a reply; remove the line")
                self._count(parsed, place, sent)
                place += len(line)
        for amount in sent.values():
            self._give_up(amount)
        return place

    def _count(self, parsed: re.Match[bytes], place: int, sent: dict[bytes, Amount]) -> None:
        """Count a line; `sent` holds what is reserved by the lines before it and not settled."""
        kind, digest, amount = parsed[1], bytes.fromhex(parsed[2].decode()), Amount(int(parsed[3]), int(parsed[4]))
        before = sent.pop(digest, None)
        if kind == b"sent":
            if before:
                self._give_up(before)
            sent[digest] = amount
            return
        self.committed = self.committed.plus(amount)
        if kind == b"kept":
            self._places[digest] = place

    def _give_up(self, amount: Amount) -> None:
        """Count a request whose process was killed as spent."""
        self.committed = self.committed.plus(amount)
        self.unsettled += 1

    def _close(self) -> None:
        self._reader.close()
        self._file.close()


def _open(path: Path) -> io.FileIO:
    """Open a file for its only writer."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab", buffering=0)  # noqa: SIM115 closed by the ledger
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"{path}: another process asks with this ledger; wait for it, or name another") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a file that can be written") from None
    return file
