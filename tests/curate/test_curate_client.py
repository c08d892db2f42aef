"""The client gets the replies of a clean run whatever a server does, asks nothing twice, and passes no budget."""

import asyncio
import collections
import contextlib
import math
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from curate.client import Client
from curate.ledger import Ledger
from curate.pace import Pace, pause_before, retry_after
from curate.server import most_of
from curate.settings import ClientSettings, Price, endpoint
from store import UserError, parse_settings

KILLS = 50 if os.environ.get("AVLLM_LONG") else 5
PASSING = ("429", "500", "503", "reset", "reset late", "cut", "empty", "wrong form")
ASK = """
import sys
from pathlib import Path
from types import SimpleNamespace
from curate.client import Client
from curate.ledger import Ledger, Request
from curate.settings import ClientSettings

url, path, count = sys.argv[1:]
texts = [f"q{n}" for n in range(int(count))]
bodies = [{"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 20} for text in texts]
with Ledger(Path(path)) as ledger:
    settings = ClientSettings(urls=(url,), model="m", concurrency=8, longest_pause=0.02)
    Client(settings).ask_all([Request(body) for body in bodies], ledger, lambda request, reply: None)
"""


def now_and_then(text, tries):
    """A fault for a third of what is asked, most often not twice in a row."""
    draw = random.Random(f"{text} {tries}")
    return draw.choice(PASSING) if tries < 3 and draw.random() < 0.3 else None


def texts_of(requests):
    return {request.digest: f"reply to {request.body['messages'][-1]['content']}" for request in requests}


@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_replies_are_those_of_a_clean_run(llm_server, ask, request_of, concurrency):
    """Whatever the faults and latencies, each request has its own reply, and is billed once if nothing failed."""
    requests = [request_of(f"q{n}") for n in range(100)]
    with llm_server(fault=now_and_then, wait=lambda text, tries: random.random() / 50) as server:
        outcome, texts = ask(server, requests + requests, concurrency=concurrency, stop_after=1000)
        assert texts == texts_of(requests)
        assert (outcome.kept, outcome.known, outcome.undecided) == (100, 0, {})
        assert server.most <= concurrency
        clean = [text for text, count in server.came.items() if count == 1]
        assert clean
        assert all(server.billed[text] == 1 for text in clean)
        came = sum(server.came.values())
        again, texts = ask(server, requests, concurrency=concurrency)
        assert texts == texts_of(requests)
        assert (again.known, again.sent) == (100, 0)
        assert sum(server.came.values()) == came


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("301", "301: expected 200 with a chat completion; name the server's own URL: moved"),
        ("401", "401: no key was sent"),
        ("404", "404: no model 'm'"),
        ("quota", "429: the account has nothing left to spend"),
    ],
)
def test_what_is_wrong_for_good_stops_the_run_in_one_line(llm_server, ask, request_of, fault, words, tmp_path):
    """And what came before is kept."""
    requests = [request_of(f"q{n}") for n in range(50)]
    with llm_server(fault=lambda text, tries: fault if text == "q20" else None) as server:
        with pytest.raises(UserError, match=words) as caught:
            ask(server, requests, concurrency=4)
        assert "\n" not in str(caught.value)
        assert server.came["q20"] == 1
        assert sum(server.came.values()) < 50
        with Ledger(tmp_path / "ledger.jsonl") as ledger:
            assert len(ledger) == sum(server.billed.values())
            assert ledger.unsettled == 0


@pytest.mark.parametrize("fault", ["401", "says the key"])
def test_no_message_holds_a_key(llm_server, ask, request_of, tmp_path, monkeypatch, fault):
    """Servers repeat a key in part or whole, and messages end in logs."""
    monkeypatch.setenv("SOME_KEY", "sk-secret1234")
    with llm_server(fault=lambda text, tries: fault) as server:
        with pytest.raises(UserError) as caught:
            ask(server, [request_of("a")], key_env="SOME_KEY", stop_after=1)
        assert server.keys == {"Bearer sk-secret1234"}
    assert "sk-" not in str(caught.value)
    assert b"sk-" not in (tmp_path / "ledger.jsonl").read_bytes()


def test_a_server_that_is_not_there_is_one_line(request_of, ask):
    nowhere = collections.namedtuple("Server", "url")("http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9: no server answers"):
        ask(nowhere, [request_of("a")])


@pytest.mark.parametrize("fault", [*PASSING, "hang", "slow"])
def test_what_may_pass_is_tried_again_and_a_bounded_number_of_times(llm_server, ask, request_of, fault):
    """A server that hangs or sends a byte a second is left; a request without a reply is asked by the next run."""
    limits = {"silent_seconds": 0.3, "whole_seconds": 1.5} if fault in ("hang", "slow") else {}
    with llm_server(fault=lambda text, tries: fault if text == "bad" and tries < 3 else None) as server:
        requests = [request_of("good"), request_of("bad")]
        outcome, texts = ask(server, requests, tries=2, **limits)
        assert list(outcome.undecided) == [requests[1].digest]
        assert texts == texts_of(requests[:1])
        assert server.came["bad"] == 2
        outcome, texts = ask(server, requests, tries=2, **limits)
        assert (outcome.known, outcome.kept, outcome.sent) == (1, 1, 2)
        assert texts == texts_of(requests)


