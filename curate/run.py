"""A curation in a store: what is known, what is to be asked next, and what is chosen."""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from curate.asking import ROLES, Pending, Role, client_of
from curate.batch import REQUESTS, BatchFolder
from curate.captions import Captions
from curate.client import Client, ask_together
from curate.clips import clips_of
from curate.curation import Cell, CurationSettings
from curate.deciding import Decided, Deciding, Review
from curate.flow import Flow
from curate.ledger import Ledger, Request
from curate.prompts import Templates, load_templates
from curate.ranking import Ranking
from curate.selection import Chosen, State, select, sketch
from curate.writing import Item, Writing
from store import Storage, UserError, load_settings, parse_settings
from store.console import Meter
from store.publish import publishing

FOLDER = "curations"
FAILED = "failed"
PRIOR = 2  # decided items that `first_yield` counts as much as
ON_THEIR_WAY = 16  # items for each request at once: those of a clip wait for its captions together
MARGIN = 0.5  # more items, in square roots of their number, so that few rounds are needed


class Curation:
    """A curation whose ledger is open.

    Args:
        storage: the store.
        settings: what is wanted.
        ledger: the replies.

    Raises:
        UserError: settings, columns, templates or clips are not as they should be.
    """

    def __init__(self, storage: Storage, settings: CurationSettings, ledger: Ledger) -> None:
        self.storage, self.settings, self.ledger = storage, settings, ledger
        self.captions = Captions(storage, settings.captions)
        self.templates: Templates = load_templates(settings.templates)
        self.clips = clips_of(storage, settings, self.captions)
        self.writing = Writing(settings, self.captions, self.templates, ledger)
        self.deciding = Deciding(self.writing, load_reviews(storage, settings.name))
        held = {m: self.captions.held(self.clips, m) for m in {cell.modality for cell in settings.mix.cells}}
        self.rankings = {
            cell: Ranking(held[cell.modality], settings.seed, cell, settings.uses) for cell in settings.mix.cells
        }
        self.states: dict[Cell, list[State]] = {cell: [] for cell in self.rankings}
        self.reasons: dict[str, str] = {}  # why requests have no reply, by digest
        self.asked = 0

    def ask_all(self) -> dict[Cell, Chosen]:
        """Ask until every cell is full, has no clips left, or waits for what could not be asked.

        Raises:
            UserError: as `ask_together`.
        """
        while True:
            self._ask_open()
            chosen = self.choose()
            if not self._draw(chosen):
                return chosen

    def ask_by_files(self) -> dict[Cell, Chosen]:
        """Read the replies that lie in the batch files' folder, and write what can be asked now; send nothing.

        Raises:
            UserError: as `BatchFolder.ask_all`.
        """
        while True:
            chosen, kept = self.advance(), 0
            for role, requests in self.pending().items():
                client = client_of(self.settings, role)
                half = client.model_copy(update={"price": client.price and client.price.half})
                if requests:
                    kept += BatchFolder(self.batches, half).ask_all(requests, self.ledger, lambda *_: None).kept
            if not kept:
                return chosen

    @property
    def batches(self) -> Path:
        """The folder of batch files, beside the replies."""
        return self.ledger.path.parent / "batches"

    def advance(self) -> dict[Cell, Chosen]:
        """Decide what the replies decide, and draw as many more items as it takes; ask nothing."""
        while True:
            for item in self.open_items():
                self._decide(item)
            chosen = self.choose()
            if not self._draw(chosen):
                return chosen

    def _draw(self, chosen: Mapping[Cell, Chosen]) -> bool:
        """Draw as many more items as it takes; return whether there are any."""
        counts = {cell: self._next_count(cell, one) for cell, one in chosen.items()}
        for cell, count in counts.items():
            self.states[cell] += [None] * count
        return any(counts.values())

    def draw_first(self, count: int) -> None:
        """Draw the first items of each cell alone."""
        for cell, ranking in self.rankings.items():
            self.states[cell] = [None] * min(count, len(ranking))

    def ask_first(self, count: int) -> None:
        """Ask for the first items of each cell alone."""
        self.draw_first(count)
        self._ask_open()

    def choose(self) -> dict[Cell, Chosen]:
        """What is chosen by the replies so far."""
        return select(self.states, self.rankings, self.settings)

    def _next_count(self, cell: Cell, chosen: Chosen) -> int:
        """How many more items of a cell are to be asked, by the share that passed so far."""
        states = self.states[cell]
        open_count = sum(state is None for state in states)
        decided = len(states) - open_count
        expected = (len(chosen.kept) + PRIOR * self.settings.first_yield) / (decided + PRIOR)
        lacking = chosen.wanted - len(chosen.kept) - open_count * expected
        if chosen.is_full or (open_count and lacking < 1):
            return 0
        count = lacking / expected
        return min(math.ceil(count + MARGIN * math.sqrt(count)), len(self.rankings[cell]) - len(states))

    def open_items(self) -> list[Item]:
        """The items that are asked for and not decided; those of one clip together, since they share captions."""
        items = (
            Item(cell, rank, self.rankings[cell][rank])
            for cell, states in self.states.items()
            for rank, state in enumerate(states)
            if state is None
        )
        return sorted(items, key=lambda item: item.key)

    def pending(self) -> dict[Role, list[Request]]:
        """What is to be asked of each model next; items that need no more are decided."""
        requests: dict[Role, dict[str, Request]] = {role: {} for role in ROLES}
        for item in self.open_items():
            if found := self._decide(item):
                requests[found.role] |= {r.digest: r for r in found.requests if r.digest not in self.reasons}
        return {role: list(by_digest.values()) for role, by_digest in requests.items()}

    def _decide(self, item: Item) -> Pending | None:
        """Decide an item, or say what it waits for."""
        found = self.deciding.decide(item)
        if isinstance(found, Pending):
            return found
        self.states[item.cell][item.rank] = _state(found)
        return None

    def _ask_open(self) -> None:
        """Ask until all that is open is decided, or waits for what could not be asked."""
        items = self.open_items()
        if not items:
            return
        with Meter("deciding", len(items), "items") as meter:

            def on_way_out(item: Item, found: Decided | None) -> None:
                if found:
                    self.states[item.cell][item.rank] = _state(found)
                meter.advance(1)

            asked = [client_of(self.settings, role) for role in ROLES if role == "generator" or self.settings.judge]
            room = ON_THEIR_WAY * sum(len(settings.urls) * settings.concurrency for settings in asked)
            flow = Flow(iter(items), self.deciding, on_way_out, set(self.reasons), room)
            if flow.start():
                outcome = ask_together([Client(settings) for settings in asked], flow, self.ledger)
                self.asked += outcome.sent
                self.reasons |= outcome.undecided

    def needed(self, chosen: Mapping[Cell, Chosen]) -> list[Item]:
        """All items up to the last that is needed, clip by clip."""
        items = (
            Item(cell, rank, self.rankings[cell][rank]) for cell, one in chosen.items() for rank in range(one.looked_at)
        )
        return sorted(items, key=lambda item: item.key)

    def decided(self, chosen: Mapping[Cell, Chosen]) -> Iterator[Decided]:
        """What became of all items that are needed, clip by clip."""
        for item in self.needed(chosen):
            found = self.deciding.decide(item)
            if isinstance(found, Pending):
                why = next((self.reasons[r.digest] for r in found.requests if r.digest in self.reasons), "")
                found = Decided(item, "undecided", reason=why or "not asked yet")
            yield found


