"""Random requests against a server process: none makes it fail, leave OpenAI's form of errors, or grow.

`make test` sends the same few each time; AVLLM_LONG=1 sends 20,000 new ones.
"""

import base64
import contextlib
import copy
import http.client
import json
import os
import socket
from collections import Counter

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.api.requests import ChatRequest

IS_LONG = "AVLLM_LONG" in os.environ
COUNT = 20_000 if IS_LONG else 150
GROWTH = 100 << 20  # bytes of memory, for what allocators keep
STATED = {"queue_full", "stopping", "engine_away", "timeout", "disk_full"}  # codes of 503
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def user(*parts):
    return {"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}


def url(kind, value):
    return {"type": kind, kind: {"url": value}}


def data(kind, content):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


ITEM = {"type": "store_item", "store_item": {"store": "clips", "key": "red-loud-mp4"}}
SOUND = {
    "type": "input_audio",
    "input_audio": {"data": base64.b64encode(b"RIFF" + bytes(60)).decode(), "format": "wav"},
}
DIALOGUE = [
    {"role": "system", "content": "Be short."}, user(ITEM), {"role": "assistant", "content": "red"},
    {"role": "user", "content": "Sure? <AUD>"},
]  # fmt: skip
GOOD = [
    {"model": "avllm", "messages": messages, "max_tokens": 4, **fields}
    for messages, fields in [
        ([{"role": "user", "content": "hi"}], {"stop": ["a"], "seed": 3, "temperature": 0.5, "top_p": 0.5}),
        (DIALOGUE, {"stream": True, "stream_options": {"include_usage": True}}),
        ([user(ITEM)], {"modalities_in": ["visual"], "user": "u", "metadata": {"a": "b"}}),
        ([user(url("video_url", "store://clips/red-loud-mp4"))], {"n": 1, "response_format": {"type": "text"}}),
        ([user(url("image_url", data("image/png", PIXEL)))], {"stream": True}),
        ([user(url("video_url", data("video/mp4", b"\0\0\0\x18ftypmp42" + bytes(30))))], {}),
        ([user(url("audio_url", data("audio/flac", b"fLaC" + bytes(40))))], {}),
        ([user(SOUND)], {"max_completion_tokens": 4}),
    ]
]
WORDS = [
    *(
        "",
        "\0",
        "\ud800",
        "../" * 9,
        "store://",
        "store://[",
        "store://clips/%00",
        "data:;base64,",
        "file:///etc/passwd",
    ),
    *("http://[::1", "http://127.0.0.1:9/", "<VIS>", "<AUD_VIS>", "</s>", "visual", "avllm", "a" * 5000, "\u202e"),
]
NUMBERS = [0, -1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, -0.0, 5e-324, float("nan"), float("inf"), 1e400]
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from([*WORDS, *NUMBERS])
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=8), v, max_size=4), max_leaves=8
)


def places(value):
    """Where a value can be changed: containers with an index or a name in them."""
    if isinstance(value, dict | list):
        for name in value if isinstance(value, dict) else range(len(value)):
            yield value, name
            yield from places(value[name])


@st.composite
def bodies(draw):
    """A good body with some places changed, or with more fields."""
    body = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(0, 3))):
        holder, name = draw(
            st.sampled_from([*places(body), (body, draw(st.sampled_from([*ChatRequest.model_fields])))])
        )
        holder[name] = copy.deepcopy(draw(values | st.sampled_from([holder for holder, _ in places(GOOD)])))
    return json.dumps(body).encode()


FIELDS = {
    "temperature": st.floats(0, 2), "top_p": st.floats(1e-9, 1), "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.lists(st.text(min_size=1, max_size=9), max_size=4), "max_tokens": st.integers(1, 16),
    "stream": st.booleans(), "modalities_in": st.sampled_from([["visual"], ["audio"], ["audio", "visual"]]),
    "user": st.text(max_size=9), "metadata": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
}  # fmt: skip


