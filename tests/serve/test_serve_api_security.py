"""Requests that must be refused or survived, and what lets the good ones in."""

import base64
import contextlib
import http.client
import io
import json
import os
import socket
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import soundfile
from PIL import Image

from serve.api.listening import check_exposure, load_keys
from serve.api.settings import ApiSettings
from store import UserError

KEY = "correct-horse"
LONG = bool(os.environ.get("AVLLM_LONG"))
JSON = {"Content-Type": "application/json"}
CASES = json.loads((Path(__file__).parent / "fixtures" / "security.json").read_text())
ELSEWHERE = {  # the tests of cases that are more than a request
    "auth-missing": "test_keys_guard_all_but_health",
    "auth-odd": "test_keys_guard_all_but_health",
    "cors": "test_there_are_no_cors_headers",
    "slow-body": "test_slow_bodies_and_silent_connections_hold_nobody_up",
    "disconnect": "test_a_client_that_leaves_ends_its_answer",
    "error-leak": "test_a_file_that_breaks_the_decoder_leaks_nothing",
}
BASE = {"model": "avllm", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def about(part, **fields):
    return json.dumps(BASE | {"messages": [{"role": "user", "content": [part]}]} | fields).encode()


def png_of(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def gif_of(width, height, frames):
    """A GIF whose frames after the first change one pixel."""
    buffer = io.BytesIO()
    Image.new("P", (width, height)).save(buffer, "GIF")
    block = b"\x21\xf9\x04\x04\x01\x00\x00\x00" + b"\x2c" + bytes(4) + b"\x01\x00\x01\x00\x00" + b"\x02\x02\x44\x01\x00"
    return buffer.getvalue()[:-1] + block * frames + b";"


def silence(hours):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(hours * 3600 * 8000, np.int16), 8000, format="FLAC")
    return buffer.getvalue()


def endless_wav():
    facts = struct.pack("<HHIIHH", 1, 1, 48_000, 96_000, 2, 16)
    return b"RIFF\xff\xff\xff\x7fWAVEfmt " + struct.pack("<I", 16) + facts + b"data\xff\xff\xff\x7f" + bytes(16)


def link(kind, declared, data):
    return {"type": kind, kind: {"url": f"data:{declared};base64,{base64.b64encode(data).decode()}"}}


MAKES = {  # one or more bodies
    "image_url of data:image/png;base64, and 1 GiB of 'A', sent in pieces": lambda: [b"A" * 2**20 for _ in range(64)],
    "image_url data: PNG of 50000 x 50000, one colour (some 10 MB or less on the wire)": lambda: [
        about(link("image_url", "image/png", png_of(50_000, 50_000)))
    ],
    "GIF or APNG of 100000 frames of 4000 x 4000; and as video/jpeg-style list if such a form is taken": lambda: [
        about(link(kind, "image/gif", gif_of(4000, 4000, 100_000))) for kind in ("image_url", "video_url")
    ],
    "input_audio wav whose header promises 2^31 samples in 60 bytes; flac of 24 h silence (a few MB)": lambda: [
        about(
            {"type": "input_audio", "input_audio": {"data": base64.b64encode(endless_wav()).decode(), "format": "wav"}}
        ),
        about(link("audio_url", "audio/flac", silence(24 if LONG else 2))),
    ],
    "stop: list of 1,000,000 strings": lambda: [json.dumps(BASE | {"stop": ["a"] * 1_000_000}).encode()],
    "stop: one string of 10 MB": lambda: [json.dumps(BASE | {"stop": "a" * 10_000_000}).encode()],
    "messages nested 100000 deep: [[[[...": lambda: [b'{"model":"avllm","messages":' + b"[" * 100_000],
    "bytes ff fe 00": lambda: [b"\xff\xfe\x00"],
    "a key of 100000 letters": lambda: [about({"type": "store_item", "store_item": {"key": "x" * 100_000}})],
}


def requests_of(case, words):
    """Headers and bodies of a case."""
    for one in case["send"].get("each", [case["send"]]):
        headers = {"Content-Type": "application/json"} | one.get("headers", {})
        if one.get("make", "").endswith("sent in pieces"):
            yield headers, iter(MAKES[one["make"]]())
        elif "make" in one:
            yield from ((headers, body) for body in MAKES[one["make"]]())
        else:
            body = one.get("raw") or json.dumps(one.get("body", BASE))
            for word, value in words.items():
                body = body.replace(word, value)
            yield headers, body.encode()


def check(response, case, folder):
    expect = case["expect"]
    assert response.status_code in expect["status"], f"{case['id']}: {response.text[:500]}"
    if response.status_code != 200:
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert expect.get("message_mentions", "") in error["message"]
    for word in ("Traceback", "site-packages", "root:", str(folder), "/tmp"):
        assert word not in response.text


def send(client, headers, body):
    """Post a body; a length that is a lie takes a plain socket."""
    if "Content-Length" not in headers:
        return client.post("/v1/chat/completions", content=body, headers=headers)
    with socket.create_connection((client.base_url.host, client.base_url.port)) as plain:
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        plain.sendall(f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{head}\r\n".encode() + body)
        answer = http.client.HTTPResponse(plain)
        answer.begin()
        return httpx.Response(answer.status, content=answer.read())


class OneFile(BaseHTTPRequestHandler):
    """The host that may be fetched from: it has one picture, and redirects wherever it is told to."""

    def do_GET(self):
        self.server.asked.append(self.path)
        path, _, target = self.path.partition("?")
        self.send_response(302 if path == "/redirect-to" else 200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Location", target)
        self.end_headers()
        self.wfile.write(png_of(8, 8))

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), OneFile)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder whose files may be named; there is a secret beside it."""
    folder = tmp_path_factory.mktemp("named") / "allowed"
    folder.mkdir()
    (folder / "good.png").write_bytes(png_of(8, 8))
    (folder.parent / "secret.png").write_bytes(png_of(8, 8))
    return folder


@pytest.fixture(scope="module")
def guarded(serving, trained, host, folder):
    """A server that allows all that can be allowed: http too, one private host, and a folder."""
    with serving(
        stores={"clips": str(trained / "store")},
        fetch_schemes=["https", "http"],
        fetch_hosts=[f"127.0.0.1:{host.server_port}"],
        media_folders=[str(folder)],
        decode_seconds=5,
    ) as client:
        yield client


def counted(client, name):
    return next(line for line in client.get("/metrics").text.splitlines() if line.startswith(f"avllm_{name}_total "))


def test_what_the_hostile_requests_pretend_to_be_is_answered(guarded, host, folder):
    """A server that refused everything would pass the other tests."""
    for part in (
        link("image_url", "image/png", png_of(8, 8)),
        {"type": "image_url", "image_url": {"url": f"file://{folder}/good.png"}},
        {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{host.server_port}/a.png"}},
        {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{host.server_port}/redirect-to?/b.png"}},
    ):
        assert guarded.post("/v1/chat/completions", content=about(part), headers=JSON).status_code == 200
    assert host.asked == ["/a.png", "/redirect-to?/b.png", "/b.png"]
    before = counted(guarded, "files_encoded")
    cached = about({"type": "store_item", "store_item": {"key": "red-loud-mp4"}})
    assert guarded.post("/v1/chat/completions", content=cached, headers=JSON).status_code == 200
    assert counted(guarded, "files_encoded") == before
    assert guarded.post("/v1/chat/completions", json=BASE | {"stop": ["a", "b", "c", "d"]}).status_code == 200
    assert guarded.get("/health").status_code == 200


@pytest.mark.parametrize("case", [c for c in CASES if c["id"] not in ELSEWHERE], ids=lambda case: case["id"])
def test_a_hostile_request_is_refused_and_the_server_lives(guarded, case, canary, trained, host, folder):
    words = {
        "$MODEL": "avllm",
        "$CANARY": str(canary.getsockname()[1]),
        "$ALLOWED_DIR": str(folder),
        "$ALLOWED_HOST": f"http://127.0.0.1:{host.server_port}",
        "$STORE_PART": "store_item",
    }
    process = psutil.Process()
    for headers, body in requests_of(case, words):
        started, held = time.perf_counter(), process.memory_info().rss
        check(send(guarded, headers, body), case, trained)
        assert time.perf_counter() - started < case["expect"].get("max_seconds", 30)
        assert process.memory_info().rss - held < case["expect"].get("max_rss_growth_mb", 1024) << 20
    with pytest.raises(BlockingIOError):
        canary.accept()
    assert guarded.post("/v1/chat/completions", json=BASE).status_code == 200


def test_a_file_that_breaks_the_decoder_leaks_nothing(guarded, bad_media, trained):
    """The case error-leak."""
    (case,) = [case for case in CASES if case["id"] == "error-leak"]
    for path in bad_media.iterdir():
        kind, declared = ("image_url", "image/png") if path.suffix == ".png" else ("video_url", "video/mp4")
        body = about(link(kind, declared, path.read_bytes()))
        check(send(guarded, JSON, body), case, trained)
    assert guarded.post("/v1/chat/completions", json=BASE).status_code == 200


def test_slow_bodies_and_silent_connections_hold_nobody_up(serving):
    """The case slow-body: 200 of them, while others are answered; then they are closed."""
    with serving(body_seconds=3, head_seconds=2) as client, contextlib.ExitStack() as stack:
        address = client.base_url.host, client.base_url.port
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow = []
        for number in range(200):
            slow.append(stack.enter_context(socket.create_connection(address, 60)))
            slow[-1].sendall([head + b"Content-Length: 100\r\n\r\n{", head, b"", b"P"][number % 4])
        assert client.post("/v1/chat/completions", json=BASE, timeout=10).status_code == 200
        for number, connection in enumerate(slow):
            said = connection.recv(100)
            assert said.startswith(b"HTTP/1.1 408 ") if number % 4 == 0 else not said
        assert client.post("/v1/chat/completions", json=BASE).status_code == 200


def test_keys_guard_all_but_health(serving):
    """Each refusal beside the request that is let in."""
    with serving(keys=[KEY, "another-key"]) as client:
        assert client.get("/health").status_code == 200
        for path in ("/v1/models", "/metrics", "/ready", "/nothing"):
            response = client.get(path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["type"] == "authentication_error"
        for value in (KEY, "another-key"):
            good = client.post("/v1/chat/completions", json=BASE, headers={"Authorization": f"Bearer {value}"})
            assert good.status_code == 200
        two = [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")]
        assert client.get("/v1/models", headers=two).status_code == 401
        odd = [("Authorization", "Bearer é".encode())]
        assert client.get("/v1/models", headers=odd).status_code == 401
        for value in ("Bearer wrong", "Basic eDp5", "Bearer", "Bearer ", f"Bearer  {KEY}", f"Bearer {KEY} ", f"{KEY}"):
            plain = http.client.HTTPConnection(client.base_url.host, client.base_url.port)  # httpx sends no such blanks
            plain.request("GET", "/v1/models", headers={"Authorization": value})
            assert plain.getresponse().status == 401
            plain.close()
        long = client.get("/v1/models", headers={"Authorization": "Bearer " + "x" * 1_000_000})
        assert long.status_code == 400
        assert long.json()["error"]["code"] == "invalid_http"


def test_there_are_no_cors_headers(client):
    origin = {"Origin": "https://evil.test", "Access-Control-Request-Method": "POST"}
    assert client.options("/v1/chat/completions", headers=origin).status_code == 405
    answer = client.post("/v1/chat/completions", json=BASE, headers=origin)
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_other_machines_need_a_key(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text(f"{KEY}\n\nanother-key\n")
    assert load_keys(str(tmp_path / "keys")) == [KEY, "another-key"]
    monkeypatch.setenv("AVLLM_API_KEY", KEY)
    assert load_keys(None) == [KEY]
    open_to_all = ApiSettings(checkpoint="x", host="0.0.0.0")
    check_exposure(open_to_all, [KEY])
    check_exposure(ApiSettings(checkpoint="x", host="::1"), [])
    with pytest.raises(UserError, match="lets other machines in"):
        check_exposure(open_to_all, [])
    (tmp_path / "keys").write_text("short\n")
    with pytest.raises(UserError, match="8 or more"):
        load_keys(str(tmp_path / "keys"))