def _state(decided: Decided) -> State:
    return sketch(decided.item.cell, decided.turns) if decided.result == "passed" else FAILED


@contextlib.contextmanager
def open_curation(storage: Storage, settings: CurationSettings) -> Iterator[Curation]:
    """A curation with its ledger, which no other process may have open.

    Raises:
        UserError: another process has, or settings, columns, templates or clips are not as they should be.
    """
    load_templates(settings.templates)
    clips_of(storage, settings, Captions(storage, settings.captions))  # before a file for replies is made
    with Ledger(ledger_of(storage, settings), settings.generator.limit) as ledger:
        yield Curation(storage, settings, ledger)


def waiting(curation: Curation) -> int:
    """How many requests that can be asked now stand in batch files."""
    files = (path.read_bytes() for path in curation.batches.glob(f"{REQUESTS}*.jsonl"))
    written = {json.loads(line)["custom_id"] for file in files for line in file.splitlines()}
    if not written:
        return 0
    curation.advance()
    return sum(request.digest in written for requests in curation.pending().values() for request in requests)


def add_replies(curation: Curation, paths: Iterable[Path]) -> None:
    """Copy a provider's output files beside the batch files.

    Raises:
        UserError: one cannot be read.
    """
    curation.batches.mkdir(parents=True, exist_ok=True)
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        with publishing(curation.batches / f"replies-{hashlib.sha256(data).hexdigest()[:12]}.jsonl") as temporary:
            temporary.write_bytes(data)


def ledger_of(storage: Storage, settings: CurationSettings) -> Path:
    """The file of a curation's replies.

    Raises:
        UserError: the store is not local, and the settings name no file.
    """
    if settings.ledger:
        return settings.ledger
    if not storage.local:
        raise UserError(f"field 'ledger': {storage.url} is not local; name a file of this machine for the replies")
    return Path(storage.path(f"{FOLDER}/{settings.name}/replies.jsonl"))


def load_curation(path: str, overrides: list[str]) -> CurationSettings:
    """Read the settings of a curation.

    Raises:
        UserError: they are not as they should be.
    """
    return load_settings(CurationSettings, path, overrides)


def receipt(curation: Curation) -> dict[str, Any]:
    """What a curation was made of: settings, templates and columns."""
    styles = curation.templates.styles.model_dump_json()
    return {
        "settings": curation.settings.model_dump(mode="json"),
        "templates": {name: template.digest for name, template in sorted(curation.templates.by_name.items())},
        "styles": hashlib.sha256(styles.encode()).hexdigest()[:16],
        "columns": {column.name: column.spec.fingerprint for column in curation.captions.columns},
    }


def save_receipt(curation: Curation) -> None:
    """Write the receipt beside the verdicts, so that other commands find the settings by name."""
    text = json.dumps(receipt(curation), indent=1, sort_keys=True)
    curation.storage.write(f"{FOLDER}/{curation.settings.name}/settings.json", text.encode())


def saved_settings(storage: Storage, name: str) -> CurationSettings:
    """The settings that a curation was last run with.

    Raises:
        UserError: the store has no such curation.
    """
    path = f"{FOLDER}/{name}/settings.json"
    if not storage.exists(path):
        names = [each for each in storage.names(FOLDER) if storage.exists(f"{FOLDER}/{each}/settings.json")]
        raise UserError(f"{storage.url}: there is no curation {name!r}; it has: {', '.join(names) or 'none'}")
    where = storage.where(path)
    return parse_settings(CurationSettings, json.loads(storage.read(path))["settings"], where)


def load_reviews(storage: Storage, name: str) -> dict[str, Review]:
    """What a person said of instructions, by the digest of the request that wrote them."""
    path = f"{FOLDER}/{name}/reviews.json"
    return dict(json.loads(storage.read(path))) if storage.exists(path) else {}
