"""Programs that others wrote against a server process: the openai SDK, LangChain and curl get the engine's words.

`CHECKPOINT`, `STORE` and `VLLM` in the environment run the same against another checkpoint, and a vLLM server of it:

    CHECKPOINT=runs/demo/stage2/checkpoint STORE=runs/demo/store VLLM=http://127.0.0.1:8911 \\
        .venv/bin/python -m pytest tests/serve/test_serve_clients.py
"""

import base64
import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
from langchain_openai import ChatOpenAI

from serve.api.settings import ApiSettings
from serve.assistant import Assistant, Question
from serve.engine import Limits
from serve.features import Features, available_modality
from store import Turn

KEY = "correct-horse"
TOKENS = 8
PLACES = 4
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


@dataclass
class Server:
    """A process of `serve api`, and an assistant of the same checkpoint and store."""

    url: str
    assistant: Assistant
    store: str
    key: str  # of an item that can be seen and heard

    def features(self, medium) -> Features:
        """Of a key of the store, or of a file."""
        source = self.assistant.features
        if isinstance(medium, Path):
            return source.encode(str(medium), source.senses)
        return source.load(self.store, medium, source.senses)

    def expected(self, text, medium=None, limits=Limits(TOKENS), before=()):
        """The engine's own answer."""
        arrays = self.features(medium).arrays if medium else {}
        turns = [*before, (text, "")] if before else [(text, "")]
        modalities = [available_modality(arrays), *["text"] * (len(turns) - 1)]
        asked = tuple(Turn(t, m, answer) for (t, answer), m in zip(turns, modalities, strict=True))
        return self.assistant.answer([Question(asked, arrays)], limits)[0]

    def count(self, name):
        """A number of /metrics."""
        page = httpx.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        return float(next(line for line in page.splitlines() if line.startswith(f"{name} ")).split()[1])


@pytest.fixture(scope="module")
def server(api_process, request):
    """A server with a key and few places."""
    checkpoint, store = os.environ.get("CHECKPOINT"), os.environ.get("STORE")
    if not checkpoint:
        trained = request.getfixturevalue("trained")
        checkpoint, store = str(trained / "run" / "checkpoint"), str(trained / "store")
    vllm = ["--vllm", os.environ["VLLM"]] if "VLLM" in os.environ else []
    words = ["--store", f"clips={store}", f"queue={PLACES}", "max_tokens=1900", *vllm]
    assistant = Assistant.load(checkpoint)
    sight, sound = (assistant.features.open(store, sense) for sense in ("visual", "audio"))
    with api_process(checkpoint, *words, env={"AVLLM_API_KEY": KEY}) as (url, _):
        yield Server(url, assistant, store, next(filter(sound.__contains__, sight.keys())))
    assistant.close()


@dataclass
class Said:
    """What a client read."""

    text: str
    reason: str
    tokens: int | None  # generated; None where the client asked for no usage


Client = Callable[..., Said]


def sdk(server, **options):
    """The SDK's client; it does not try again, unless told so."""
    return openai.OpenAI(base_url=f"{server.url}/v1", **{"api_key": KEY, "max_retries": 0} | options)


def with_openai(server, messages, **fields):
    with sdk(server) as client:
        answer = client.chat.completions.create(model="avllm", messages=messages, max_tokens=TOKENS, **fields)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    (choice,) = answer.choices
    return Said(choice.message.content, choice.finish_reason, answer.usage.completion_tokens)


def with_openai_stream(server, messages, **fields):
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    with sdk(server) as client:
        *chunks, last = client.chat.completions.create(
            model="avllm", messages=messages, max_completion_tokens=TOKENS, **fields
        )
    assert not last.choices
    assert all(chunk.usage is None for chunk in chunks)
    return Said(
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
        chunks[-1].choices[0].finish_reason,
        last.usage.completion_tokens,
    )


def langchain(server):
    return ChatOpenAI(model="avllm", base_url=f"{server.url}/v1", api_key=KEY, max_tokens=TOKENS, max_retries=0)


def with_langchain(server, messages, **fields):
    answer = langchain(server).invoke(messages, **fields)
    return Said(answer.content, answer.response_metadata["finish_reason"], answer.usage_metadata["output_tokens"])


def with_langchain_stream(server, messages, **fields):
    pieces = list(langchain(server).stream(messages, stream_usage=True, **fields))
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    return Said(whole.content, whole.response_metadata["finish_reason"], whole.usage_metadata["output_tokens"])


def curl(server, messages, **fields):
    body = {"model": "avllm", "messages": messages, "max_tokens": TOKENS, **fields}
    words = ["curl", "-sN", f"{server.url}/v1/chat/completions", "-H", f"Authorization: Bearer {KEY}"]
    words += ["-H", "Content-Type: application/json", "--data-binary", "@-"]
    return subprocess.run(words, input=json.dumps(body).encode(), capture_output=True, check=True).stdout.decode()


