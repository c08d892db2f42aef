"""The API on a real server and a real checkpoint: what the engine says, and nothing else, whatever is sent."""

import asyncio
import base64
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from serve.api.answering import Answer
from serve.api.errors import ApiError
from serve.api.metrics import Metrics
from serve.assistant import Assistant, Question
from serve.engine import Limits
from serve.features import available_modality
from store import Turn


@pytest.fixture(scope="module")
def assistant(trained):
    return Assistant.load(str(trained / "run" / "checkpoint"))


def text_of(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["message"]["content"]


def events_of(response):
    assert response.status_code == 200, response.text
    *events, done = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    return [json.loads(event) for event in events]


def error_of(response):
    """The error object; it says nothing about the machine."""
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert not any(word in response.text for word in ("Traceback", "site-packages", "/tmp", "avllm-api-"))
    return error


def data_url(path, kind):
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def item(key, store="clips"):
    return {"type": "store_item", "store_item": {"store": store, "key": key}}


def say(text):
    return {"type": "text", "text": text}


def expected(assistant, trained, turns, key=None, limits=Limits(8)):
    source = assistant.features
    arrays = source.load(str(trained / "store"), key, source.senses).arrays if key else {}
    turns = [Turn(text, available_modality(arrays) if kind == "all" else kind, reply) for text, kind, reply in turns]
    return assistant.answer([Question(tuple(turns), arrays)], limits)[0]


def test_answers_are_the_engines_whole_and_streamed(client, assistant, trained):
    """The server adds no word and loses none; blanks around an answer are not sent."""
    reply = expected(assistant, trained, [("Say something.", "text", "")])
    whole = client.chat("Say something.")
    assert text_of(whole) == reply.text
    body = whole.json()
    assert body["choices"][0]["finish_reason"] == reply.reason == "length"
    assert body["usage"]["completion_tokens"] == 8
    assert body["usage"]["total_tokens"] == 8 + body["usage"]["prompt_tokens"]
    first, *middle, last, used = events_of(
        client.chat("Say something.", stream=True, stream_options={"include_usage": True})
    )
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"]["content"] for event in middle) == reply.text
    assert last["choices"][0]["finish_reason"] == "length"
    assert used["choices"] == []
    assert used["usage"] == body["usage"]
    assert len({event["id"] for event in [first, *middle, last, used]}) == 1


def test_a_stop_text_ends_an_answer_and_is_not_part_of_it(client, assistant, trained):
    whole = expected(assistant, trained, [("Say something.", "text", "")]).text
    stop = whole[3:5]
    reply = expected(assistant, trained, [("Say something.", "text", "")], limits=Limits(8, stop=(stop,)))
    response = client.chat("Say something.", stop=[stop, "never", "not", "no"])
    assert text_of(response) == reply.text == whole[: whole.index(stop)].strip()
    assert response.json()["choices"][0]["finish_reason"] == "stop"


def test_a_seed_decides_a_sampled_answer(client):
    """Without one, answers differ."""

    def sampled(**fields):
        return text_of(client.chat("Say something.", temperature=2, top_p=0.9, **fields))

    assert sampled(seed=7) == sampled(seed=7)
    assert len({sampled() for _ in range(4)}) > 1


def test_turns_and_a_system_text_are_kept(client, assistant, trained):
    turns = [("What? ", "all", "red"), ("Sure?", "text", "")]
    messages = [
        {"role": "user", "content": [item("red-loud-mp4"), say("What? ")]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "Sure?"},
    ]
    assert text_of(client.chat(messages)) == expected(assistant, trained, turns, "red-loud-mp4").text
    question = Question((Turn("Hi", "text", ""),), {}, system="Be short.")
    told = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    assert text_of(client.chat(told)) == assistant.answer([question], Limits(8))[0].text


@pytest.mark.parametrize(
    ("content", "fields", "modality"),
    [
        ([item("red-loud-mp4"), say("What?")], {}, "audio_visual"),
        ([item("red-loud-mp4"), say("What? <VIS>")], {}, "visual"),
        ([item("red-loud-mp4"), say("What?")], {"modalities_in": ["audio"]}, "audio"),
        ([{"type": "store_item", "store_item": {"key": "red-loud-mp4"}}, say("What?")], {}, "audio_visual"),
        ([{"type": "video_url", "video_url": {"url": "store://clips/red-loud-mp4"}}, say("What?")], {}, "audio_visual"),
    ],
)
def test_a_cached_item_is_asked_about_by_the_chosen_senses(client, assistant, trained, content, fields, modality):
    answer = expected(assistant, trained, [("What?", modality, "")], "red-loud-mp4")
    assert text_of(client.chat(content, **fields)) == answer.text


@pytest.mark.parametrize(
    ("kind", "field", "name"),
    [
        ("video/mp4", "video_url", "red-loud.mp4"),
        ("image/png", "image_url", "blue.png"),
        ("audio/wav", "audio_url", "low.wav"),
        ("wav", "input_audio", "low.wav"),
    ],
)
def test_a_sent_file_is_answered_as_the_stored_item(client, assistant, trained, media, kind, field, name):
    value = {"url": data_url(media / name, kind)}
    if field == "input_audio":
        value = {"data": value["url"].partition(",")[2], "format": kind}
    answer = expected(assistant, trained, [("What?", "all", "")], name.replace(".", "-"))
    assert text_of(client.chat([{"type": field, field: value}, say("What?")])) == answer.text


def video(path):
    return {"type": "video_url", "video_url": {"url": data_url(path, "video/mp4")}}


@pytest.mark.parametrize(
    ("content", "fields", "status", "param", "code"),
    [
        ("hi", {"max_tokens": 0}, 400, "max_tokens", "greater_than_equal"),
        ("hi", {"max_tokens": "10"}, 400, "max_tokens", "int_type"),
        ("hi", {"max_tokens": 100_000}, 400, "max_tokens", None),
        ("hi", {"tools": []}, 400, "tools", "extra_forbidden"),
        ("hi", {"n": 2}, 400, "n", "less_than_equal"),
        ("hi", {"stop": ["a", "b", "c", "d", "e"]}, 400, None, "too_long"),
        ("hi", {"modalities_in": ["visual"]}, 400, "modalities_in", None),
        ("hi " * 3000, {}, 400, "messages", None),
        ("What? <VIS>", {}, 400, "messages", None),
        ("hi", {"model": "gpt"}, 404, "model", "model_not_found"),
        ([item("nobody")], {}, 404, None, "item_not_found"),
        ([item("red-loud-mp4", "others")], {}, 404, None, "store_not_found"),
        ([item("red-loud-mp4"), item("low-wav")], {}, 400, "messages.0.content.1", "several_media"),
        ([item("silent-mp4"), say("What? <AUD>")], {}, 422, "messages", "absent"),
        ([item("silent-mp4"), say("<VIS>")], {"modalities_in": ["visual"]}, 400, "modalities_in", None),
        ([{"type": "image_url", "image_url": {"url": "ftp://example.org/a.png"}}], {}, 400, None, "url_not_allowed"),
    ],
)
def test_what_cannot_be_answered_names_the_field(client, content, fields, status, param, code):
    response = client.chat(content, **fields)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (status, code), response.text
    if param:
        assert error["param"] == param


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"mesages": []}, "messages: is required; unknown is 'mesages'"),
        ({"messages": []}, "messages: must not be empty"),
        ({"n": 3}, "n: accepted: at most 1"),
        ({"temperature": "hot"}, "temperature: expected a number"),
        (
            {"messages": [{"role": "robot", "content": "hi"}]},
            "messages.0: 'role' is 'robot'; accepted: 'system', 'developer', 'user', 'assistant'",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: is required"),
    ],
)
def test_a_wrong_body_is_told_what_is_accepted(client, body, message):
    """Not in the words of the library that checks it."""
    hi = {} if "mesages" in body else {"messages": [{"role": "user", "content": "hi"}]}
    error = client.post("/v1/chat/completions", json={"model": "avllm", **hi, **body}).json()["error"]
    assert error["message"] == message


