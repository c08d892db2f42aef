"""Batch files: what comes back in any order, in part, repeated or as errors ends in the same ledger, paid once."""

import json
import random

import pytest

from curate import batch
from curate.batch import BatchFolder
from curate.ledger import Ledger
from curate.settings import ClientSettings
from store import UserError


@pytest.fixture
def by_files(tmp_path):
    """Ask requests by files, and return the outcome and the replies' texts by digest."""

    def run(requests, **more):
        settings, texts = ClientSettings(urls=("http://127.0.0.1:9",), model="m", **more), {}
        with Ledger(tmp_path / "ledger.jsonl", settings.limit) as ledger:
            outcome = BatchFolder(tmp_path / "batch", settings).ask_all(
                requests, ledger, lambda r, reply: texts.__setitem__(r.digest, reply.text)
            )
            return outcome, texts, ledger.committed

    return run


def written(folder):
    lines = [line for path in sorted(folder.glob("requests-*")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def answer(entry, status=200):
    """What a provider makes of a line."""
    text = f"reply to {entry['body']['messages'][-1]['content']}"
    body = {
        "model": "m-2026",
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2},
    }
    response = {"status_code": status, "request_id": "r", "body": body}
    return {"id": "b", "custom_id": entry["custom_id"], "response": response, "error": None}


def expired(entry):
    error = {"code": "batch_expired", "message": "This request could not be executed in time."}
    return {"id": "b", "custom_id": entry["custom_id"], "response": None, "error": error}


def give(path, entries, cut=0):
    content = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    path.write_bytes(content[: len(content) - cut])


def test_replies_by_files_and_by_a_server_are_one(by_files, ask, llm_server, request_of, tmp_path):
    """Half is answered by files, out of order and twice; a server is asked the rest; then nothing is left to ask."""
    requests, folder = [request_of(f"q{n}") for n in range(40)], tmp_path / "batch"
    outcome, texts, _ = by_files(requests + requests)
    assert (texts, len(outcome.undecided)) == ({}, 40)
    entries = written(folder)
    assert [entry["custom_id"] for entry in entries] == [request.digest for request in requests]
    assert all((e["method"], e["url"]) == ("POST", "/v1/chat/completions") for e in entries)
    assert [entry["body"] for entry in entries] == [request.body for request in requests]
    answers = [answer(entry) for entry in entries[:20]]
    random.Random(0).shuffle(answers)
    give(folder / "out-1.jsonl", answers + answers[:5])
    give(folder / "out-2.jsonl", [*answers[:10], answer({**entries[0], "custom_id": "another run's"})])
    outcome, texts, committed = by_files(requests)
    assert (outcome.kept, outcome.known, len(outcome.undecided)) == (20, 0, 20)
    assert texts == {e["custom_id"]: f"reply to {e['body']['messages'][-1]['content']}" for e in entries[:20]}
    assert committed.tokens == 20 * 7
    assert written(folder) == entries  # nothing is written twice
    with llm_server() as server:
        outcome, texts = ask(server, requests)
    assert (outcome.known, outcome.kept, sum(server.came.values())) == (20, 20, 20)
    outcome, again, _ = by_files(requests)
    assert again == texts
    assert (outcome.known, outcome.kept, outcome.undecided) == (40, 0, {})


def test_errors_and_cut_files_are_missing_replies_and_written_again(by_files, request_of, tmp_path):
    requests, folder = [request_of(f"q{n}") for n in range(6)], tmp_path / "batch"
    by_files(requests)
    entries = written(folder)
    give(folder / "errors.jsonl", [expired(entries[0]), answer(entries[1], status=429)])
    give(folder / "out.jsonl", [answer(entry) for entry in entries[2:5]], cut=9)
    outcome, texts, _ = by_files(requests)
    assert sorted(texts) == sorted(request.digest for request in requests[2:4])
    assert "batch_expired" in outcome.undecided[requests[0].digest]
    assert "is not in" in outcome.undecided[requests[5].digest]
    again = written(folder)
    assert sorted(entry["custom_id"] for entry in again) == sorted(
        [*(request.digest for request in requests), requests[0].digest, requests[1].digest]
    )
    by_files(requests)
    assert written(folder) == again
    give(folder / "out-2.jsonl", [answer(entry) for entry in again])
    outcome, texts, committed = by_files(requests)
    assert (len(texts), outcome.kept, outcome.undecided, committed.tokens) == (6, 4, {}, 42)


def test_a_line_that_is_none_is_named_and_costs_no_reply_before_it(by_files, request_of, tmp_path):
    by_files([request_of("a"), request_of("b")])
    entries, path = written(tmp_path / "batch"), tmp_path / "batch" / "out.jsonl"
    give(path, [answer(entries[0]), ["no", "reply"], answer(entries[1])])
    with pytest.raises(UserError, match=r"out\.jsonl, line 2: not a line of a batch file"):
        by_files([request_of("a"), request_of("b")])
    give(path, [answer(entries[1])])
    outcome, texts, _ = by_files([request_of("a"), request_of("b")])
    assert (outcome.known, outcome.kept, len(texts)) == (1, 1, 2)


def test_files_keep_to_the_limits_and_the_budget(by_files, request_of, tmp_path, monkeypatch):
    requests = [request_of(f"q{n}") for n in range(10)]
    with pytest.raises(UserError, match="10 requests may cost more than the budget leaves; nothing is written"):
        by_files(requests, budget_tokens=50)
    assert not list((tmp_path / "batch").glob("*"))
    monkeypatch.setattr(batch, "MOST_REQUESTS", 4)
    by_files(requests)
    files = sorted((tmp_path / "batch").glob("*"))
    assert sorted(len(path.read_text().splitlines()) for path in files) == [2, 4, 4]
    give(tmp_path / "batch" / "out.jsonl", [answer(entry) for entry in written(tmp_path / "batch")[:5]])
    by_files(requests)  # a part that is answered in part is not bought again
    assert sorted((tmp_path / "batch").glob("requests-*")) == files
    for path in files:
        path.unlink()
    monkeypatch.setattr(batch, "MOST_BYTES", 1)
    by_files(requests)
    assert len(list((tmp_path / "batch").glob("requests-*"))) == 5