def test_many_in_a_row_without_a_reply_stop_the_run(llm_server, ask, request_of):
    requests = [request_of(f"q{n}") for n in range(200)]
    with llm_server(fault=lambda text, tries: "400") as server:
        with pytest.raises(UserError, match=r"5 requests in a row ended without a reply: .*maximum context length"):
            ask(server, requests, stop_after=5, concurrency=2)
        assert sum(server.came.values()) <= 7
        assert max(server.came.values()) == 1


def test_refusals_other_models_and_missing_usage_are_kept_as_they_are(llm_server, request_of, tmp_path):
    faults = ("refusal", "other model", "no usage", "same")
    requests, replies = {fault: request_of(fault) for fault in faults}, {}
    with llm_server(fault=lambda text, tries: text) as server, Ledger(tmp_path / "ledger") as ledger:
        settings = ClientSettings(urls=(server.url,), model="m")
        Client(settings).ask_all(requests.values(), ledger, lambda r, reply: replies.__setitem__(r.digest, reply))
    found = {fault: replies[request.digest] for fault, request in requests.items()}
    assert found["refusal"].refused
    assert found["refusal"].text == "I cannot help with that."
    assert found["other model"].served == "another-model"
    assert found["no usage"].prompt_tokens is None
    assert found["same"].text == "one reply for all"
    assert not found["same"].refused
    assert ledger.committed.tokens >= most_of(requests["no usage"], None).tokens


@pytest.mark.parametrize("fault", ["429 after 1", "429 date"])
def test_a_server_is_not_asked_before_it_wants(llm_server, ask, request_of, fault):
    times = []

    def first(text, tries):
        times.append(time.time())
        return fault if len(times) == 1 else None

    with llm_server(fault=first) as server:
        outcome, _ = ask(server, [request_of("a"), request_of("b")], concurrency=1)
    assert (outcome.kept, outcome.sent) == (2, 3)
    assert times[1] - times[0] >= 0.9  # a date has whole seconds


def test_waiting_times_are_read_in_every_form():
    assert retry_after({"retry-after": "2"}) == 2
    assert retry_after({"retry-after": "2", "retry-after-ms": "150"}) == 0.15
    assert retry_after({"retry-after": "-1"}) == 0
    assert retry_after({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}) == 0
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({}) is None
    assert all(0 <= pause_before(tries, 5) <= min(5, 0.5 * 2 ** (tries - 1)) for tries in range(1, 1000))


def test_turns_halve_once_for_what_was_in_flight_and_grow_again():
    async def turns():
        """Turns that are free after eight requests in flight came back busy, and after good replies."""
        pace, counts = Pace(16, longest_pause=0), []
        began = [await pace.enter() for _ in range(8)]
        for each in began:
            pace.busy(each, None)
        counts.append(await free(pace))
        for _ in range(200):
            pace.answered()
        counts.append(await free(pace))
        return counts

    async def free(pace):
        count = 0
        with contextlib.suppress(TimeoutError):
            while True:
                await asyncio.wait_for(pace.enter(), 0.05)
                count += 1
        return count

    assert asyncio.run(turns()) == [0, 8]


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock stands while something runs, and leaps to what is waited for."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        select = self._selector.select

        def leap(timeout):
            self.now += timeout or 0.0
            return select(0)

        self._selector.select = leap

    def time(self):
        return self.now


@pytest.mark.parametrize("header", ["milliseconds", "seconds", None])
@pytest.mark.parametrize("limit", [1, 20, 200])
def test_nine_tenths_of_a_limit_are_used(monkeypatch, header, limit):
    """A server gives `limit` replies a second, half a second's worth at once; what comes beyond is refused."""
    random.seed(0)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        monkeypatch.setattr("curate.pace.time", SimpleNamespace(monotonic=loop.time))
        pace, ends, given, free, filled = Pace(64, longest_pause=10), 600.0, 0, 0.0, 0.0

        async def work():
            nonlocal given, free, filled
            while loop.time() < ends:
                began = await pace.enter()
                free, filled = min(max(1.0, limit / 2), free + (loop.time() - filled) * limit), loop.time()
                if free >= 1:
                    free -= 1
                    await asyncio.sleep(0.1)
                    given += 1
                    pace.answered()
                else:
                    wait = (1 - free) / limit
                    after = {"milliseconds": wait, "seconds": math.ceil(wait), None: None}[header]
                    pace.busy(began, after, limited=True)
                pace.leave()

        async def all_work():
            await asyncio.gather(*(work() for _ in range(64)))

        runner.run(all_work())
    assert 0.9 <= given / (limit * ends) <= 1.01


