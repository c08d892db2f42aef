"""Real parts for all tests: small media files, a small LLM of the Llama family, a small store."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes share the cores; encoders compute as in a worker

import contextlib
import importlib.util
import json
import logging
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

REPO = Path(__file__).parent.parent
RATE = 48_000


SLOW = ("test_gpu_check", "test_ablate", "test_readme", "test_trainer_zero", "test_featurize_run",
        "test_featurize_encoders", "test_trainer_stage", "test_trainer_resume", "test_trainer_published",
        "test_featurize_chaos")  # fmt: skip


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU or a model hub where there is none, and nothing else; the slowest files come first."""
    import torch

    items.sort(key=lambda item: SLOW.index(item.path.stem) if item.path.stem in SLOW else len(SLOW))

    lacking = {"gpu": not torch.cuda.is_available(), "hub": not os.environ.get("AVLLM_HUB")}
    reasons = {"gpu": "needs a CUDA device", "hub": "needs a model hub; set AVLLM_HUB=1 where one can be reached"}
    for item in items:
        for mark, absent in lacking.items():
            if absent and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reasons[mark]))


class Fork:
    """A process that `Forks` started; it looks like a `Popen`."""

    def __init__(self, reply: int) -> None:
        self._reply = open(reply)  # noqa: SIM115
        self.pid = int(self._reply.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, None while the process runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end."""
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._reply, select.POLLIN)
            if not poll.poll(None if timeout is None else 1000 * timeout):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._reply.readline())
            self._reply.close()
        return self.returncode

    def kill(self) -> None:
        """End it at once."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Forks:
    """Starts `python -m ...` without importing what is heavy; see forks.py."""

    def __init__(self) -> None:
        self._control, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        words = [sys.executable, Path(__file__).with_name("forks.py")]
        with server, open(os.devnull, "wb") as nowhere:
            self._server = subprocess.Popen(words, cwd=REPO, stdin=server, stdout=nowhere, env=_environment())

    def start(self, *words: object, out: IO, err: IO, cwd: Path = REPO, env: dict[str, str] | None = None) -> Fork:
        """Start a module with its arguments."""
        request = {"words": [*map(str, words)], "cwd": str(cwd), "env": _environment(env)}
        replies, reply = os.pipe()
        socket.send_fds(self._control, [json.dumps(request).encode()], [reply, out.fileno(), err.fileno()])
        os.close(reply)
        return Fork(replies)

    def run(self, *words: object, cwd: Path = REPO, env: dict[str, str] | None = None, timeout: int = 600):
        """Run a module to its end, as `subprocess.run` does."""
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            fork = self.start(*words, out=out, err=err, cwd=cwd, env=env)
            try:
                status = fork.wait(timeout)
            finally:
                fork.kill()
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, status, out.read(), err.read())

    def close(self) -> None:
        """End the server, not its forks."""
        self._control.close()
        self._server.wait()


@pytest.fixture(scope="session", autouse=True)
def machine_cache(tmp_path_factory):
    """Maps of tables and indices are kept here, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVLLM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def forks(machine_cache):
    """Start commands in processes of their own that need not import torch."""
    forks = Forks()
    yield forks
    forks.close()


def _environment(more: dict[str, str] | None = None) -> dict[str, str]:
    path = os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **(more or {})}


@pytest.fixture(scope="session")
def python(forks):
    """Run `python -m ...` in a process of its own; the checkout is on the module path.

    It is a fork, unless it is to be `fresh`, as a user starts it, or finds modules elsewhere.
    """

    def run(*words: object, fresh: bool = False, cwd: Path = REPO, env: dict[str, str] | None = None, timeout=600):
        if not fresh and "PYTHONPATH" not in (env or {}):
            return forks.run(*words, cwd=cwd, env=env, timeout=timeout)
        words = [sys.executable, "-m", *map(str, words)]
        own = _environment(env)
        return subprocess.run(words, cwd=cwd, env=own, capture_output=True, text=True, timeout=timeout, check=False)

    return run


@pytest.fixture(scope="session")
def free_port():
    """A function that gives a port for a process that will listen later.

    It is none of those that Ray gives to its workers, below 20,000, or the system to anybody, from 32,768 on.
    """
    ports = iter(random.SystemRandom().sample(range(20_000, 32_000), 1000))

    def free_port() -> int:
        for port in ports:
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
                return port
        raise AssertionError("no port is left")

    return free_port


@pytest.fixture(scope="session")
def llm_server():
    """The class of servers that speak as LLM providers do; see llm_server.py."""
    spec = importlib.util.spec_from_file_location("llm_server", Path(__file__).with_name("llm_server.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LLMServer


@pytest.fixture(scope="session")
def s3():
    """The URL of a bucket on an S3 server that runs here; processes find it by the standard variables."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        s3fs.S3FileSystem().mkdir("avllm-tests")
        yield "s3://avllm-tests"
    server.stop()