def test_a_path_or_an_item_that_is_not_there_is_named(client):
    near = client.post("/v1/chat/completion", json={}).json()["error"]
    assert near["message"] == "POST /v1/chat/completion: Not Found; did you mean /v1/chat/completions?"
    far = client.get("/api").json()["error"]
    assert far["message"] == "GET /api: Not Found; programs ask /v1/chat/completions and /v1/models"
    error = client.chat([item("nobody")]).json()["error"]
    where = "messages.0.content.0.store_item.key"
    assert (error["param"], error["message"]) == (where, f"{where}: store clips has no item 'nobody'")


def test_unusable_media_are_422_with_the_reasons_code(client, bad_media):
    for name, code in {"truncated.mp4": "truncated", "text.mp4": "unreadable"}.items():
        response = client.chat([video(bad_media / name), say("What?")])
        assert response.status_code == 422, response.text
        assert error_of(response)["code"] == code


def much(**fields):
    """A request whose answer takes seconds."""
    return {"model": "avllm", "messages": [{"role": "user", "content": "Say much."}], "max_tokens": 1900, **fields}


def test_a_client_that_leaves_ends_its_answer(serving):
    """Its place is free for others at once; the rest of its answer is not generated."""
    with serving(queue=1, max_tokens=2000) as client:
        with client.stream("POST", "/v1/chat/completions", json=much(stream=True)) as response:
            assert response.status_code == 200, response.read()
            lines = response.iter_lines()  # without the name, it would be gone and the connection closed
            next(lines)
            full = client.chat("And I?")
            assert full.status_code == 429
            assert int(full.headers["retry-after"]) > 0
            assert error_of(full)["code"] == "queue_full"
            assert client.get("/ready").status_code == 503
        time.sleep(0.3)
        assert text_of(client.chat("And I?"))
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json=much(), timeout=0.5)
        time.sleep(0.3)
        assert client.get("/ready").status_code == 200
        counts = client.get("/metrics").text
        assert "avllm_requests_running 0.0" in counts
        assert 'avllm_answers_total{reason="unfinished"} 2.0' in counts


