"""Requests that must be refused or survived, and what lets the good ones in."""

import base64
import http.client
import json
import socket
import struct
import time
import zlib
from pathlib import Path

import httpx
import pytest

from serve.api.keys import load_keys
from serve.api.server import check_exposure
from serve.api.settings import ApiSettings
from store import UserError

KEY = "correct-horse"
CASES = json.loads((Path(__file__).parent / "fixtures" / "security.json").read_text())
BASE = {"model": "avllm", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}


def about(part, **fields):
    return json.dumps(BASE | {"messages": [{"role": "user", "content": [part]}]} | fields).encode()


def picture(data):
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def png_of(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(height * (1 + (width + 7) // 8)), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def endless_wav():
    facts = struct.pack("<HHIIHH", 1, 1, 48_000, 96_000, 2, 16)
    return b"RIFF\xff\xff\xff\x7fWAVEfmt " + struct.pack("<I", 16) + facts + b"data\xff\xff\xff\x7f" + bytes(16)


MAKES = {
    "image_url of data:image/png;base64, and 1 GiB of 'A', sent in pieces": lambda: (b"A" * 2**20 for _ in range(64)),
    "image_url data: PNG of 50000 x 50000, one colour (some 10 MB or less on the wire)": lambda: about(
        picture(base64.b64encode(png_of(50_000, 50_000)).decode())
    ),
    "input_audio wav whose header promises 2^31 samples in 60 bytes; flac of 24 h silence (a few MB)": lambda: about(
        {"type": "input_audio", "input_audio": {"data": base64.b64encode(endless_wav()).decode(), "format": "wav"}}
    ),
    "stop: list of 1,000,000 strings": lambda: json.dumps(BASE | {"stop": ["a"] * 1_000_000}).encode(),
    "stop: one string of 10 MB": lambda: json.dumps(BASE | {"stop": "a" * 10_000_000}).encode(),
    "messages nested 100000 deep: [[[[...": lambda: b'{"model":"avllm","messages":' + b"[" * 100_000,
    "bytes ff fe 00": lambda: b"\xff\xfe\x00",
    "a key of 100000 letters": lambda: about({"type": "store_item", "store_item": {"key": "x" * 100_000}}),
}


def requests_of(case, words):
    """Headers and bodies of a case."""
    for one in case["send"].get("each", [case["send"]]):
        if "make" in one and one["make"] not in MAKES:
            continue  # of headers: see below
        body = MAKES[one["make"]]() if "make" in one else one.get("raw") or json.dumps(one.get("body", BASE))
        if isinstance(body, str):
            for word, value in words.items():
                body = body.replace(word, value)
            body = body.encode()
        yield {"Content-Type": "application/json"} | one.get("headers", {}), body


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


@pytest.mark.parametrize("case", [c for c in CASES if not c["id"].startswith("auth")], ids=lambda case: case["id"])
def test_a_hostile_request_is_refused_and_the_server_lives(client, case, canary, trained, tmp_path):
    words = {"$MODEL": "avllm", "$CANARY": str(canary.getsockname()[1]), "$ALLOWED_DIR": str(tmp_path)}
    for headers, body in requests_of(case, words | {"$STORE_PART": "store_item"}):
        started = time.perf_counter()
        check(send(client, headers, body), case, trained)
        assert time.perf_counter() - started < case["expect"].get("max_seconds", 30)
    with pytest.raises(BlockingIOError):
        canary.accept()
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
        for value in ("Bearer wrong", "Basic eDp5", "Bearer", f"Bearer  {KEY}", f"{KEY}"):
            assert client.get("/v1/models", headers={"Authorization": value}).status_code == 401
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
