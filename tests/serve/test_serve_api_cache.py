"""The cache of sent files: a store of its own, bounded, sound after any kill, and shared by requests."""

import base64
import contextlib
import os
import random
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from featurize.encoders import Encoder
from featurize.media import MediaError
from featurize.prepare import ItemMedia
from serve.api.clips.cache import ITEM_BYTES, Encoded, FeatureCache, own_folder
from serve.api.clips.encoding import EncoderThread
from serve.assistant import Assistant
from store import Candidate, ColumnSpec, Corpus, Feature, MediaItem, Storage, UserError
from store.__main__ import app as store_app

LONG = bool(os.environ.get("AVLLM_LONG"))


def spec(modality, name="tiny"):
    arrays = {"temporal": Feature(shape=(None, 6), dtype="float32")}
    return ColumnSpec(name=name, modality=modality, numerics={"version": 1}, features=arrays), {}


COLUMNS = {"visual": spec("visual"), "audio": spec("audio", "loud")}


class Opened:
    """A cache in a folder, as a server has it."""

    def __init__(self, folder, most=1 << 30, columns=COLUMNS):
        self._own = own_folder(str(folder))
        self.cache = FeatureCache(self._own.__enter__(), most, columns)

    def __enter__(self):
        return self.cache

    def __exit__(self, *_):
        self._own.__exit__(None, None, None)


def made(number):
    """What is found out about a file: of every third that its sound is lacking."""
    arrays = {"temporal": np.random.default_rng(number).random((4, 6), np.float32)}
    absent = MediaError("absent", "no audio stream")
    return {"visual": Encoded(arrays, {"kind": "video"}), "audio": absent if number % 3 else Encoded(arrays, {})}


def key_of(number):
    return f"{number:064x}-mp4"


def assert_same(found, number):
    for sense, outcome in made(number).items():
        if isinstance(outcome, MediaError):
            assert (found[sense].code, found[sense].reason) == (outcome.code, outcome.reason)
        else:
            np.testing.assert_array_equal(found[sense]["temporal"], outcome.arrays["temporal"])


def verified(folder):
    done = CliRunner().invoke(store_app, ["verify", str(folder)])
    assert "damaged:" not in done.output, done.output
    assert "not the store's" not in done.output
    return done.exit_code == 0


def test_what_is_kept_is_found_again_also_by_the_next_server(tmp_path):
    """With the reasons of failures; the folder is a store like any other."""
    for start in (0, 5):
        with Opened(tmp_path) as cache:
            for number in range(start):
                assert_same(cache.load(key_of(number)), number)
            assert cache.load(key_of(99)) == {}
            for number in range(start, start + 5):
                cache.save(key_of(number), "video", made(number))
                assert_same(cache.load(key_of(number)), number)
    assert verified(tmp_path)
    with Opened(tmp_path, columns={"visual": COLUMNS["visual"], "audio": spec("audio", "other")}) as cache:
        found = cache.load(key_of(1))
        assert found.keys() == {"visual"}  # another checkpoint needs to encode its sound alone
        cache.save(key_of(1), "video", {"audio": made(0)["audio"]})
        assert cache.load(key_of(1)).keys() == {"visual", "audio"}
    assert verified(tmp_path)


def test_the_bound_holds_and_what_was_asked_about_last_stays(tmp_path):
    most = 12 * 2 * ITEM_BYTES
    with Opened(tmp_path, most) as cache:
        for number in range(40):
            cache.save(key_of(number), "video", made(number))
            assert_same(cache.load(key_of(0)), 0)
            assert cache.bytes <= most
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= most
    assert verified(tmp_path)
    with Opened(tmp_path, most) as cache:
        assert_same(cache.load(key_of(0)), 0)
        assert_same(cache.load(key_of(39)), 39)
        assert cache.load(key_of(1)) == {}
        cache.save(key_of(1), "video", made(1))
        assert_same(cache.load(key_of(1)), 1)


def test_damaged_features_are_encoded_again(tmp_path):
    with Opened(tmp_path) as cache:
        cache.save(key_of(0), "video", made(0))
        (tar,) = (tmp_path / "columns").glob("tiny.*/*.tar")
        data = bytearray(tar.read_bytes())
        data[700] ^= 1  # in the only array
        tar.write_bytes(data)
        assert cache.load(key_of(0)).keys() == {"audio"}
        cache.save(key_of(0), "video", {"visual": made(0)["visual"]})
        assert_same(cache.load(key_of(0)), 0)
    assert verified(tmp_path)


class KilledError(BaseException):
    """Stands for the end of the process."""


