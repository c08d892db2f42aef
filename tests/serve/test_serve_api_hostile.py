"""More hostile requests than security.json has: broken HTTP, JSON of odd values, files that are something else.

Each is refused with an error object, or answered where nothing is wrong with it; and the server lives.
"""

import base64
import gzip
import http.client
import io
import json
import socket
import struct
import zlib

import httpx
import pytest
from PIL import Image

BASE = {"model": "avllm", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
GOOD = json.dumps(BASE).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(GOOD)


def assert_refused(response, *codes):
    """It is an error object that says nothing about the machine."""
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert len(response.text) < 3000
    for word in ("Traceback", "site-packages", "/tmp", "root:", ".tmp-"):
        assert word not in response.text
    if codes:
        assert error["code"] in codes


def raw(client, data, read=True):
    """The response to bytes, as they are."""
    with socket.create_connection((client.base_url.host, client.base_url.port), 20) as plain:
        plain.sendall(data)
        if not read:
            return None
        answer = http.client.HTTPResponse(plain)
        answer.begin()
        return httpx.Response(answer.status, headers=answer.getheaders(), content=answer.read())


@pytest.fixture
def alive(client):
    yield
    assert client.post("/v1/chat/completions", json=BASE).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        HEAD + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + LENGTH + b"Content-Length: 1\r\n\r\n" + GOOD,
        HEAD + b"Content-Length: +10\r\n\r\n" + GOOD,
        HEAD + b"Content-Length: -1\r\n\r\n" + GOOD,
        HEAD + b"Content-Length: 0x10\r\n\r\n" + GOOD,
        HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + GOOD,
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + GOOD,
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
        HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(gzip.compress(GOOD)) + gzip.compress(GOOD),
        HEAD + LENGTH + b"Host: evil.test\r\n\r\n" + GOOD,
        HEAD.replace(b"localhost", b"evil.test") + LENGTH + b"\r\n" + GOOD,
        HEAD.replace(b"localhost", b"localhost@evil.test") + LENGTH + b"\r\n" + GOOD,
        HEAD.replace(b"localhost", b"localhost.evil.test:80") + LENGTH + b"\r\n" + GOOD,
        HEAD.replace(b"Host: localhost\r\n", b"") + LENGTH + b"\r\n" + GOOD,
        HEAD.replace(b"1.1", b"1.0").replace(b"Host: localhost\r\n", b"") + LENGTH + b"\r\n" + GOOD,
        HEAD.replace(b"1.1", b"2.0") + LENGTH + b"\r\n" + GOOD,
        HEAD.replace(b"1.1", b"9.9") + LENGTH + b"\r\n" + GOOD,
        HEAD.replace(b"application/json", b"application/json\x00") + LENGTH + b"\r\n" + GOOD,
        HEAD.replace(b"application/json", b"multipart/form-data; boundary=x") + LENGTH + b"\r\n" + GOOD,
        HEAD.replace(b"application/json", b"application/x-www-form-urlencoded") + LENGTH + b"\r\n" + GOOD,
        HEAD + LENGTH + b"X Y: 1\r\n\r\n" + GOOD,
        HEAD + LENGTH + b"X\r\n\r\n" + GOOD,
        HEAD + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        HEAD + b"".join(b"X-%d: 1\r\n" % n for n in range(20_000)) + b"\r\n",
        b"POST /v1/chat/completions\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\x00: 1\r\n\r\n",
        b"GET /v1/models/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models/%00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/../v1/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/nothing%0d%0aX:%201 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"TRACE /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"DELETE /v1/models/avllm HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"get /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET http://evil.test/v1/nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=range(41),
)
def test_http_that_is_broken_or_meant_for_others_is_refused(client, alive, data):
    assert_refused(raw(client, data))