def with_curl(server, messages, **fields):
    answer = json.loads(curl(server, messages, **fields))
    (choice,) = answer["choices"]
    return Said(choice["message"]["content"], choice["finish_reason"], answer["usage"]["completion_tokens"])


def with_curl_stream(server, messages, **fields):
    *events, done = curl(server, messages, stream=True, **fields).strip().split("\n\n")
    assert done == "data: [DONE]"
    choices = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    return Said("".join(c["delta"].get("content", "") for c in choices), choices[-1]["finish_reason"], None)


CLIENTS = [with_openai, with_openai_stream, with_langchain, with_langchain_stream, with_curl, with_curl_stream]


def data_url(path, kind):
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def part(kind, server, media):
    """A part of a message, and the medium that it holds."""
    if kind == "store_item":
        return {"type": kind, kind: {"store": "clips", "key": server.key}}, server.key
    if kind == "store://":
        return {"type": "video_url", "video_url": {"url": f"store://clips/{server.key}"}}, server.key
    if kind == "input_audio":
        data = base64.b64encode((media / "low.wav").read_bytes()).decode()
        return {"type": kind, kind: {"data": data, "format": "wav"}}, media / "low.wav"
    name, declared = {
        "image_url": ("blue.png", "image/png"),
        "video_url": ("red-loud.mp4", "video/mp4"),
        "audio_url": ("high.flac", "audio/flac"),
    }[kind]
    return {"type": kind, kind: {"url": data_url(media / name, declared)}}, media / name


PARTS = ["image_url", "video_url", "audio_url", "input_audio", "store_item", "store://"]


def same(said, reply):
    """A client read what the engine says."""
    assert (said.text, said.reason) == (reply.text, reply.reason)
    assert said.tokens in (reply.tokens, None)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("kind", PARTS)
def test_a_client_reads_what_the_engine_says_about_a_medium(server, media, client, kind):
    sent, medium = part(kind, server, media)
    content = [{"type": "text", "text": "What?"}, sent]
    same(client(server, [{"role": "user", "content": content}]), server.expected("What?", medium))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_holds_a_dialogue(server, client):
    """Several turns about a medium, the answers in between as the client got them; text alone; a stop text."""
    (sent, key), text = part("store_item", server, None), {"type": "text", "text": "What?"}
    messages = [{"role": "user", "content": [sent, text]}]
    first = client(server, messages)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Sure?"}]
    same(client(server, messages), server.expected("Sure?", key, before=[("What?", first.text)]))
    alone = [{"role": "user", "content": "Say something."}]
    whole = server.expected("Say something.")
    same(client(server, alone), whole)
    stop = whole.text[2:4]
    same(client(server, alone, stop=[stop]), server.expected("Say something.", limits=Limits(TOKENS, stop=(stop,))))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_seed_decides_a_sampled_answer(server, client):
    asked = {"messages": [{"role": "user", "content": "Say something."}], "temperature": 1.5, "top_p": 0.9}
    said = {client(server, **asked, seed=seed).text for seed in (1, 2, 3, 1, 2, 3)}
    assert 1 < len(said) <= 3


def test_an_answer_goes_back_as_the_sdk_gave_it(server):
    """Programs append the message object, or all of its fields, most of them null."""
    with sdk(server) as client:
        messages = [{"role": "user", "content": "Say something."}]
        first = client.chat.completions.create(model="avllm", messages=messages, max_tokens=TOKENS).choices[0].message
        expected = server.expected("Sure?", before=[("Say something.", first.content)]).text
        for answered in (first, first.model_dump()):
            asked = [*messages, answered, {"role": "user", "content": "Sure?"}]
            again = client.chat.completions.create(model="avllm", messages=asked, max_tokens=TOKENS)
            assert again.choices[0].message.content == expected


def test_langchain_asks_several_at_once(server):
    texts = ["Say something.", "What?", "Sure?"]
    answers = langchain(server).batch(texts)
    assert [answer.content for answer in answers] == [server.expected(text).text for text in texts]


NEUTRAL = {
    "user": "u-1", "metadata": {"run": "7"}, "store": False, "parallel_tool_calls": True, "tool_choice": "none",
    "response_format": {"type": "text"}, "reasoning_effort": "none", "service_tier": "auto", "verbosity": "medium",
    "modalities": ["text"], "logit_bias": {}, "logprobs": False, "n": 1, "presence_penalty": 0.0,
    "frequency_penalty": 0, "safety_identifier": "s", "prompt_cache_key": "k", "tools": None, "functions": None,
}  # fmt: skip
CHANGING = {
    "store": True, "tool_choice": "required", "response_format": {"type": "json_object"}, "reasoning_effort": "low",
    "service_tier": "flex", "verbosity": "high", "modalities": ["text", "audio"], "logit_bias": {"5": 1},
    "logprobs": True, "n": 2, "presence_penalty": 0.5, "frequency_penalty": 1, "top_logprobs": 2,
    "tools": [{"type": "function", "function": {"name": "f"}}], "functions": [{"name": "f"}],
    "prediction": {"type": "content", "content": "x"}, "web_search_options": {},
    "audio": {"format": "wav", "voice": "x"},
    "extra_body": {"top_k": 5},
}  # fmt: skip


