"""Batch files: requests in OpenAI's batch format are written into a folder, and replies that lie there are read.

A provider or `vllm run-batch` answers such a file, often at half the price. Replies may come in any order, in part,
repeated, or as errors; all are kept in the same ledger as those of the client, so nothing is asked in both ways.
https://platform.openai.com/docs/api-reference/batch
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from curate.client import OnReply, Outcome
from curate.ledger import Ledger, Request
from curate.server import TransientError, most_of, read_reply
from curate.settings import ClientSettings
from store import UserError
from store.publish import publishing

REQUESTS = "requests-"  # how the names of written files begin; all other files hold replies
PATH = "/v1/chat/completions"
MOST_REQUESTS = 50_000  # of a file, by OpenAI's limits
MOST_BYTES = 200_000_000


class BatchFolder:
    """Asks by files: in the place of a `Client` where nothing is sent.

    A request is written once. It is written again for each error that came in place of its reply, or if its file was
    removed.

    Args:
        folder: of both kinds of files.
        settings: price and budget.
    """

    def __init__(self, folder: Path, settings: ClientSettings) -> None:
        self._folder, self._settings = folder, settings

    def ask_all(self, requests: Iterable[Request], ledger: Ledger, on_reply: OnReply) -> Outcome:
        """Read the replies that are there, and write the requests that have none.

        Args:
            requests: what to ask.
            ledger: keeps the replies, and the budget.
            on_reply: gets each different request with its reply.

        Raises:
            UserError: a line of a file is no reply, or the requests may cost more than the budget.
        """
        by_digest, outcome = {request.digest: request for request in requests}, Outcome()
        outcome.known = sum(request in ledger for request in by_digest.values())
        failed = self._read(by_digest, ledger)
        left = [request for request in by_digest.values() if request not in ledger]
        outcome.kept = len(by_digest) - outcome.known - len(left)
        for digest, request in by_digest.items():
            if reply := ledger.get(request):
                on_reply(request, reply)
            else:
                reasons = failed[digest] or [f"its reply is not in {self._folder} yet"]
                outcome.undecided[digest] = reasons[-1]
        written = self._written()
        self._write([r for r in left if written[r.digest] <= len(failed[r.digest])], ledger)
        return outcome

    def _read(self, by_digest: Mapping[str, Request], ledger: Ledger) -> dict[str, list[str]]:
        """Keep the replies of all files; return the errors that came in place of others, by digest."""
        failed: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self._folder.glob("*.jsonl")):
            for where, entry in [] if path.name.startswith(REQUESTS) else _lines(path):
                request = by_digest.get(entry["custom_id"])
                if request and request not in ledger:
                    self._keep(request, where, entry, ledger, failed)
        ledger.commit()
        return failed

    def _keep(
        self, request: Request, where: str, entry: Mapping[str, Any], ledger: Ledger, failed: dict[str, list[str]]
    ) -> None:
        response = entry.get("response") or {}
        if response.get("status_code") != 200:
            failed[request.digest].append(f"{where}: {json.dumps(entry.get('error') or response)[:300]}")
            return
        try:
            reply, spent = read_reply(
                response.get("body"), where, most_of(request, self._settings.price), self._settings
            )
        except TransientError as error:
            failed[request.digest].append(str(error))
        else:
            ledger.keep(request, reply, spent)

    def _written(self) -> Counter[str]:
        """How often requests stand in files, by digest."""
        paths = self._folder.glob(f"{REQUESTS}*.jsonl")
        return Counter(entry["custom_id"] for path in paths for _, entry in _lines(path))

    def _write(self, requests: Sequence[Request], ledger: Ledger) -> None:
        whole = ledger.committed
        for request in requests:
            whole = whole.plus(most_of(request, self._settings.price))
        if not ledger.limit.allows(whole):
            raise UserError(
                f"{self._folder}: {len(requests):,} requests may cost more than the budget leaves; nothing is written"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        for part in _parts(requests):
            digest = hashlib.sha256("".join(request.digest for request in part).encode()).hexdigest()
            path = self._folder / f"{REQUESTS}{digest[:12]}.jsonl"
            if not path.exists():
                with publishing(path) as temporary:
                    temporary.write_bytes(b"".join(map(_line, part)))


def _parts(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """The requests of each file."""
    part: list[Request] = []
    size = 0
    for request in requests:
        length = len(_line(request))
        if part and (len(part) == MOST_REQUESTS or size + length > MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(request)
        size += length
    if part:
        yield part


def _line(request: Request) -> bytes:
    entry = {"custom_id": request.digest, "method": "POST", "url": PATH, "body": request.body}
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of a file, each with its place; a last line that is cut is skipped."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                entry = json.loads(line)
                if not isinstance(entry["custom_id"], str):
                    raise TypeError
            except (ValueError, LookupError, TypeError):
                if not line.endswith(b"\n"):
                    return
                raise UserError(f"{where}: not a line of a batch file; expected an object with a custom_id") from None
            yield where, entry