def dialogue(texts, medium, fields):
    """A good body: questions and answers in turn, about a medium or none."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    messages = messages[: len(messages) - (len(messages) + 1) % 2]
    if medium:
        messages[0]["content"] = [medium, {"type": "text", "text": texts[0]}]
    return {"model": "avllm", "messages": messages, **fields}


media = [None, ITEM, url("image_url", data("image/png", PIXEL)), url("video_url", "store://clips/silent-mp4")]
dialogues = st.builds(
    dialogue,
    st.lists(st.text(max_size=60) | st.sampled_from(WORDS), min_size=1, max_size=5),
    st.sampled_from(media),
    st.fixed_dictionaries({}, optional=FIELDS),
).map(lambda body: json.dumps(body).encode())


def nested(open_, close):
    return st.builds(lambda n: b'{"model":' + open_ * n + close * n, st.sampled_from([9, 199, 5000, 100_000]))


@st.composite
def edited(draw, whole):
    """Some bytes of it are changed, cut or doubled."""
    content = draw(whole)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 1, 1, 2, 50, 10_000]))
        put = draw(st.binary(max_size=4) | st.just(content[start:end] * 2))
        content = content[:start] + put + content[end:]
    return content


def message(method, path, more, body):
    """The bytes of a request; the length is stated unless headers state another."""
    said = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(body))} | dict(more)
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in said.items())]
    return "\r\n".join(lines).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


NAMES = [
    "Content-Type",
    "Content-Length",
    "Transfer-Encoding",
    "Host",
    "Authorization",
    "Expect",
    "Range",
    "Connection",
]
NAMES += ["Upgrade", "Origin", "Accept", "Content-Encoding", "X-Forwarded-For", "Cookie"]
SAID = [
    "",
    "0",
    "-1",
    "5",
    "1e3",
    "99999999999",
    "chunked",
    "gzip, chunked",
    "100-continue",
    "upgrade",
    "websocket",
    "h2c",
]
SAID += ["close", "application/json", "text/plain", "evil.test", "Bearer x", "*"]
METHODS = ["POST"] * 5 + ["GET"] * 5 + ["HEAD", "PUT", "OPTIONS", "DELETE", "PATCH", "TRACE", "CONNECT", "post", "X"]
PATHS = ["/v1/chat/completions"] * 8 + ["/", "/v1/models", "/v1/models/avllm", "/v1/models/%00", "/health", "/ready"]
PATHS += ["/metrics", "/v1/completions", "//v1/models", "/%2e%2e/%2e%2e/etc/passwd", "*", "/?a=%ff", "/page/about"]
PATHS += [
    "/static/main.js",
    "/static/..%2fkeys.py",
    "/media/clips/red-loud-mp4?until=9&signature=a",
    "/page/preview?part=x",
]
PATHS += [
    f"/page/stores/{rest}"
    for rest in ("clips", "%00", "clips/items", "clips/items?search=%00&start=-1", "clips/items/x")
]
PATHS += [f"/page/stores/clips/items/red-loud-mp4{rest}" for rest in ("", "/preview", "%00", "?a=b", "/preview?%ff")]
headers = st.lists(
    st.tuples(st.sampled_from(NAMES) | st.text(max_size=8), st.sampled_from(SAID) | st.text(max_size=30)), max_size=3
)
whole = st.builds(message, st.sampled_from(METHODS), st.sampled_from(PATHS), headers, bodies())


def posts(content):
    return content.map(lambda body: message("POST", "/v1/chat/completions", [], body))


all_bodies = st.one_of(
    bodies(),
    bodies(),
    edited(bodies()),
    values.map(json.dumps).map(str.encode),
    nested(b"[", b"]"),
    st.binary(max_size=60),
)
requests = st.one_of(
    posts(all_bodies),
    posts(dialogues),
    posts(bodies() | dialogues),
    whole,
    edited(whole).map(lambda sent: sent + b"\r\n\r\n"),
    st.binary(max_size=200).map(lambda sent: sent + b"\r\n\r\n"),
)


def answer(address, sent):
    """Send bytes and read the first response: its status, declared type and body; None if there is none."""
    with socket.create_connection(address, timeout=60) as plain:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
            plain.sendall(sent)
        response = http.client.HTTPResponse(plain, method=sent.partition(b" ")[0].decode("latin-1"))
        try:
            response.begin()
            return response.status, response.headers.get_content_type(), response.read()
        except (http.client.RemoteDisconnected, ConnectionResetError):
            return None


def check(status, kind, body, is_head):
    """An error is always OpenAI's object, and never the server's fault."""
    if kind == "text/event-stream":
        last = body.strip().split(b"\n\n")[-1].removeprefix(b"data: ")
        if last == b"[DONE]":
            return
        error = json.loads(last)["error"]
        assert error["code"] in STATED or error["type"] != "server_error", error
    elif status >= 400 and not is_head:
        error = json.loads(body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert status < 500 or (status == 503 and error["code"] in STATED), (status, error)
        assert isinstance(error["message"], str)
        assert len(error["message"]) < 1000
        assert not any(word in error["message"] for word in ("Traceback", "site-packages", "avllm-api-"))
    else:
        assert status < 500


@pytest.fixture(scope="module")
def server(api_process, trained):
    """The address and the process of a server with small limits."""
    words = [f"clips={trained / 'store'}", "max_tokens=16", "default_tokens=4", "body_seconds=1", "ping_seconds=0.5"]
    with api_process(trained / "run" / "checkpoint", "--store", *words) as (at, fork):
        yield httpx.URL(at), psutil.Process(fork.pid)


def memory(process):
    return process.memory_info().rss


def test_no_request_makes_the_server_fail_or_grow(server):
    """Each gets an answer by the rules, and after all of them the server answers as before."""
    at, process = server
    good = [httpx.post(f"{at}/v1/chat/completions", json=body, timeout=60) for body in GOOD]
    seen = Counter()
    sizes = []

    @settings(
        max_examples=COUNT, derandomize=not IS_LONG, database=None, deadline=None, suppress_health_check=[*HealthCheck]
    )
    @given(requests)
    def send(sent):
        got = answer((at.host, at.port), sent)
        seen[got and got[0]] += 1
        if got:
            check(*got, sent.startswith(b"HEAD "))
        if sum(seen.values()) % 500 == 0:
            sizes.append(memory(process))

    send()
    print(sorted(seen.items(), key=str), [size >> 20 for size in sizes])
    assert sum(seen.values()) >= COUNT
    assert {200, 400} <= seen.keys()
    assert seen[None] < COUNT / 10
    if len(sizes) > 4:
        assert sizes[-1] - sizes[1] < GROWTH
    again = [httpx.post(f"{at}/v1/chat/completions", json=body, timeout=60) for body in GOOD]
    assert [response.status_code for response in again] == [response.status_code for response in good]
    whole = [response.json() for body, response in zip(GOOD, again, strict=True) if "stream" not in body]
    assert whole[0]["choices"] == good[0].json()["choices"]
    page = httpx.get(f"{at}/metrics").text
    assert "avllm_requests_running 0.0" in page


@pytest.mark.parametrize(
    "head", ['"messages":[', '"messages":[{"role":"user","content":[', '"stop":[', '"metadata":{"x":[']
)
def test_a_large_body_takes_little_memory(server, head):
    """Each value of a list would be an error of its own, and take a thousand times its bytes."""
    at, process = server
    before = memory(process)
    body = f'{{"model":"avllm",{head}'.encode() + b"1," * (5 << 20) + b"1"
    refused = httpx.post(f"{at}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400
    assert memory(process) - before < 8 * len(body)