def test_pipelined_and_chunked_requests_and_heads_are_answered(client, alive):
    """What is odd and allowed: no request is taken for another's body."""
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"0\r\nX: trailer\r\n\r\n"
    assert raw(client, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks).status_code == 200
    with socket.create_connection((client.base_url.host, client.base_url.port), 20) as plain:
        health = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        plain.sendall(health + HEAD + LENGTH + b"\r\n" + GOOD + health)
        read = plain.makefile("rb")
        for name in ("status", "choices", "status"):
            assert read.readline().startswith(b"HTTP/1.1 200 ")
            assert name in json.loads(read.read(int(http.client.parse_headers(read)["content-length"])))
    head = client.head("/health")
    assert (head.status_code, head.content) == (200, b"")
    assert client.get("/health/").status_code == 404  # not a redirect to what the Host header says
    raw(client, HEAD + LENGTH + b"\r\n{", read=False)
    raw(client, b"", read=False)


def test_every_answer_has_headers_for_browsers(client):
    for answer in (client.get("/health"), client.get("/nothing"), client.post("/v1/chat/completions", json=BASE)):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"


def test_named_origins_and_hosts_are_let_in(serving):
    """And no others; a preflight needs no key, what follows does."""
    with serving(keys=["correct-horse"], origins=["https://app.test"], hosts=["api.test", "127.0.0.1"]) as client:
        asked = {"Origin": "https://app.test", "Access-Control-Request-Method": "POST"}
        preflight = client.options("/v1/chat/completions", headers=asked)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "https://app.test")
        other = client.options("/v1/chat/completions", headers={**asked, "Origin": "https://evil.test"})
        assert "access-control-allow-origin" not in other.headers
        assert client.get("/v1/models", headers=asked).status_code == 401
        assert client.get("/health", headers={"Host": "API.test:8000"}).status_code == 200
        assert_refused(client.get("/health", headers={"Host": "localhost"}), "unknown_host")


@pytest.mark.parametrize(
    "fields",
    [
        *({"max_tokens": value} for value in (True, "10", 4.5, [], {}, 10**40, -(10**40), 1 << 63)),
        *({"temperature": value} for value in (True, "1", -0.1, 2.1, [], 10**400)),
        *({"top_p": value} for value in (True, "1", -1, 0, 1.01)),
        *({"seed": value} for value in (True, "1", 1.5, 1 << 63, -(1 << 63) - 1, 10**4000)),
        *({"stop": value} for value in ("", [""], [None], [1], {}, 1, True, ["x" * 201], ["a"] * 5, [["a"]])),
        *({"n": value} for value in (0, 2, -1, True, "1", 1.5, 1 << 70)),
        *({"stream": value} for value in (1, "true", [], {})),
        *({"stream_options": value} for value in ({}, {"include_usage": True}, [], 1)),
        *({"stream": True, "stream_options": value} for value in ({"include_usage": 1}, {"x": 1}, [])),
        *({"modalities_in": value} for value in ([], ["smell"], "visual", ["visual"], ["visual"] * 3, [1])),
        *({"model": value} for value in (None, 1, ["avllm"], "", "AVLLM", "avllm\x00", "x" * 100_000)),
        *({"messages": value} for value in (None, {}, "", [], [None], [1], [[]], "hi", [{}], [{"role": "user"}])),
        {"presence_penalty": 1}, {"frequency_penalty": -2}, {"logprobs": True}, {"logprobs": 0}, {"top_logprobs": 3},
        {"tools": []}, {"tool_choice": "required"}, {"functions": []}, {"response_format": {"type": "json_object"}},
        {"logit_bias": {"1": 100}}, {"user": 1}, {"metadata": {"a": 1}}, {"__proto__": {}}, {"messages.0": 1}, {"": 1},
        {"best_of": 1}, {"echo": True}, {"prompt": "x"}, {"prompt_embeds": "AAAA"}, {"min_p": 0}, {"ignore_eos": True},
    ],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_fields_of_odd_values_are_refused(client, fields):
    body = json.dumps(BASE | fields)
    assert_refused(client.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": None},
        {"role": "user", "content": []},
        {"role": "user", "content": {}},
        {"role": "user", "content": ["hi"]},
        {"role": "user", "content": [[]]},
        {"role": "user", "content": [{"type": "text", "text": 1}]},
        {"role": "user", "content": [{"type": "text", "text": "x", "more": 1}]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]},
        {"role": "user", "content": [{"type": "refusal", "refusal": "x"}]},
        {"role": "user", "content": [{"type": "prompt_embeds", "data": "AAAA"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": "data:,"}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": ["x"]}}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "detail": "high"}}]},
        {"role": "user", "content": [{"type": "image_url", "video_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "store://"}}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "store://clips/..%2f..%2fx"}}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "store://clips/%00"}}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "store://[/x"}}]},
        {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "https://" + "a" * 9000}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "exe"}}]},
        {"role": "user", "content": "hi", "name": "x"},
        {"role": "assistant", "content": "hi"},
        {"role": "system", "content": "hi"},
        {"role": "tool", "content": "hi", "tool_call_id": "x"},
        {"role": "function", "name": "x", "content": "hi"},
        {"role": ["user"], "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}] * 1000},
        {"role": "user", "content": "x" * 300_000},
        {"role": "user", "content": "hi " * 5000},
    ],
    ids=range(29),
)
def test_messages_of_odd_forms_are_refused(client, message):
    assert_refused(client.post("/v1/chat/completions", json=BASE | {"messages": [message]}))


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"{", b"nul", b'"x"', b"1", b"[" * 50_000, b'{"a":' * 50_000, b'{"model":"avllm"', b"\x00", GOOD + b"x",
     GOOD.replace(b"4", b"1e5"), GOOD.replace(b"4", b"0x4"), GOOD.replace(b"4", b"04"), GOOD.replace(b"4", b"4,"),
     GOOD.replace(b'"hi"', b"'hi'"), GOOD.replace(b"hi", b"\xff\xfe"), GOOD.replace(b"hi", b"\xed\xa0\x80"),
     GOOD.replace(b"hi", b"\\ud800"), GOOD.replace(b"hi", b"\\udc00\\ud800"), GOOD.replace(b"hi", b"\\x41"),
     GOOD.replace(b"hi", b"\n"), GOOD.decode().encode("utf-16"), b'{"seed":' + b"9" * 1_000_000 + b"}",
     b"/* */" + GOOD],
    ids=range(25),
)  # fmt: skip
def test_bytes_that_are_no_json_are_refused(client, alive, body):
    headers = {"Content-Type": "application/json"}
    assert_refused(client.post("/v1/chat/completions", content=body, headers=headers))


