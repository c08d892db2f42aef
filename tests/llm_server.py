"""An OpenAI-style server that does what a script says, and remembers what it billed.

Tests get this file as the fixture `llm_server`.
"""

import contextlib
import email.utils
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def text_of(body: dict) -> str:
    """What a request asks."""
    return body["messages"][-1]["content"]


def echo(body: dict) -> str:
    """A reply that is known beforehand."""
    return f"reply to {text_of(body)}"


class LLMServer:
    """A server on a port of its own. A context manager.

    Args:
        answer: the reply to a body.
        fault: what goes wrong, by a body's text and how often it came before; None for nothing.
        wait: seconds before an answer, by the same.
    """

    def __init__(self, answer=echo, fault: Callable = lambda text, tries: None, wait: Callable = lambda text, tries: 0):
        self.answer, self.fault, self.wait = answer, fault, wait
        self.came, self.billed = Counter(), Counter()
        self.tokens, self.most, self.active = 0, 0, 0  # billed tokens; the most requests at once
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.bodies: list[dict] = []
        self.keys: set[str | None] = set()
        handler = type("Bound", (Handler,), {"llm": self})
        self.http = Quiet(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()

    def completion(self, body: dict, fault: str | None) -> dict:
        text = {"empty": "", "same": "one reply for all"}.get(fault, self.answer(body))
        usage = {"prompt_tokens": len(json.dumps(body["messages"])) // 4, "completion_tokens": len(text) // 4 + 1}
        message = {"role": "assistant", "content": text}
        if fault == "refusal":
            message = {"role": "assistant", "content": None, "refusal": "I cannot help with that."}
        done = {"model": body["model"], "choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
        if fault == "other model":
            done["model"] = "another-model"
        if fault == "no usage":
            del done["usage"]
        with self.lock:
            self.billed[text_of(body)] += 1
            self.tokens += sum(usage.values())
        return {"nothing": "expected"} if fault == "wrong form" else done


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, *_):
        """Clients that go away are what is tested."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    llm: LLMServer

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text, llm = text_of(body), self.llm
        with llm.lock:
            tries = llm.came[text]
            llm.came[text] += 1
            llm.bodies.append(body)
            llm.keys.add(self.headers["Authorization"])
            llm.active += 1
            llm.most = max(llm.most, llm.active)
        try:
            llm.closing.wait(llm.wait(text, tries))
            self.reply(body, llm.fault(text, tries))
        finally:
            with llm.lock:
                llm.active -= 1

    def reply(self, body, fault):
        errors = {
            "301": (301, "moved"),
            "401": (401, "Incorrect API key provided: sk-secr**********1234"),
            "404": (404, "The model does not exist"),
            "says the key": (400, f"no such key as {self.headers['Authorization']}"),
            "400": (400, "This model's maximum context length is 10 tokens"),
            "500": (500, "out of memory"),
            "503": (503, "loading"),
            "429": (429, "slow down"),
            "429 after 1": (429, "slow down"),
            "429 date": (429, "slow down"),
            "quota": (429, "You exceeded your current quota"),
        }
        if fault in errors:
            status, message = errors[fault]
            more = {}
            if fault == "429 after 1":
                more = {"Retry-After": "1"}
            if fault == "429 date":
                more = {"Retry-After": email.utils.formatdate(time.time() + 2, usegmt=True)}
            code = "insufficient_quota" if fault == "quota" else None
            return self.say(status, json.dumps({"error": {"message": message, "code": code}}).encode(), more)
        if fault == "reset":
            return self.reset()
        if fault == "hang":
            self.llm.closing.wait(60)
            return self.reset()
        content = json.dumps(self.llm.completion(body, fault)).encode()
        if fault == "cut":
            content = content[: len(content) // 2]
        if fault == "reset late":
            self.begin(200, len(content), {})
            self.wfile.write(content[:20])
            return self.reset()
        if fault == "slow":
            self.begin(200, len(content), {})
            with contextlib.suppress(OSError):
                for place in range(len(content)):
                    self.wfile.write(content[place : place + 1])
                    if self.llm.closing.wait(1):
                        break
            return self.reset()
        return self.say(200, content, {})

    def say(self, status, content, headers):
        self.begin(status, len(content), headers)
        self.wfile.write(content)

    def begin(self, status, length, headers):
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def reset(self):
        """End the connection as a machine that dies does."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()

    def log_message(self, *_):
        pass