def test_a_kill_between_any_two_writes_leaves_a_sound_store(tmp_path, monkeypatch):
    """Whatever write is the last one: the store verifies, the next server opens it, and nothing in it is wrong."""
    most = 3 * 2 * ITEM_BYTES
    with Opened(tmp_path / "0", most) as cache:
        for number in range(3):
            cache.save(key_of(number), "video", made(number))
    for last in range(1, 100):
        folder = tmp_path / str(last)
        shutil.copytree(tmp_path / "0", folder)
        with monkeypatch.context() as patch:
            left = [last]

            def counted(operation, left=left):
                def one(self, *words):
                    left[0] -= 1
                    if left[0] < 0:
                        raise KilledError
                    return operation(self, *words)

                return one

            for name in ("write", "writing", "remove"):
                patch.setattr(Storage, name, counted(getattr(Storage, name)))
            try:
                with Opened(folder, most) as cache:
                    cache.save(key_of(3), "video", made(3))
                break
            except KilledError:
                pass
        assert verified(folder)
        with Opened(folder, most) as cache:
            for number in range(4):
                for sense, outcome in cache.load(key_of(number)).items():
                    assert isinstance(outcome, MediaError) == isinstance(made(number)[sense], MediaError)
            cache.save(key_of(3), "video", made(3))
            assert_same(cache.load(key_of(3)), 3)
        assert verified(folder)
        assert len(list(folder.rglob("*.tar"))) == len(list((folder / "columns").rglob("0*.json")))
    assert last > 8