def test_what_changes_no_answer_is_taken(server):
    answer = with_openai(server, [{"role": "user", "content": "Say something."}], **NEUTRAL)
    same(answer, server.expected("Say something."))


@pytest.mark.parametrize("field", CHANGING)
def test_what_would_change_an_answer_is_refused(server, field):
    with pytest.raises(openai.BadRequestError) as refused:
        with_openai(server, [{"role": "user", "content": "Say something."}], **{field: CHANGING[field]})
    assert refused.value.param.startswith("top_k" if field == "extra_body" else field)


def long(client):
    """A long answer under way. The tests' LLM never ends a greedy one, trained ones seldom a hot one."""
    messages = [{"role": "user", "content": "Say much."}]
    heat = 2 if "CHECKPOINT" in os.environ else 0
    return client.chat.completions.create(
        model="avllm", messages=messages, max_tokens=900, temperature=heat, seed=1, stream=True
    )


def test_errors_are_the_sdks_exceptions(server, media):
    """With the status, the field and the code that a program decides by."""
    hi = [{"role": "user", "content": "Hi"}]
    unheard = [{"type": "text", "text": "What? <AUD>"}]
    unheard += [{"type": "video_url", "video_url": {"url": data_url(media / "silent.mp4", "video/mp4")}}]
    large = [{"role": "user", "content": "x" * (49 << 20)}]
    cases = [
        (openai.BadRequestError, 400, "greater_than_equal", {}, {"max_tokens": 0}),
        (openai.AuthenticationError, 401, "invalid_api_key", {"api_key": "wrong"}, {}),
        (openai.NotFoundError, 404, "model_not_found", {}, {"model": "gpt"}),
        (openai.APIStatusError, 413, "body_too_large", {}, {"messages": large}),
        (openai.UnprocessableEntityError, 422, "absent", {}, {"messages": [{"role": "user", "content": unheard}]}),
    ]
    for kind, status, code, options, fields in cases:
        with sdk(server, **options) as client, pytest.raises(kind) as raised:
            client.chat.completions.create(**{"model": "avllm", "messages": hi} | fields)
        assert (raised.value.status_code, raised.value.code) == (status, code)
        assert raised.value.body.keys() == {"message", "type", "param", "code"}


def test_a_full_server_is_tried_again_when_it_says_so(server):
    """The SDK raises RateLimitError, or waits as long as Retry-After says if it may."""
    hi = {"model": "avllm", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    with sdk(server) as client, contextlib.ExitStack() as open_streams:
        for _ in range(PLACES):
            next(open_streams.enter_context(long(client)))
        with pytest.raises(openai.RateLimitError) as full:
            client.chat.completions.create(**hi)
        assert full.value.code == "queue_full"
        assert int(full.value.response.headers["retry-after"]) > 0
        patient = client.with_options(max_retries=5)
        open_streams.pop_all().close()
        assert patient.chat.completions.create(**hi).choices


def test_a_client_that_leaves_frees_its_place(server):
    with sdk(server) as client:
        stream = long(client)
        next(stream)
        assert server.count("avllm_requests_running") == 1
        stream.close()
    deadline = time.monotonic() + 20
    while server.count("avllm_requests_running") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.count("avllm_requests_running") == 0
    assert server.count('avllm_answers_total{reason="unfinished"}') >= 1


@pytest.mark.parametrize("number", range(3))
def test_the_pages_examples_run_as_they_stand(server, media, tmp_path, monkeypatch, capfd, number):
    """Only the address, the key and the item's name are this server's."""
    section = PAGE.read_text().split("## Clients")[1].split("\n## ")[0]
    language, code = re.findall(r"```(bash|python)\n(.*?)```", section, re.DOTALL)[number]
    for theirs, ours in {"http://127.0.0.1:8000": server.url, "birthday-mp4": server.key, "none": KEY}.items():
        assert theirs in code or theirs == "birthday-mp4"
        code = code.replace(theirs, ours)
    (tmp_path / "birthday.mp4").symlink_to(media / "red-loud.mp4")
    monkeypatch.chdir(tmp_path)
    if language == "bash":
        subprocess.run(["bash", "-c", code], check=True)
    else:
        exec(code, {})
    printed = capfd.readouterr().out
    question = next(question for question in ("What happens here?", "Who sings?") if question in code)
    medium = server.key if server.key in code else media / "red-loud.mp4"
    expected = server.expected(question, medium, Limits(64)).text
    assert (
        json.loads(printed)["choices"][0]["message"]["content"] if language == "bash" else printed.strip()
    ) == expected


def test_the_page_names_every_setting():
    page = PAGE.read_text()
    names = {name.removesuffix("s") for name in ApiSettings.model_fields}  # --store may be repeated
    assert not [name for name in names if not re.search(rf"(`|--){name}s?\b", page)]
