"""The ledger keeps every reply that it has acknowledged, tells no cost too low, and has one writer."""

import contextlib
import dataclasses
import json
import os
import resource

import pytest

from curate.ledger import Amount, Ledger, Limit, Reply
from store import UserError

REPLY = Reply('two\nlines, "quotes", \ud800 and 汉字🙂', "m-2026", "stop", False, 7, 3, "http://x", 0.1, 5.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "ledger.jsonl"


def test_replies_come_back_as_they_were_kept(path, request_of):
    first, again = request_of("a"), request_of("a", ask=1)
    with Ledger(path) as ledger:
        assert ledger.reserve(first, Amount(10, 5))
        assert first not in ledger
        ledger.keep(first, REPLY, Amount(4, 2))
        assert ledger.get(first) == REPLY
    with Ledger(path) as ledger:
        assert ledger.get(first) == REPLY
        assert ledger.get(again) is None
        assert (len(ledger), ledger.committed, ledger.unsettled) == (1, Amount(4, 2), 0)


def test_lines_with_the_request_before_the_reply_are_read(path, request_of):
    """So they were once; and whatever a reply says, no part of it is taken for the end of the reply."""
    request, texts = request_of('","request":{"text":"a'), ('","request":{"text":"b', "c")
    receipts = []
    for number, text in enumerate(texts):
        path.unlink(missing_ok=True)
        reply = dataclasses.replace(REPLY, text=text)
        with Ledger(path) as ledger:
            ledger.keep(request, reply, Amount())
        with Ledger(path) as ledger:
            assert ledger.get(request) == reply
        receipts.append(json.loads(path.read_bytes()))
        ask, body = receipts[number].pop("ask"), receipts[number].pop("request")
        head = {name: receipts[number].pop(name) for name in ("kept", "cost", "tokens")}
        old = {**head, "ask": ask, "request": body, **receipts[number]}
        path.write_text(json.dumps(old, separators=(",", ":")) + "\n")
        with Ledger(path) as ledger:
            assert ledger.get(request) == reply


def test_a_digest_is_of_what_is_sent(request_of):
    """Neither the order of fields nor anything but the request itself changes it; each of its parts does."""
    request = request_of("a", temperature=0)
    turned = type(request)(dict(reversed(request.body.items())))
    assert turned.digest == request.digest
    others = [request_of("b", temperature=0), request_of("a", temperature=1), request_of("a"), request_of("a", ask=1)]
    assert len({request.digest, *(other.digest for other in others)}) == 5


def test_a_kill_at_any_byte_costs_the_line_that_was_being_written(path, request_of):
    """Whatever is left of the file, whole lines count, the rest goes, and what was spent is not told too low."""
    with Ledger(path) as ledger:
        for text in "abc":
            ledger.reserve(request_of(text), Amount(10, 5))
            ledger.keep(request_of(text), REPLY, Amount(4, 2))
    content = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for size in (0, 1, *ends, *range(ends[-3] - 1, len(content))):  # each byte of the last two lines
        path.write_bytes(content[:size])
        whole = sum(end <= size for end in ends)
        kept, in_flight = whole // 2, whole % 2
        with Ledger(path) as ledger:
            assert (len(ledger), ledger.unsettled) == (kept, in_flight)
            assert ledger.committed == Amount(4 * kept + 10 * in_flight, 2 * kept + 5 * in_flight)
            assert ledger.reserve(request_of("d"), Amount(1, 1))
            ledger.keep(request_of("d"), REPLY, Amount(1, 1))
        with Ledger(path) as ledger:
            assert ledger.get(request_of("d")) == REPLY


def test_requests_of_killed_processes_count_as_spent(path, request_of):
    """One that is asked again after a kill was perhaps billed twice."""
    request = request_of("a")
    for _ in range(2):
        with Ledger(path) as ledger:
            ledger.reserve(request, Amount(10, 5))
    with Ledger(path) as ledger:
        assert (ledger.committed, ledger.unsettled) == (Amount(20, 10), 2)
        ledger.reserve(request, Amount(10, 5))
        ledger.lose(request, Amount())
        assert (ledger.committed, ledger.in_flight) == (Amount(20, 10), 0)
    with Ledger(path) as ledger:
        assert (ledger.committed, ledger.unsettled) == (Amount(20, 10), 2)
        assert ledger.get(request) is None


def test_nothing_is_set_aside_beyond_the_limit(path, request_of):
    for limit, allowed in ((Limit(cost=25), 2), (Limit(tokens=5), 1), (Limit(), 3), (Limit(0, 0), 0)):
        path.unlink(missing_ok=True)
        with Ledger(path, limit) as ledger:
            assert sum(ledger.reserve(request_of(text), Amount(10, 5)) for text in "abc") == allowed
            assert limit.allows(ledger.committed)
            ledger.commit()
            assert path.read_bytes().count(b"\n") == allowed


def test_one_process_writes_at_a_time(path):
    with Ledger(path), pytest.raises(UserError, match="another process asks with this ledger"):
        Ledger(path)
    with Ledger(path):
        pass


def test_what_is_no_ledger_is_one_line(path, tmp_path):
    with Ledger(path):
        pass
    path.write_text('{"id": 1}\n')
    with pytest.raises(UserError, match="line 1: not a receipt"):
        Ledger(path)
    path.write_text("")
    with Ledger(path):  # the lock was given back
        pass
    with pytest.raises(UserError, match=r"Is a directory"):
        Ledger(tmp_path)


@contextlib.contextmanager
def full_disk(size):
    """No file grows beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_whole_lines_and_loses_no_reply(path, request_of):
    """What was written in part is taken back, and is written whole once there is room."""
    with Ledger(path) as ledger:
        ledger.reserve(request_of("a"), Amount(10, 5))
        ledger.commit()
        size = path.stat().st_size
        with full_disk(size + 30):
            ledger.keep(request_of("a"), REPLY, Amount(4, 2))
            with pytest.raises(UserError, match=r"ledger\.jsonl: "):
                ledger.commit()
            assert path.stat().st_size == size
        assert ledger.get(request_of("a")) == REPLY
    with Ledger(path) as ledger:
        assert ledger.get(request_of("a")) == REPLY


def test_a_full_disk_ends_a_run_in_one_line(path, request_of, ask, llm_server):
    """Nothing is sent that the ledger cannot tell of, and nothing waits for ever."""
    with llm_server() as server:
        with full_disk(0), pytest.raises(UserError, match=r"ledger\.jsonl: "):
            ask(server, [request_of("a"), request_of("b")], path)
        assert not server.came
        outcome, _ = ask(server, [request_of("a"), request_of("b")], path)
    assert outcome.kept == 2


def test_a_receipt_holds_what_was_sent_and_what_came(path, request_of):
    request = request_of("a", temperature=0)
    with Ledger(path) as ledger:
        ledger.reserve(request, Amount(10, 5))
        ledger.keep(request, REPLY, Amount(4, 2))
    sent, kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert sent == {"sent": request.digest, "cost": 10, "tokens": 5}
    assert kept["request"] == request.body
    assert (kept["served"], kept["time"], kept["cost"], kept["tokens"]) == ("m-2026", 5.0, 4, 2)
    assert os.fsencode("汉字") not in path.read_bytes()  # one encoding for all replies, also for half pairs
