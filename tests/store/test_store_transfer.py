"""Push and pull: a whole store, or a sound part of it, arrives at any folder, URL or hub; nothing else does."""

import itertools
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from typer.testing import CliRunner

from store import (
    Candidate,
    Conversation,
    Corpus,
    DamagedError,
    Storage,
    Turn,
    UserError,
    list_columns,
    save_conversations,
)
from store.__main__ import app
from store.exchange.transfer import load_cargo, send, strip

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))
from hub_double import serving  # noqa: E402


@pytest.fixture
def toy(tmp_path, build_store):
    """The toy store on a local disk."""
    return build_store(tmp_path / "store")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def contents(storage):
    """Content of each file of a store, without locks and the indices that remote columns have."""
    found = {str(path)[len(storage.root) :].lstrip("/"): path for path in storage.fs.find(storage.root)}
    return {
        name: storage.fs.cat_file(path) for name, path in found.items() if ".lock" not in name and "/index-" not in name
    }


def sound(store):
    """Whether `python -m store verify` finds nothing wrong."""
    url = store.url if isinstance(store, Storage) else str(store)
    return CliRunner().invoke(app, ["verify", url]).exit_code == 0


@pytest.fixture
def talking(toy):
    """The toy store with conversations, and with leftovers and foreign files that nobody wants elsewhere."""
    save_conversations(toy.storage, "chat", [Conversation("1", "clip-0", (Turn("What?", "visual", "A cat"),))])
    toy.whole = contents(toy.storage)
    toy.storage.write(toy.column.path("000009.tar"), b"no sidecar")
    toy.storage.write("notes.txt", b"mine")
    return toy


def nothing(count):
    assert count


@pytest.mark.parametrize("where", ["folder", "memory"])
def test_a_store_goes_there_and_back(talking, tmp_path, command, where):
    """What arrives is byte for byte what was sent, and verifies; leftovers and foreign files stay behind."""
    url = str(tmp_path / "far") if where == "folder" else f"memory://{uuid.uuid4().hex}/far"
    code, out, _ = command("push", talking.storage.url, url, "--license", "mit")
    assert code == 0
    assert "corpus.parquet names media as /media/clip-0.mp4" in out
    assert f"{url}: 2 shards sent, 0 were there" in out
    far = Storage(url)
    arrived = contents(far)
    assert b"license: mit" in arrived.pop("README.md")
    assert arrived == talking.whole
    assert "0 shards sent, 2 were there" in command("push", talking.storage.url, url)[1]
    code, out, _ = command("pull", url, tmp_path / "back")
    assert code == 0
    assert "2 shards fetched, 0 were there, 0 damaged" in out
    assert contents(Storage(tmp_path / "back")) == contents(far)


def test_a_dry_run_sends_nothing(talking, tmp_path, command):
    """It says what would go where, with sizes, and makes nothing."""
    code, out, _ = command("push", talking.storage.url, tmp_path / "far", "--dry-run")
    assert code == 0
    assert f"{talking.column.name}: 2 shards, 0.000 GB" in out
    assert "corpus.parquet, conversations/chat.parquet: 0.00" in out
    assert f"{tmp_path / 'far'}: 2 shards would be sent" in out
    code, out, _ = command("pull", talking.storage.url, tmp_path / "far", "--dry-run")
    assert code == 0
    assert f"{tmp_path / 'far'}: 2 shards would be fetched from {talking.storage.url}" in out
    assert not (tmp_path / "far").exists()


def test_a_copy_killed_anywhere_goes_on(talking, tmp_path, monkeypatch):
    """After each file that is published the target is sound, and the same command gives the same bytes in the end."""
    monkeypatch.setattr("store.exchange.transfer.THREADS", 1)
    cargo = load_cargo(talking.storage, strip_uris=False)
    writing = Storage.writing
    for limit in range(8):
        far, calls = Storage(tmp_path / str(limit)), itertools.count()

        def failing(self, name, calls=calls, limit=limit):
            if next(calls) == limit:
                raise Killed
            return writing(self, name)

        monkeypatch.setattr(Storage, "writing", failing)
        try:
            send(far, cargo, nothing)
        except Killed:
            monkeypatch.setattr(Storage, "writing", writing)
            assert not far.exists("corpus.parquet") or sound(far)
            send(far, cargo, nothing)
        monkeypatch.setattr(Storage, "writing", writing)
        assert contents(far) == talking.whole
    assert next(calls) == 7  # corpus, conversations, column.json, two shards