def test_health_answers_while_twenty_clips_are_decoded(client, media):
    """Decoding, encoding, base64 and tokenizing leave the event loop alone."""
    clip = (media / "red-loud.mp4").read_bytes()

    def ask(number):
        data = base64.b64encode(clip + b"\0\0\0\x0cfree" + number.to_bytes(4, "big")).decode()
        return client.chat([{"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}, say("What?")])

    waits = []
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(ask, number) for number in range(20)]
        while not all(done.done() for done in asked):
            started = time.perf_counter()
            assert client.get("/health").status_code == 200
            waits.append(time.perf_counter() - started)
            time.sleep(0.02)
        assert len({text_of(done.result()) for done in asked}) == 1
    waits.sort()
    assert len(waits) > 20
    assert waits[len(waits) // 2] < 0.2


def test_a_slow_body_is_given_up(serving):
    with serving(body_seconds=0.5) as client:
        url = client.base_url
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with socket.create_connection((url.host, url.port)) as slow:
            slow.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            assert text_of(client.chat("Hi"))
            with slow.makefile("rb") as answer:
                assert answer.read().startswith(b"HTTP/1.1 408 ")


def test_a_slow_file_keeps_its_stream_open(serving, media):
    """Proxies close connections that are silent; an error then is the last event."""
    with serving(ping_seconds=0.01) as client:
        answer = client.chat([video(media / "red-loud.mp4"), say("What?")], stream=True)
        assert answer.text.startswith('data: {"id"')
        assert ": ping" in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
        refused = client.chat([video(media / "silent.mp4"), say("What? <AUD>")], stream=True)
        assert refused.status_code == 200
        assert json.loads(refused.text.splitlines()[-2].removeprefix("data: "))["error"]["code"] == "absent"


def test_answers_that_take_too_long_end_with_errors_of_their_own():
    """One that is raised again would keep what each late request held."""

    async def late():
        with pytest.raises(ApiError, match="takes too long") as error:
            await anext(Answer(Metrics(int), lambda: None, seconds=0.0).pieces())
        return error.value

    assert asyncio.run(late()) is not asyncio.run(late())


def test_an_answer_that_takes_too_long_ends(serving):
    """Whole or streamed; its place is free for others."""
    with serving(queue=1, max_tokens=2000, answer_seconds=0.3) as client:
        late = client.post("/v1/chat/completions", json=much())
        assert (late.status_code, error_of(late)["code"]) == (503, "timeout")
        streamed = client.post("/v1/chat/completions", json=much(stream=True))
        assert streamed.status_code == 200
        assert json.loads(streamed.text.splitlines()[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        time.sleep(0.3)
        assert client.get("/ready").status_code == 200