def test_a_folder_belongs_to_one_server_and_to_no_corpus(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    corpus = Corpus()
    corpus.append([Candidate("a.mp4", "/clips/a.mp4", "video")])
    corpus.save(Storage(tmp_path / "mine"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    for name in ("mine", "other"):
        with pytest.raises(UserError, match="holds other things than sent files"):
            Opened(tmp_path / name)
    assert (tmp_path / "mine" / "corpus.parquet").exists()
    with Opened(tmp_path / "cache"), pytest.raises(UserError, match="a cache belongs to one server"):
        Opened(tmp_path / "cache")
    monkeypatch.setenv("AVLLM_CACHE", str(tmp_path / "user"))
    with own_folder(None) as first, own_folder(None) as second:
        assert [Path(storage.root).name for storage in (first, second)] == ["1", "2"]
        assert Path(first.root).stat().st_mode & 0o777 == 0o700
    with own_folder(None) as again:
        assert again.root == first.root


def test_files_encoded_together_have_the_bits_of_the_store(trained, media):
    """Rows of several requests share batches, and depend on nothing but themselves."""
    source = Assistant.load(str(trained / "run" / "checkpoint")).features
    names = ["red-loud.mp4", "blue-loud.mp4", "low.wav", "short.mp4", "blue.png", "red-loud.mp4", "silent.mp4"]
    thread, futures = EncoderThread(), []
    encoders = {sense: source.encoder(sense) for sense in source.senses}
    for name in names:
        kind = {"mp4": "video", "wav": "audio", "png": "image"}[name[-3:]]
        item = MediaItem("x", str(media / name), kind, 0, 0, None)
        cached = ItemMedia(item, list(encoders.values()))
        for sense, encoder in encoders.items():
            try:
                units = encoder.prepare(item, cached)
            except MediaError:
                continue
            futures.append((name, sense, thread.encode(encoder, item, units)))
    for name, sense, future in futures:
        key = name.replace(".", "-")
        arrays = source.open(str(trained / "store"), sense).read(key) if name != "short.mp4" else {}
        found = future.result(60).arrays
        for array, expected in arrays.items():
            np.testing.assert_array_equal(found[array], expected)
    thread.close()


@pytest.fixture
def encoded(monkeypatch):
    """Counts the batches that encoders are given."""
    calls = Counter()
    padded = Encoder.encode_padded
    monkeypatch.setattr(Encoder, "encode_padded", lambda self, rows: (calls.update(["batches"]), padded(self, rows))[1])
    return calls


def video(data):
    return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{base64.b64encode(data).decode()}"}}


def count_of(client, name):
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def test_a_second_question_about_a_file_costs_no_encoder(serving, media, bad_media, tmp_path, encoded):
    """Nor after a restart; requests that come at once share the work; a failed file is remembered with its reason."""
    clip, bad = (media / "blue-loud.mp4").read_bytes(), (bad_media / "truncated.mp4").read_bytes()
    with serving(cache=str(tmp_path)) as client:
        with ThreadPoolExecutor(4) as pool:
            asked = list(pool.map(lambda _: client.chat([video(clip)]).json()["choices"][0]["message"], range(4)))
        assert len({answer["content"] for answer in asked}) == 1
        assert count_of(client, "avllm_files_encoded_total") == 1
        assert client.chat([video(bad)]).json()["error"]["code"] == "truncated"
        assert count_of(client, "avllm_files_encoded_total") == 2
        before = encoded["batches"]
        assert before
        for _ in range(2):
            assert client.chat([video(clip)]).json()["choices"][0]["message"] == asked[0]
            assert client.chat([video(bad)]).json()["error"]["code"] == "truncated"
        assert encoded["batches"] == before
        assert not list(tmp_path.glob(".tmp-*"))
    assert verified(tmp_path)
    (tmp_path / ".tmp-0-sent.mp4").write_bytes(clip)  # of a server that was killed
    with serving(cache=str(tmp_path)) as client:
        assert not list(tmp_path.glob(".tmp-*"))
        assert client.chat([video(clip)]).json()["choices"][0]["message"] == asked[0]
        assert client.chat([video(bad)]).json()["error"]["code"] == "truncated"
        assert count_of(client, "avllm_files_encoded_total") == 0
    assert encoded["batches"] == before


def decoders():
    """The children that decode."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # one that has just ended has no command any more
            found += [child] if "spawn_main" in " ".join(child.cmdline()) else []
    return found


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_decoder_that_hangs_takes_neither_the_server_nor_its_place(serving, media):
    """A deadline ends it; a client that leaves ends it at once; a client that stays gets its answer. None is kept."""
    clips = [(media / "red-loud.mp4").read_bytes() + b"\0\0\0\x0cfree" + bytes([n] * 4) for n in range(3)]
    before = {child.pid for child in decoders()}
    with serving(decoders=1, decode_seconds=3, queue=2) as client, ThreadPoolExecutor(3) as pool:
        good = client.chat([video(clips[0])]).json()["choices"][0]["message"]

        def stopped():
            (child,) = [child for child in decoders() if child.pid not in before]
            child.suspend()

        stopped()
        late = client.chat([video(clips[1])])
        assert (late.status_code, late.json()["error"]["code"]) == (422, "too_slow")
        assert client.chat([video(clips[1])]).json()["choices"][0]["message"] == good
        stopped()
        body = {"model": "avllm", "messages": [{"role": "user", "content": [video(clips[2])]}]}
        gone = pool.submit(client.post, "/v1/chat/completions", json=body, timeout=1)
        stays = pool.submit(client.chat, [video(clips[2])])
        assert client.get("/health").status_code == 200
        assert gone.exception()
        assert stays.result().json()["error"]["code"] == "too_slow"
        assert client.chat([video(clips[2])]).json()["choices"][0]["message"] == good
        assert count_of(client, "avllm_requests_running") == 0


def test_uploads_leave_neither_bytes_in_memory_nor_files(api_process, trained, tmp_path):
    """However many; what is on disk keeps its bound."""
    count, size = (500, 4 << 20) if LONG else (30, 1 << 20)
    most = 20 * 2 * ITEM_BYTES
    words = (f"cache_bytes={max(most, 1 << 20)}", f"memory_bytes={1 << 20}")
    with api_process(trained / "run" / "checkpoint", *words, cache=tmp_path) as (url, server):
        process, sizes = psutil.Process(server.pid), []
        for number in range(count):
            body = {
                "model": "avllm",
                "messages": [{"role": "user", "content": [video(random.Random(number).randbytes(size))]}],
            }
            assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 422
            sizes.append(process.memory_info().rss)
        assert not list(tmp_path.glob(".tmp-*"))
        assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= max(most, 1 << 20)
        third = count // 3
        assert max(sizes[-third:]) - max(sizes[third:-third]) < 8 * size
    assert verified(tmp_path)


def test_a_killed_server_leaves_a_sound_cache(forks, free_port, serving, trained, media, tmp_path):
    """kill -9 while files are sent; the next server goes on with what was answered."""
    clip, rng = (media / "red-loud.mp4").read_bytes(), random.Random(0)
    checkpoint, cache, known = trained / "run" / "checkpoint", tmp_path / "cache", []
    for kill in range(20 if LONG else 1):
        port = free_port()
        words = ("serve", "api", "--checkpoint", checkpoint, "--port", port, f"cache={cache}")
        with open(tmp_path / "out", "w") as out:
            server = forks.start(*words, out=out, err=out)
        url = f"http://127.0.0.1:{port}"

        def ask(number, url=url):
            body = {"model": "avllm", "max_tokens": 2, "messages": [{"role": "user", "content": [
                video(clip + b"\0\0\0\x0cfree" + number.to_bytes(4, "big"))]}]}  # fmt: skip
            try:
                answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            except httpx.HTTPError:
                return
            if answer.status_code == 200:
                known.append(number)

        wait_until(lambda url=url: _is_up(url), 120)
        with ThreadPoolExecutor(3) as pool:
            for number in range(8):
                pool.submit(ask, 100 * kill + number)
            wait_until(lambda kill=kill: any(number >= 100 * kill for number in known), 120)
            time.sleep(rng.random())
            server.kill()
        assert verified(cache)
    with serving(cache=str(cache)) as client:
        for number in known:
            assert client.chat([video(clip + b"\0\0\0\x0cfree" + number.to_bytes(4, "big"))]).status_code == 200
        assert count_of(client, "avllm_files_encoded_total") == 0


def _is_up(url):
    try:
        return httpx.get(f"{url}/health", timeout=1).status_code == 200
    except httpx.HTTPError:
        return False
