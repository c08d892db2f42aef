"""What several tests of serve share."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType

import httpx
import pytest
import yaml
from typer.testing import CliRunner

from featurize.__main__ import app
from store import Storage


@pytest.fixture(scope="session")
def published() -> ModuleType:
    """The functions of published.py, which test modules cannot import by name."""
    spec = importlib.util.spec_from_file_location("published", Path(__file__).with_name("published.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def planned(published, tmp_path_factory, media) -> Storage:
    """A store into which `featurize plan` has put every set."""
    folder = tmp_path_factory.mktemp("planned")
    for write in dict.fromkeys([*published.SETS.values(), *published.OTHERS]):
        own = folder / write.__name__
        own.mkdir()
        done = CliRunner().invoke(app, ["plan", *write(own, media), "--store", str(folder / "store")])
        assert done.exit_code == 0, done.output
    return Storage(folder / "store")


@pytest.fixture(scope="session")
def trained(python, tmp_path_factory, media, tiny_llm):
    """The whole way on a handful of files: featurize, one stage of training."""
    folder = tmp_path_factory.mktemp("trained")
    columns = [
        {"encoder": "clip:ViT-S-32/random", "layer": 1, "frames": [2, 4], "batch": 4},
        {"encoder": "clap:HTSAT-tiny/random", "segments": [1], "batch": 1},
    ]
    (folder / "featurize.yaml").write_text(yaml.safe_dump({"columns": columns, "workers": 1}))
    talk = []
    for token in ("<VIS>", "<AUD>", "<AUD_VIS>"):
        said = [{"from": "human", "value": f"What? {token}"}, {"from": "gpt", "value": "red"}]
        talk.append({"id": token, "video": "red-loud.mp4", "conversations": said})
    (folder / "talk.json").write_text(json.dumps(talk))
    train = {
        "stage": 1,
        "model": str(tiny_llm),
        "sources": [{"store": str(folder / "store"), "conversations": "talk"}],
        "visual": "clip-vit-s-32",
        "audio": "clap-htsat-tiny",
        "frames": 4,
        "segments": 1,
        "output": str(folder / "run"),
        "global_batch": 3,
        "steps": 3,
        "lr": 1e-3,
        "precision": "float32",
    }
    (folder / "train.yaml").write_text(yaml.safe_dump(train))
    for words in (
        ("featurize", "plan", folder / "talk.json", media, "--media-root", media, "--store", folder / "store"),
        ("featurize", "run", "--store", folder / "store", "--config", folder / "featurize.yaml"),
        ("trainer", "train", folder / "train.yaml"),
    ):
        done = python(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


class ApiClient(httpx.Client):
    """A client of a server of the API."""

    def chat(self, content, **fields):
        """Ask about the content of one user message, or about messages."""
        is_dialogue = isinstance(content, list) and "role" in content[0]
        messages = content if is_dialogue else [{"role": "user", "content": content}]
        body = {"model": "avllm", "max_tokens": 8, "messages": messages, **fields}
        return self.post("/v1/chat/completions", json=body)


@pytest.fixture(scope="session")
def serving(trained, tmp_path_factory):
    """A context manager: a client of a server that listens on a port of its own, with a cache of its own."""
    from serve.api.listening import listen
    from serve.api.server import make_server
    from serve.api.settings import ApiSettings
    from serve.assistant import Assistant

    @contextlib.contextmanager
    def running(keys=(), **words):
        words = {"cache": str(tmp_path_factory.mktemp("cache")), **words}
        settings = ApiSettings(checkpoint=str(trained / "run" / "checkpoint"), port=0, **words)
        listener = listen(settings)
        server = make_server(Assistant.load(settings.checkpoint, settings.vllm), settings, keys)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            with ApiClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()
            listener.close()

    return running


@pytest.fixture(scope="session")
def client(serving, trained):
    """A client of one server with the trained checkpoint's store, for all tests that leave it as it is."""
    with serving(stores={"clips": str(trained / "store")}) as client:
        yield client


@pytest.fixture
def canary():
    """A listener that nobody may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture(scope="session")
def api_process(forks, tmp_path_factory):
    """A context manager: the URL and the process of a `serve api` on a port of its own."""

    @contextlib.contextmanager
    def running(checkpoint, *words, env=None, cache=None):
        cache = cache or tmp_path_factory.mktemp("cache")
        words = ["--checkpoint", checkpoint, "--port", 0, *words, f"cache={cache}"]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            fork = forks.start("serve", "api", *words, out=out, err=err, env=env)
            try:
                yield _url_of(fork, out, err), fork
            finally:
                os.kill(fork.pid, signal.SIGTERM)
                assert fork.wait(30) == -signal.SIGTERM, _read(err)

    return running


def _url_of(fork, out, err, seconds=240):
    """The address that a server prints when it listens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := re.search(r" at (http://\S+)/v1; try:", _read(out)):
            return found[1]
        assert fork.poll() is None, _read(err)
        time.sleep(0.05)
    raise TimeoutError(_read(err))


def _read(file):
    """All that was written, without moving the writer's place."""
    return os.pread(file.fileno(), 1 << 20, 0).decode()