def tone(hertz: float, seconds: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def write_clip(path: Path, colours: list[tuple[int, int, int]], sound: np.ndarray | None, fps: int = 10) -> None:
    """An H.264 clip with one plain frame for each colour, and AAC sound if any."""
    import av  # not at the top: tests of the trainer run without it

    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps)
        video.width = video.height = 64
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="mono") if sound is not None else None
        for colour in colours:
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), colour, np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None:
            for start in range(0, len(sound), 1024):
                block = av.AudioFrame.from_ndarray(sound[None, start : start + 1024], format="fltp", layout="mono")
                block.rate, block.pts = RATE, start
                container.mux(audio.encode(block))
            container.mux(audio.encode())


def write_sound(path: Path, sound: np.ndarray) -> None:
    import soundfile

    soundfile.write(path, sound, RATE)


RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> Path:
    """A folder of good media files; every test of a process shares it, so none writes there."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "red-loud.mp4", [RED] * 8 + [GREEN] * 8, tone(440, 1.6))
    write_clip(folder / "blue-loud.mp4", [BLUE] * 16, tone(880, 1.6))
    write_clip(folder / "silent.mp4", [GREEN] * 12, None)
    write_clip(folder / "short.mp4", [RED, GREEN, BLUE], None)
    write_sound(folder / "low.wav", tone(220, 1.0))
    write_sound(folder / "high.flac", tone(1760, 1.0))
    write_sound(folder / "middle.ogg", tone(880, 1.0))
    Image.new("RGB", (80, 60), BLUE).save(folder / "blue.png")
    Image.new("RGB", (60, 80), RED).save(folder / "red.jpg")
    return folder


@pytest.fixture(scope="session")
def bad_media(tmp_path_factory, media) -> Path:
    """Files that kill other people's runs at hour nine."""
    folder = tmp_path_factory.mktemp("bad")
    whole = (media / "red-loud.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "broken.png").write_bytes((media / "blue.png").read_bytes()[:60])
    return folder


@pytest.fixture(scope="session")
def tiny_llm(tmp_path_factory) -> Path:
    """A Llama of two layers with random weights and a byte-level BPE tokenizer, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llm")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = ["System: A chat between a curious human and a video assistant.\n Human: What colour?\n Assistant: red"]
    special = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        words,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def feature_store(tmp_path_factory) -> Path:
    """A store of 30 items with columns of random features, and conversations of all modalities, on disk as always."""
    from store import (
        Candidate,
        ColumnSpec,
        Conversation,
        Corpus,
        Failure,
        Feature,
        Storage,
        Turn,
        create_column,
        save_conversations,
    )

    storage = Storage(tmp_path_factory.mktemp("features"))
    corpus = Corpus()
    corpus.append([Candidate(f"clips/{i}.mp4", f"/nowhere/{i}.mp4", "video") for i in range(30)], shard_size=8)
    corpus.save(storage)
    rng = np.random.default_rng(0)
    visual = ColumnSpec(
        name="clip-tiny",
        modality="visual",
        numerics={"version": 1},
        features={
            "temporal": Feature(shape=(None, 6), dtype="float32"),
            "spatial.t2": Feature(shape=(5, 6), dtype="float32"),
            "spatial.t4": Feature(shape=(5, 6), dtype="float32"),
        },
    )
    audio = ColumnSpec(
        name="clap-tiny",
        modality="audio",
        numerics={"version": 1},
        features={"audio.k2": Feature(shape=(2, 7), dtype="float16")},
    )
    for spec in (visual, audio):
        column = create_column(storage, spec, {})
        for shard, items in corpus.shards.items():
            with column.write_shard(shard) as writer:
                for item in items:
                    if spec is audio and item.key == "clips-3-mp4":
                        writer.fail(Failure(key=item.key, code="absent", reason="no audio stream"))
                        continue
                    shapes = {n: [4 if s is None else s for s in f.shape] for n, f in spec.features.items()}
                    dtypes = {n: f.dtype for n, f in spec.features.items()}
                    arrays = {n: (3 + rng.standard_normal(s)).astype(dtypes[n]) for n, s in shapes.items()}
                    writer.add(item.key, arrays, {})
    conversations = []
    for i, item in enumerate(corpus.items):
        for modality in ("visual", "audio", "audio_visual"):
            turns = (
                Turn(f"What colour is number {i}?", modality, "red" if i % 2 else "green"),
                Turn("Sure?", "text", "yes"),
            )
            conversations.append(Conversation(f"{i}-{modality}", item.key, turns))
    conversations.append(Conversation("words", None, (Turn("Say yes", "text", "yes"),)))
    save_conversations(storage, "mixed", conversations)
    return Path(storage.root)
