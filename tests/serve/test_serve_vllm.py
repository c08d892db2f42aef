"""The engine that asks a vLLM server, against a server that speaks vLLM's protocol and generates with our own engine.

`benchmarks.serving` runs the same against a stock vLLM.
"""

import base64
import io
import json
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve.assistant import Question
from serve.engine import EngineError, Limits, reply, stream
from serve.features import FeatureSource
from serve.local import Local
from serve.prompts import load_prompts
from serve.vllm import VLLM
from store import Turn
from trainer.features import rows_of
from trainer.llm import generation_of
from trainer.prompt import tokenize

FAULTS: list = []  # what the server does wrong with its next requests


class Handler(BaseHTTPRequestHandler):
    """`/v1/models` and `/v1/completions` with prompt embeddings, as vLLM 0.32 has them."""

    protocol_version = "HTTP/1.1"
    engine: Local
    key = ""
    gone: ClassVar[list] = []

    def do_GET(self):
        if self.key and self.headers["Authorization"] != f"Bearer {self.key}":
            return self.say(401, {"error": "Unauthorized"})  # as vLLM says it
        return self.say(200, {"data": [{"id": "avllm", "max_model_len": self.engine.context}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = FAULTS.pop(0) if FAULTS else None
        if fault == "refuse":
            return self.say(400, {"error": {"message": "too long", "type": "BadRequestError"}})
        if fault == "busy":
            return self.say(503, {"error": "starting"})
        if fault == "garble":
            return self.say(200, {"choices": [{}]}, "data: ")
        if fault == "drop":
            self.close_connection = True
            return None
        rows = torch.load(io.BytesIO(base64.b64decode(asked["prompt_embeds"])), weights_only=True)
        assert "prompt" not in asked
        limits = Limits(asked["max_tokens"], asked["temperature"], asked["top_p"], asked["seed"], tuple(asked["stop"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = stream(self.engine, rows, limits)
        try:
            for number, piece in enumerate(pieces):
                if fault == "error" and number == 2:
                    return self.event({"error": {"message": "out of memory"}})
                if fault == "slow":
                    time.sleep(0.2)
                self.event({"choices": [{"text": piece.text, "finish_reason": piece.reason}]})
            self.event({"choices": [], "usage": {"completion_tokens": piece.tokens}})
            self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        except (BrokenPipeError, ConnectionResetError):
            self.gone.append(number)
        finally:
            pieces.close()
        return None

    def event(self, value):
        data = f"data: {json.dumps(value)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def say(self, status, value, before=""):
        data = f"{before}{json.dumps(value)}".encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def local(tiny_llm):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm, attn_implementation="sdpa").eval()
    llm.generation_config = generation_of(llm, tokenizer)
    engine = Local(llm, tokenizer)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(local):
    Handler.engine = local
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def remote(server):
    FAULTS.clear()
    engine = VLLM(server)
    yield engine
    engine.close()


def prompts(local, count):
    words = local._llm.get_input_embeddings()
    with torch.inference_mode():
        return [words(torch.arange(2 + n, 12 + 2 * n)) for n in range(count)]


def test_answers_are_those_of_the_local_engine(local, remote):
    """Greedy and sampled, streamed, with stop texts, many at once."""
    rows = prompts(local, 12)
    limits = [Limits(3 + n, temperature=0.8 * (n % 3), seed=n, stop=("A",) * (n % 2)) for n in range(12)]
    queues = [SimpleQueue() for _ in rows]
    for row, limit, pieces in zip(rows, limits, queues, strict=True):
        remote.submit(row, limit, pieces.put)
    for row, limit, pieces in zip(rows, limits, queues, strict=True):
        got = [pieces.get(timeout=60)]
        while not got[-1].reason:
            assert not got[-1].error
            got.append(pieces.get(timeout=60))
        assert reply(got) == reply(list(stream(local, row, limit)))


FAILURES = [
    (["refuse"], "400: too long", False),
    (["error"], "out of memory", False),
    (["garble"], "not an answer of vLLM", False),
    (["busy"], "503: starting", True),
    (["drop", "drop"], "disconnected", True),
]


@pytest.mark.parametrize(("faults", "message", "is_away"), FAILURES)
def test_a_failure_is_one_line_and_ends_its_question_alone(local, remote, faults, message, is_away):
    (row,) = prompts(local, 1)
    FAULTS.extend(faults)
    with pytest.raises(EngineError, match=message) as failed:
        list(stream(remote, row, Limits(20)))
    assert failed.value.is_away == is_away
    assert reply(list(stream(remote, row, Limits(5)))) == reply(list(stream(local, row, Limits(5))))


def test_a_connection_that_the_server_closed_is_opened_again(local, remote):
    """vLLM closes idle connections after five seconds."""
    (row,) = prompts(local, 1)
    FAULTS.append("drop")
    assert reply(list(stream(remote, row, Limits(5)))) == reply(list(stream(local, row, Limits(5))))


def test_a_reader_that_leaves_ends_generation_on_the_server(local, remote):
    Handler.gone.clear()
    FAULTS.append("slow")
    pieces = stream(remote, prompts(local, 1)[0], Limits(200))
    next(pieces)
    pieces.close()
    deadline = time.monotonic() + 20
    while not Handler.gone and time.monotonic() < deadline:
        time.sleep(0.05)
    assert Handler.gone
    assert Handler.gone[0] < 50


def test_a_server_that_is_none_is_told_at_once():
    with pytest.raises(EngineError, match=r"127\.0\.0\.1:9: no vLLM server answers"):
        VLLM("http://127.0.0.1:9")


def test_the_servers_key_is_in_the_variable_that_vllm_reads(server, monkeypatch):
    monkeypatch.setattr(Handler, "key", "correct-horse")
    with pytest.raises(EngineError, match="refuses the key; give the server's in the variable VLLM_API_KEY"):
        VLLM(server)
    monkeypatch.setenv("VLLM_API_KEY", "correct-horse")
    engine = VLLM(server)
    engine.check()
    monkeypatch.setattr(Handler, "key", "changed")
    with pytest.raises(EngineError, match="refuses the key"):
        engine.check()
    engine.close()


def test_a_server_whose_engine_fails_says_502_or_503(serving, server):
    """Nothing of the engine's address or of its words reaches clients; a whole answer and a stream say the same."""
    FAULTS.clear()
    with serving(vllm=server) as client:
        assert client.chat("Hi").status_code == 200
        for faults, _, is_away in FAILURES:
            FAULTS.extend(faults)
            refused = client.chat("Hi", max_tokens=20)
            assert (refused.status_code, refused.headers.get("retry-after")) == ((503, "5") if is_away else (502, None))
            error = refused.json()["error"]
            assert error["code"] == ("engine_away" if is_away else "engine_failed")
            FAULTS.extend(faults)
            *_, last = client.chat("Hi", max_tokens=20, stream=True).text.strip().split("\n\n")
            assert json.loads(last.removeprefix("data: "))["error"] == error
        assert client.get("/ready").status_code == 200
        Handler.key = "changed"
        assert client.get("/ready").status_code == 502
        Handler.key = ""
        assert client.chat("Hi").status_code == 200


def test_rows_of_a_clip_are_bit_equal_so_that_prefixes_are_cached(trained):
    """vLLM knows a prefix by its bytes: a follow-up begins with those of all before, and a clip has the same ones."""
    prompts = load_prompts(trained / "run" / "checkpoint", torch.float32)
    source = FeatureSource(prompts.info)
    arrays = source.load(str(trained / "store"), "red-loud-mp4", source.senses).arrays
    first = Turn("What?", "audio_visual", "")
    other = replace(first, instruction="Which of all the colours is it that one sees there?")

    def rows(*turns):
        embedded = prompts.embed(Question(turns, arrays))
        assert torch.isfinite(embedded).all()
        return embedded

    def clip(turn):
        tokens = tokenize((turn,), rows_of(arrays), prompts.tokenizer, prompts.info.prompt, open_ended=True)
        ((modality, start),) = tokens.media
        return rows(turn)[start : start + rows_of(arrays)[modality]]

    follow = rows(replace(first, response="red"), Turn("Why that, and no other?", "text", ""))
    assert torch.equal(follow[: len(rows(first))], rows(first))
    assert torch.equal(clip(first), clip(other))