def test_what_changed_is_sent_again(talking, tmp_path):
    """New items, a shard done again, a tar cut at the target: each is mended by the same command."""
    far = Storage(tmp_path / "far")
    send(far, load_cargo(talking.storage, strip_uris=False), nothing)
    talking.fill(talking.column, 0, ["clip-0", "clip-1", "clip-3", "clip-2"][:3])
    assert send(far, load_cargo(talking.storage, strip_uris=False), nothing) == 1
    tar = tmp_path / "far" / talking.column.path("000001.tar")
    tar.write_bytes(tar.read_bytes()[:-1])
    assert send(far, load_cargo(talking.storage, strip_uris=False), nothing) == 1
    talking.corpus.append([Candidate("later", "/media/later.mp4", "video")], 4)
    talking.corpus.save(talking.storage)
    assert send(far, load_cargo(talking.storage, strip_uris=False), nothing) == 0
    assert Corpus.load(far).items == talking.corpus.items
    tables = [name for name in talking.whole if name.endswith(("tar", "json", "corpus.parquet"))]
    assert {name: far.read(name) for name in tables} == {name: talking.storage.read(name) for name in tables}


def test_another_store_is_not_written_over(talking, tmp_path, build_store, command):
    """A target with other items is refused in one line, before a byte is sent."""
    other, corpus = Storage(tmp_path / "other"), Corpus()
    corpus.append([Candidate("x", "/other/x.mp4", "video")], 4)
    corpus.save(other)
    before = contents(other)
    code, _, err = command("push", talking.storage.url, other.url)
    assert code == 2
    assert "holds a store of another plan" in err
    assert contents(other) == before


def test_a_store_that_another_process_writes_is_left_alone(talking, tmp_path, command):
    """A push, a pull and a card wait for nobody: each is refused in one line, and a card makes no store."""
    far = Storage(tmp_path / "far")
    send(far, load_cargo(talking.storage, strip_uris=False), nothing)
    before = contents(far)
    for words in (("push", talking.storage.url, far.url), ("pull", talking.storage.url, far.url), ("card", far.url)):
        with far.lock():
            code, _, err = command(*words)
        assert (code, err.count("\n")) == (2, 0)
        assert err.startswith(f"{far.url}: another process is writing to this store: process {os.getpid()} on ")
        assert contents(far) == before
    assert "no store is there" in command("card", tmp_path / "nowhere")[2]
    assert not (tmp_path / "nowhere").exists()


def test_damage_is_not_passed_on(talking, tmp_path, command):
    """A flipped byte in a tar stops the push with its name; a pull says so too; the shard does not become visible."""
    tar = Path(talking.storage.path(talking.column.path("000001.tar")))
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    far = Storage(tmp_path / "far")
    with pytest.raises(DamagedError, match=r"000001\.tar: the tar differs"):
        send(far, load_cargo(talking.storage, strip_uris=False), nothing)
    assert 1 not in list_columns(far)[0].shards()
    assert command("pull", talking.storage.url, tmp_path / "pulled")[0] == 2


