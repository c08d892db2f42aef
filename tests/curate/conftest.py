"""What several tests of curate share."""

import pytest

from curate.client import Client
from curate.ledger import Ledger, Request
from curate.settings import ClientSettings


@pytest.fixture(scope="session")
def request_of():
    """A request that asks a text."""

    def make(text: str, ask: int = 0, **more) -> Request:
        return Request({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 20, **more}, ask)

    return make


@pytest.fixture
def ask(tmp_path):
    """Ask a server requests with a ledger, and return the outcome and the replies' texts by digest."""

    def run(server, requests, path=None, **more):
        settings = {"urls": (server.url,), "model": "m", "longest_pause": 0.02, **more}
        settings = ClientSettings.model_validate(settings)
        texts = {}
        with Ledger(path or tmp_path / "ledger.jsonl", settings.limit) as ledger:
            outcome = Client(settings).ask_all(
                requests, ledger, lambda r, reply: texts.__setitem__(r.digest, reply.text)
            )
        return outcome, texts

    return run