def test_several_servers_share_the_requests_and_one_may_die(llm_server, request_of, tmp_path):
    requests, texts = [request_of(f"q{n}") for n in range(60)], {}
    with llm_server() as good, llm_server(fault=lambda text, tries: "429 after 1") as bad:
        settings = ClientSettings(urls=(good.url, bad.url), model="m", concurrency=4)
        with Ledger(tmp_path / "ledger") as ledger:
            outcome = Client(settings).ask_all(
                requests, ledger, lambda r, reply: texts.__setitem__(r.digest, reply.text)
            )
    assert texts == texts_of(requests)
    assert not outcome.undecided
    assert sum(good.came.values()) == 60


def test_kills_cost_at_most_what_is_in_flight(llm_server, forks, tmp_path):
    """Killed at any moment, then run to its end: every reply once, and billed at most what was in flight besides."""
    draw, path, script = random.Random(0), tmp_path / "ledger.jsonl", tmp_path / "ask_many.py"
    script.write_text(ASK)
    (tmp_path / "log").touch()
    with llm_server(wait=lambda text, tries: random.random() / 20) as server, open(tmp_path / "log", "wb") as log:

        def start():
            words = ("ask_many", server.url, path, 300)
            return forks.start(*words, out=log, err=log, cwd=tmp_path)

        for _ in range(KILLS):
            before, process = sum(server.came.values()), start()
            target = before + draw.randrange(1, 40)
            while process.poll() is None and sum(server.came.values()) < target:
                time.sleep(0.005)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
        assert start().wait(120) == 0, (tmp_path / "log").read_text()
        with Ledger(path) as ledger:
            assert len(ledger) == 300
            assert ledger.unsettled <= 8 * KILLS
            assert sum(server.billed.values()) <= len(ledger) + ledger.unsettled
            assert ledger.committed.tokens >= server.tokens
        came = sum(server.came.values())
        assert start().wait(120) == 0
        assert sum(server.came.values()) == came


FAULTS = st.sampled_from([None, None, None, *PASSING, "no usage", "400"])


@hypothesis_settings(max_examples=25)
@given(
    prices=st.tuples(st.floats(0, 100), st.floats(0, 100)),
    dollars=st.floats(0, 0.2),
    tokens=st.none() | st.integers(0, 5000),
    faults=st.lists(FAULTS, max_size=20),
    concurrency=st.sampled_from([1, 8]),
)
def test_no_budget_is_ever_passed(
    llm_server, request_of, tmp_path_factory, prices, dollars, tokens, faults, concurrency
):
    """What a server bills, at any price and with any failures, stays within the budget, over two runs as well."""
    price = Price(prompt=prices[0], completion=prices[1])
    settings = {
        "model": "m", "price": price.model_dump(), "budget_dollars": dollars, "budget_tokens": tokens, "tries": 2,
        "longest_pause": 0, "concurrency": concurrency,
    }  # fmt: skip
    path, left = tmp_path_factory.mktemp("budget") / "ledger", list(faults)
    requests = [request_of(f"q{n}") for n in range(20)]
    with llm_server(fault=lambda text, tries: left.pop() if left else None) as server:
        for _ in range(2):
            client = Client(ClientSettings.model_validate({**settings, "urls": (server.url,)}))
            with Ledger(path, client.settings.limit) as ledger, contextlib.suppress(UserError):  # which says so
                client.ask_all(requests, ledger, lambda request, reply: None)
            assert ledger.limit.allows(ledger.committed)
        assert tokens is None or server.tokens <= tokens
        assert server.tokens <= ledger.committed.tokens


def test_parts_of_a_billionth_of_a_dollar_count_whole():
    assert Price(prompt=0.0004, completion=0.0011).of(10, 1).cost == 10 * 1 + 2
    assert 1000 * 2.007 > 2007  # by rounding alone
    assert Price(prompt=2.007, completion=0.15).of(10, 10).cost == 10 * (2007 + 150)
    assert Price(prompt=0, completion=0).of(10, 10).cost == 0


def test_settings_are_checked_before_anything_is_asked(monkeypatch, tmp_path):
    good = {"urls": ["http://127.0.0.1:1"], "model": "m"}
    for wrong, words in (
        ({"urls": ["127.0.0.1:8000"]}, "is no URL of a server"),
        ({"urls": ["http://me:word@x"]}, "a URL holds no password"),
        ({"urls": []}, "urls"),
        ({"budget_dollars": 5}, "needs price.prompt and price.completion"),
        ({"speed": 1}, "unknown field 'speed'"),
    ):
        with pytest.raises(UserError, match=words):
            parse_settings(ClientSettings, good | wrong, "settings")
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UserError, match="NO_KEY is not set"):
        Client(ClientSettings(**good, key_env="NO_KEY"))
    with pytest.raises(UserError, match="cannot be read"):
        Client(ClientSettings(**good, key_file=tmp_path / "nothing"))
    (tmp_path / "key").write_text("abc\n")
    assert ClientSettings(**good, key_file=tmp_path / "key").key() == "abc"
    assert endpoint("http://x:1/") == endpoint("http://x:1/v1") == "http://x:1/v1/chat/completions"
    assert endpoint("https://x/api/v1beta/openai/") == "https://x/api/v1beta/openai/chat/completions"
