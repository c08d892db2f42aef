"""The engine that asks a vLLM server, against a server that speaks vLLM's protocol and generates with our own engine.

`benchmarks.serving` runs the same against a stock vLLM.
"""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import SimpleQueue
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve.assistant import Assistant, Question
from serve.engine import Limits, reply, stream
from serve.local import Local
from serve.prompts import load_prompts
from serve.vllm import VLLM
from store import Turn, UserError
from trainer.checkpoint.folder import CheckpointInfo, load_checkpoint, save_checkpoint
from trainer.checkpoint.weights import gather_weights
from trainer.llm import generation_of, load_llm
from trainer.model import AudioVisualLM
from trainer.prompt import PromptFormat

FAULTS: list = []  # what the server does wrong with its next requests


class Handler(BaseHTTPRequestHandler):
    """`/v1/models` and `/v1/completions` with prompt embeddings, as vLLM 0.32 has them."""

    protocol_version = "HTTP/1.1"
    engine: Local
    gone: ClassVar[list] = []

    def do_GET(self):
        self.say(200, {"data": [{"id": "avllm", "max_model_len": self.engine.context}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = FAULTS.pop(0) if FAULTS else None
        if fault == "refuse":
            return self.say(400, {"error": {"message": "too long", "type": "BadRequestError"}})
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

    def say(self, status, value):
        data = json.dumps(value).encode()
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


@pytest.mark.parametrize(
    ("faults", "message"),
    [(["refuse"], "400: too long"), (["error"], "out of memory"), (["drop", "drop"], "disconnected")],
)
def test_a_failure_is_one_line_and_ends_its_question_alone(local, remote, faults, message):
    (row,) = prompts(local, 1)
    FAULTS.extend(faults)
    with pytest.raises(UserError, match=message):
        list(stream(remote, row, Limits(20)))
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
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9: no vLLM server answers"):
        VLLM("http://127.0.0.1:9")


def test_prompts_need_the_word_table_alone(tiny_llm, tmp_path, server, monkeypatch):
    """Rows are bit for bit those of the whole model; the LLM's layers are never loaded."""
    llm, tokenizer = load_llm(str(tiny_llm), torch.float32)
    model = AudioVisualLM(llm, {})
    info = CheckpointInfo(frames=2, segments=1, columns={}, builds={}, prompt=PromptFormat(), stage=1, steps=0)
    save_checkpoint(tmp_path / "c", llm, gather_weights(model, torch.float32), tokenizer, info)
    question = Question((Turn("What colour is it?", "text", ""),), {})
    whole, tokenizer, info = load_checkpoint(tmp_path / "c", torch.float32, "sdpa")
    assistant = Assistant.of(whole, tokenizer, info)
    rows = assistant.prompts.embed(question)
    assert torch.equal(load_prompts(tmp_path / "c", torch.float32).embed(question), rows)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: 1 / 0)
    remote = Assistant.load(str(tmp_path / "c"), vllm=server)
    assert remote.answer([question], Limits(6)) == assistant.answer([question], Limits(6))
    for each in (assistant, remote):
        each.close()