def test_stripped_uris_keep_names_apart(talking, tmp_path, command):
    """Only what lies below the folder that all media share is sent; keys, shards and features stay the same."""
    assert command("push", talking.storage.url, tmp_path / "far", "--strip-uris")[0] == 0
    far = Corpus.load(Storage(tmp_path / "far"))
    assert [item.uri for item in far.items] == [f"clip-{n}.mp4" for n in range(6)]
    assert [(i.key, i.shard) for i in far.items] == [(i.key, i.shard) for i in talking.corpus.items]
    assert sound(Storage(tmp_path / "far"))
    assert command("push", talking.storage.url, tmp_path / "far", "--strip-uris")[0] == 0
    assert command("push", talking.storage.url, tmp_path / "far")[0] == 2
    for uris, expected in (
        (["/a/b/1.mp4", "/a/c/1.mp4"], ["b/1.mp4", "c/1.mp4"]),
        (["/a/b/1.mp4", "/a/bc/1.mp4"], ["b/1.mp4", "bc/1.mp4"]),
        (["s3://x/a/1.mp4", "s3://x/1.mp4"], ["a/1.mp4", "1.mp4"]),
        (["/a/1.mp4", "s3://x/1.mp4"], ["/a/1.mp4", "s3://x/1.mp4"]),
        (["/home/me/1.mp4"], ["1.mp4"]),
        ([], []),
    ):
        corpus = Corpus()
        corpus.append((Candidate(uri, uri, "video") for uri in uris), 4)
        assert [item.uri for item in strip(corpus).items] == expected


def hub_command(endpoint, folder, *words):
    """`python -m store ...` with the hub at `endpoint`."""
    env = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": "hf_test",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "store", *map(str, words)],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_a_store_goes_to_a_hub_and_back(talking, tmp_path):
    """Through the hub's own client: a private repository, each sidecar with its tar, the card last; resumable."""
    with serving() as (hub, endpoint):
        hub.fail_commit = 1
        code, _, err = hub_command(endpoint, tmp_path, "push", talking.storage.url, "me/features")
        assert (code, err.count("\n")) == (2, 1), err
        assert "me/features: " in err
        assert len(hub.commits) == 1  # plan, conversations, specs
        code, out, err = hub_command(endpoint, tmp_path, "push", talking.storage.url, "me/features", "--license", "mit")
        assert code == 0, err
        assert "me/features: 2 shards sent, 0 were there" in out
        assert hub.private == {"me/features": True}
        assert len(hub.commits) == 3
        assert len(hub.commits[1]) == 4
        assert hub.commits[2] == ["README.md"]
        sent = dict(hub.repositories["me/features"])
        assert b"license: mit" in sent.pop("README.md")
        assert sent == talking.whole
        code, out, err = hub_command(endpoint, tmp_path, "pull", "me/features", tmp_path / "back")
        assert code == 0, err
        assert "2 shards fetched, 0 were there, 0 damaged" in out
        back = contents(Storage(tmp_path / "back"))
        assert back == hub.repositories["me/features"]
        code, out, err = hub_command(endpoint, tmp_path, "push", tmp_path / "back", "me/features")
        assert "0 shards sent, 2 were there" in out, err
        assert len(hub.commits) == 3  # nothing to say


def test_a_hub_that_cannot_be_reached_is_one_line(talking, tmp_path):
    """No server, or no such repository: one line that names the repository, not a traceback."""
    with serving() as (_, endpoint):
        code, _, err = hub_command(endpoint, tmp_path, "pull", "me/nothing", tmp_path / "back")
        assert (code, err.count("\n")) == (2, 1), err
    code, _, err = hub_command(endpoint, tmp_path, "push", talking.storage.url, "me/features")
    assert (code, err.count("\n")) == (2, 1), err
    assert "me/features" in err


def test_only_a_local_store_goes_to_a_hub(build_store, tmp_path):
    """A hub's client takes files: a remote store is named as such instead of failing later."""
    from store.exchange.hub import is_repository, send_to_hub

    remote = build_store(f"memory://{uuid.uuid4().hex}/store")
    with pytest.raises(UserError, match="from a local disk"):
        send_to_hub(remote.storage, "me/x", load_cargo(remote.storage, strip_uris=False), public=False, advance=nothing)
    assert is_repository("me/features")
    for target in ("./me/features", "/me/features", "s3://me/features", "../features", str(tmp_path), "store/exchange"):
        assert not is_repository(target)