@pytest.mark.parametrize(
    "text", ["", "\x00", "\u202e\ufeff", "e" + "\u0301" * 500, "\U0001f4a9" * 50, "</s><s>", "<VIS "]
)
def test_odd_texts_are_answered(client, text):
    for stream in (False, True):
        answer = client.chat(text, stream=stream)
        assert answer.status_code == 200, answer.text
        assert "error" not in answer.text


def link(kind, declared, data):
    return {"type": kind, kind: {"url": f"data:{declared};base64,{base64.b64encode(data).decode()}"}}


def png(*chunks):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks) + chunk(b"IEND", b"")


def still(format, **words):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(buffer, format, **words)
    return buffer.getvalue()


def wav(channels=1, rate=8000, bits=16, data=b"\0" * 64):
    frame = channels * bits // 8
    facts = struct.pack("<HHIIHH", 1, channels, rate, rate * frame & 0xFFFFFFFF, frame & 0xFFFF, bits)
    body = b"WAVEfmt " + struct.pack("<I", 16) + facts + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMB = zlib.compress(bytes(1 << 26))
HEADER = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
PLAYLISTS = [
    "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n",
    "#EXTM3U\n#EXT-X-MAP:URI=\"file:///etc/passwd\"\n#EXTINF:10,\nfile:///etc/passwd\n",
    "ffconcat version 1.0\nfile '/etc/passwd'\n",
    "ffconcat version 1.0\nfile '{url}'\n",
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{url}</BaseURL></Period></MPD>',
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&e;</svg>',
    "1\n00:00:00,000 --> 00:00:09,000\n<font face='{url}'>hi</font>\n",
    "[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0,0:00:00.00,0:00:09.00,,,0,0,0,,hi\n",
    "<html><img src='{url}'></html>",
    "%!PS\n(/etc/passwd) (r) file\n",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(PLAYLISTS)))
@pytest.mark.parametrize("declared", ["image/png", "video/mp4", "video/mp2t", "audio/mpeg"])
def test_a_file_that_names_others_opens_none(client, canary, declared, number):
    """Playlists, scripts and pages, under any type: the decoder sees bytes it does not take."""
    kind = f"{declared.split('/')[0]}_url"
    data = PLAYLISTS[number].replace("{url}", f"http://127.0.0.1:{canary.getsockname()[1]}/x.ts").encode()
    assert_refused(client.chat([link(kind, declared, data)]))
    with pytest.raises(BlockingIOError):
        canary.accept()


@pytest.mark.parametrize(
    ("part", "codes"),
    [
        (link("image_url", "image/png", png((b"IHDR", HEADER), (b"IDAT", BOMB))), None),
        (link("image_url", "image/png", png((b"IHDR", struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 2, 0, 0, 0)))), ()),
        (link("image_url", "image/png", png((b"IHDR", HEADER), (b"zTXt", b"x\0\0" + BOMB))), ()),
        (link("image_url", "image/png", png((b"IHDR", HEADER), (b"iCCP", b"x\0\0" + BOMB))), ()),
        (link("image_url", "image/png", png((b"IHDR", HEADER))), ()),
        (link("image_url", "image/jpeg", still("JPEG")[:100]), ()),
        (link("image_url", "image/jpeg", still("JPEG2000")), ("unreadable",)),
        (link("image_url", "image/png", still("ICO")), ("unreadable",)),
        (link("image_url", "image/png", still("PDF")), ("unreadable",)),
        (link("image_url", "image/png", b"PK\3\4" + bytes(100)), ("unreadable",)),
        (link("image_url", "image/tiff", b"II*\0\x08\0\0\0\xff\xff" + b"\0\1\4\0\xff\xff\xff\xff" * 9000), ()),
        (link("video_url", "video/mp4", gzip.compress(bytes(1 << 26))), ("unreadable",)),
        (link("video_url", "video/mp4", b"\0\0\0\x20ftypisom" + b"\xff" * 64), ()),
        (link("video_url", "video/mp4", still("PNG")[:20]), ()),
        (link("video_url", "video/x-msvideo", b"RIFF\xff\xff\xff\x7fAVI LIST" + bytes(100)), ()),
        (link("video_url", "video/x-matroska", b"\x1aE\xdf\xa3" + b"\xff" * 100), ()),
        (link("audio_url", "audio/wav", wav(channels=65535)), ()),
        (link("audio_url", "audio/wav", wav(rate=0)), ()),
        (link("audio_url", "audio/wav", wav(bits=0)), ()),
        (link("audio_url", "audio/wav", wav(data=b"")), ()),
        (link("audio_url", "audio/mpeg", b"ID3\4\0\0\x7f\x7f\x7f\x7f" + bytes(100)), ()),
        (link("audio_url", "audio/flac", b"fLaC\x80\0\0\x22" + b"\xff" * 34), ()),
        (link("audio_url", "audio/ogg", b"OggS" + b"\xff" * 200), ()),
        (link("audio_url", "text/plain", b"x"), ("wrong_type",)),
        (link("image_url", "video/mp4", b"x"), ("wrong_type",)),
    ],
    ids=range(25),
)  # fmt: skip
def test_files_that_are_broken_or_something_else_are_refused(client, alive, part, codes):
    """Or answered, where a decoder takes them, as Pillow does a picture with too much data."""
    answer = client.chat([part])
    if codes is not None or answer.status_code != 200:
        assert_refused(answer, *(codes or ()))


def test_a_cover_picture_is_no_film(client, media, tmp_path):
    """A sound with a picture attached is heard, not seen."""
    import av

    path = tmp_path / "song.mp3"
    with av.open(str(media / "low.wav")) as source, av.open(str(path), "w") as target:
        sound = target.add_stream("mp3", rate=48_000)
        cover = target.add_stream("mjpeg")
        cover.width = cover.height = 16
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_image(Image.new("RGB", (16, 16), "blue")).reformat(format="yuvj420p")
        for packet in cover.encode(frame):
            target.mux(packet)
        for frame in source.decode(audio=0):
            target.mux(sound.encode(frame))
        target.mux(sound.encode())
    data = path.read_bytes()
    assert client.chat([link("audio_url", "audio/mpeg", data)]).status_code == 200
    seen = client.chat([link("video_url", "video/mp4", data)], modalities_in=["visual"])
    assert (seen.status_code, seen.json()["error"]["code"]) == (422, "absent")
