"""Shards: bytes, other readers, damage, killed writers, other file systems, the command."""

import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from store import (
    Candidate,
    ColumnReader,
    ColumnSpec,
    Conversation,
    DamagedError,
    Failure,
    Feature,
    Storage,
    Turn,
    UserError,
    column_stats,
    create_column,
    save_conversations,
    verify_column,
)

ROOT = Path(__file__).parents[2]
KEYS = ["clip-0", "clip-1", "clip-2", "clip-4", "clip-5"]  # the usable ones of `toy`


def folder_of(toy):
    return Path(toy.storage.path(toy.column.path("")))


def sha(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert np.array_equal(found[name], expected[name])
        assert found[name].shape == expected[name].shape


def faults(toy):
    return [checked.fault for checked in verify_column(toy.column, toy.corpus) if checked.fault]


def files_of(toy):
    """Every file of the column, with its bytes."""
    folder = toy.column.path("")[:-1]
    return {name: toy.storage.read(f"{folder}/{name}") for name in toy.storage.names(folder)}


def visible(folder):
    return sorted(p.name for p in Path(folder).rglob("*") if p.is_file() and p.name not in (".lock", "column.json"))


# bytes and readers


def test_a_retry_writes_the_same_bytes(toy):
    """A shard's bytes follow from its items alone; else a retry would break checksums and readers of the first."""
    before = files_of(toy)
    toy.fill(toy.column, 0, [f"clip-{n}" for n in range(4)])
    assert files_of(toy) == before


def test_other_tools_read_what_we_read(disk):
    """Plain WebDataset and tarfile see the same items, order and numbers; the tars are no format of our own."""
    reader = ColumnReader(disk.column)
    tar = folder_of(disk) / "000000.tar"
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == ["clip-0", "clip-1", "clip-2"]
    for sample in samples:
        found = {n.removesuffix(".npy"): a for n, a in sample.items() if n.endswith(".npy")}
        same(found, reader.read(sample["__key__"]))
        assert sample["json"] == {"seconds": 1.5, "key": sample["__key__"]}
    with tarfile.open(tar) as archive:
        members = archive.getmembers()
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {(0, 0, 0, "", 0o644)}
        assert len(members) == 3 * 3


def test_reader_returns_what_was_written(toy):
    """Every array of every item comes back equal, in the corpus's order; also one of length zero."""
    reader = ColumnReader(toy.column)
    assert reader.keys() == KEYS
    assert len(reader) == len(KEYS)
    for key in KEYS:
        same(reader.read(key), toy.arrays(int(key[5:])))
        same(reader.read(key), toy.arrays(int(key[5:])))  # the second time nothing is checked
        assert reader.shape(key, "temporal") == toy.arrays(int(key[5:]))["temporal"].shape


CAPTIONS = {
    "clip-4": ["a red square", 'ein „Quadrat" \\ \n тёмный'],
    "clip-5": [],
}


@pytest.fixture
def written(toy):
    """A column of texts beside an array."""
    features = {"caption": Feature(shape=(None,), dtype="text"), "score": Feature(shape=(2,), dtype="float32")}
    spec = ColumnSpec(name="blip-toy", modality="visual", numerics={"version": 1}, features=features)
    column = create_column(toy.storage, spec, {})
    with column.write_shard(1) as writer:
        for key, texts in CAPTIONS.items():
            writer.add(key, {"caption": np.array(texts, np.str_), "score": np.ones(2, np.float32)}, {"seconds": 1})
    return column


def test_texts_are_written_and_read_like_arrays(written, tmp_path):
    """Captions are a column as features are: ours and WebDataset's reading agree, and damage is seen."""
    reader = ColumnReader(written)
    tar = written.path("000001.tar")
    (tmp_path / "copy.tar").write_bytes(written.storage.read(tar))
    samples = list(webdataset.WebDataset(str(tmp_path / "copy.tar"), shardshuffle=False).decode())
    assert {sample["__key__"]: sample["caption.json"] for sample in samples} == CAPTIONS
    assert [sample["json"] for sample in samples] == [{"seconds": 1}] * 2
    for key, texts in CAPTIONS.items():
        found = reader.read(key)["caption"]
        assert (found.dtype.kind, found.tolist(), reader.shape(key, "caption")) == ("U", texts, (len(texts),))
        np.testing.assert_array_equal(reader.read(key)["score"], np.ones(2, np.float32))
    good = written.storage.read(tar)
    entry = written.sidecar(1).items[0].arrays["caption"]
    written.storage.write(tar, good[: entry.offset + 3] + b"A" + good[entry.offset + 4 :])
    if written.storage.local:  # elsewhere the sound copy in the cache is read
        with pytest.raises(DamagedError, match=r"clip-4\.caption differs from its checksum"):
            ColumnReader(written).read("clip-4")


def test_numbers_lie_aligned_in_the_tar(toy):
    """At multiples of 64 bytes, as they are in memory: any program may map them without copying."""
    reader = ColumnReader(toy.column)
    for shard in toy.column.shards():
        tar = toy.storage.read(toy.column.path(f"{shard:06d}.tar"))
        for item in toy.column.sidecar(shard).items:
            for name, entry in item.arrays.items():
                assert entry.offset % 64 == 0
                expected = reader.read(item.key)[name]
                mapped = np.frombuffer(tar, expected.dtype, expected.size, entry.offset)
                assert np.array_equal(mapped.reshape(expected.shape), expected)


def test_a_failed_item_says_why(toy):
    """A failure is a record with its reason, never a zero vector, and the reader hands the reason on."""
    reader = ColumnReader(toy.column)
    assert "clip-3" not in reader
    assert reader.failed == {"clip-3": toy.lost}
    with pytest.raises(UserError, match="moov atom not found"):
        reader.read("clip-3")
    with pytest.raises(UserError, match="no item 'clip-9'"):
        reader.read("clip-9")
    stats = column_stats(toy.column, toy.corpus)
    assert (stats.usable, stats.by_code, stats.shards, stats.planned) == (5, {"unreadable": 1}, 2, 2)


def test_another_file_system_holds_the_same_bytes(toy, build_store, tmp_path):
    """A store on an object store is the one on disk, byte for byte."""
    assert files_of(toy) == files_of(build_store(tmp_path / "other"))
    assert faults(toy) == []


# damage


@pytest.mark.parametrize("suffix", ["tar", "json"])
@pytest.mark.parametrize("keep", [0, 1, 512, 540, -1])
def test_a_cut_file_is_reported(toy, suffix, keep):
    """A truncated tar or sidecar is reported by verify and refused by the reader."""
    name = toy.column.path(f"000000.{suffix}")
    toy.storage.write(name, toy.storage.read(name)[:keep])
    assert len(faults(toy)) == 1
    with pytest.raises(DamagedError):
        ColumnReader(toy.column).read("clip-0")


@pytest.mark.parametrize("suffix", ["tar", "json"])
@pytest.mark.parametrize("place", [0, 0.5, -1])
def test_a_flipped_byte_is_reported(toy, suffix, place):
    """Wherever it is: in a header, in a number, in the end of the file, whose size stays the same."""
    name = toy.column.path(f"000000.{suffix}")
    content = bytearray(toy.storage.read(name))
    content[int(place * len(content)) if place == 0.5 else place] ^= 1
    toy.storage.write(name, bytes(content))
    assert len(faults(toy)) == 1


def test_a_missing_tar_is_reported(toy):
    """A sidecar whose tar is gone is damage, not an empty shard."""
    toy.storage.remove(toy.column.path("000000.tar"))
    assert faults(toy) == ["the tar is missing"]
    with pytest.raises(DamagedError, match=r"000000\.tar"):
        ColumnReader(toy.column).read("clip-0")


@pytest.mark.parametrize(
    "keys",
    [
        ["clip-0", "clip-1", "clip-3"],  # one is missing
        ["clip-1", "clip-0", "clip-2", "clip-3"],  # another order
        ["clip-0", "clip-1", "clip-2", "clip-3", "clip-4"],  # one too many
        ["clip-0", "clip-1", "clip-1", "clip-2", "clip-3"],  # twice
        ["clip-0", "clip-1", "clip-2", "clip-5", "clip-3"],
        ["clip-0", "clip-1", "clip-2", "clip-3", "clip-3x"],  # a failure of no planned item
    ],
)
def test_verify_notices_items_that_differ_from_the_plan(toy, keys):
    """A shard holds exactly the plan's items in the plan's order; else a count is right and a column is shifted."""
    with toy.column.write_shard(0) as writer:
        for key in keys:
            if key.startswith("clip-3"):
                writer.fail(Failure(key=key, code="missing", reason="gone"))
            else:
                writer.add(key, toy.arrays(int(key[5:])), {})
    assert [fault.rpartition(": ")[2] for fault in faults(toy)] == ["its items are not those of the corpus plan"]


def test_a_shard_of_another_place_is_noticed(toy):
    """A sound shard copied over another, or one the plan does not know, is damage."""
    for suffix in ("tar", "json"):
        toy.storage.write(toy.column.path(f"000001.{suffix}"), toy.storage.read(toy.column.path(f"000000.{suffix}")))
    assert "belongs to another shard or column" in faults(toy)[0]
    with pytest.raises(DamagedError, match="another shard"):
        ColumnReader(toy.column)
    toy.fill(toy.column, 1, ["clip-4", "clip-5"])
    toy.fill(toy.column, 1000000, ["clip-0"])
    assert toy.column.shards() == [0, 1, 1000000]
    assert [fault.rpartition(": ")[2] for fault in faults(toy)] == ["its items are not those of the corpus plan"]


# writers that do not finish


def test_a_shard_without_a_sidecar_is_not_there(toy):
    """Visibility is the sidecar's alone: without it the shard is written again; foreign files do not count."""
    toy.storage.remove(toy.column.path("000000.json"))
    toy.storage.write(toy.column.path("notes.json"), b"{}")
    assert toy.column.shards() == [1]
    assert ColumnReader(toy.column).keys() == ["clip-4", "clip-5"]
    assert faults(toy) == []


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_visible(root, build_store, stop):
    """A shard appears whole or not at all, whatever stops its writer, Ctrl-C too."""
    toy = build_store(root, items=0)
    with contextlib.suppress(stop), toy.column.write_shard(7) as writer:
        writer.add("clip-0", toy.arrays(0), {})
        raise stop
    assert list(files_of(toy)) == ["column.json"]
    if toy.storage.local:
        assert [p.name for p in folder_of(toy).iterdir()] == ["column.json"]


CHILD = """
import os, sys, time
import store.column, store.storage
from store import Storage, open_column

url, stage = sys.argv[1:]
sys.path.insert(0, os.path.join(os.getcwd(), "tests", "store"))
from conftest import arrays

def hang(*_):
    print("ready", flush=True)
    time.sleep(60)

column = open_column(Storage(url), "toy-l-14")
replace = os.replace
if stage == "tar written":
    os.replace = hang
if stage == "tar published":
    store.column.save_sidecar = hang
if stage == "sidecar written":
    os.replace = lambda a, b: hang() if str(b).endswith(".json") else replace(a, b)
with Storage(url).lock(), column.write_shard(1) as writer:
    writer.add("clip-4", arrays(4), {"seconds": 1.5, "key": "clip-4"})
    writer._file.flush()
    if stage == "half an item":
        writer._file.write(b"x" * 100)
        writer._file.flush()
        hang()
    writer.add("clip-5", arrays(5), {"seconds": 1.5, "key": "clip-5"})
"""


@pytest.mark.parametrize("stage", ["half an item", "tar written", "tar published", "sidecar written"])
def test_a_killed_writer_leaves_nothing_behind(disk, stage):
    """SIGKILL at any stage leaves the shard not there; the next run clears up and writes the same bytes."""
    folder = folder_of(disk)
    before = {name: sha(folder / name) for name in visible(folder)}
    for suffix in ("tar", "json"):
        (folder / f"000001.{suffix}").unlink()
    child = subprocess.Popen([sys.executable, "-c", CHILD, disk.storage.url, stage], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(UserError, match="another process"), Storage(disk.storage.url).lock():
            pass
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert disk.column.shards() == [0]
    assert ColumnReader(disk.column).keys() == ["clip-0", "clip-1", "clip-2"]
    assert faults(disk) == []
    left = [name for name in visible(folder) if name.startswith(".tmp-")]
    assert len(left) == (stage != "tar published")
    assert not set(left) & set(disk.storage.names(f"columns/{disk.column.name}"))
    with disk.storage.lock():
        assert not [name for name in visible(folder) if name.startswith(".tmp-")]
        disk.fill(disk.column, 1, ["clip-4", "clip-5"])
    assert {name: sha(folder / name) for name in visible(folder)} == before


def test_the_lock_is_let_go(toy):
    """A lock ends with its block, also by an exception; else one failed run would lock a store for ever."""
    with pytest.raises(RuntimeError), toy.storage.lock():
        raise RuntimeError
    with toy.storage.lock(), pytest.raises(UserError, match=toy.storage.url), Storage(toy.storage.url).lock():
        pass


# the command


def command(*words):
    done = subprocess.run([sys.executable, "-m", "store", *words], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_long_name_is_never_cut(disk):
    """It folds: a name that ends in an ellipsis cannot be given to another command."""
    name = "a-very-long-name-of-an-encoder" * 3
    features = {f"spatial.t{n}": Feature(shape=(3,), dtype="float32") for n in (4, 8, 16, 32)}
    column = create_column(disk.storage, disk.spec.model_copy(update={"name": name, "features": features}), {})
    out = command("ls", disk.storage.url)[1]
    assert "\u2026" not in out
    cells = [[cell.strip() for cell in line.split("\u2502")] for line in out.splitlines() if "\u2502" in line]
    assert column.name in "".join(cell[1] for cell in cells)


def test_scripts_read_one_json_document(disk):
    """The same counts as the tables show, whole and in full precision, and nothing else on stdout."""
    save_conversations(disk.storage, "chat", [Conversation("1", "clip-0", (Turn("What?", "visual", "A cat"),))])
    size = sum(disk.column.sidecar(shard).tar_bytes for shard in (0, 1))
    counts = {
        "column": disk.column.name,
        "shards": 2,
        "planned": 2,
        "usable": 5,
        "not_usable": {"unreadable": 1},
        "bytes": size,
    }
    features = {"temporal": {"shape": [None, 4], "dtype": "float16"}, "spatial.t4": {"shape": [3], "dtype": "float32"}}
    code, out, _ = command("ls", disk.storage.url, "--json")
    assert code == 0
    assert json.loads(out) == {
        "items": 6,
        "shards": 2,
        "columns": [counts | {"modality": "visual", "features": features}],
        "conversations": {"chat": 1},
    }
    code, out, _ = command("stats", disk.storage.url, "--json")
    assert code == 0
    assert json.loads(out) == [counts | {"failures": [disk.lost.model_dump()]}]
    shutil.rmtree(disk.storage.path("columns"))
    assert json.loads(command("stats", disk.storage.url, "--json")[1]) == []


def test_the_command_lists_counts_and_verifies(disk):
    """`python -m store` works as a process; verify's exit status is what a script goes by."""
    disk.corpus.append([Candidate("later", "/media/later.mp4", "video")], 4)
    disk.corpus.save(disk.storage)
    code, out, _ = command("ls", disk.storage.url)
    assert code == 0
    assert "7 items in 3 shards" in out
    assert disk.column.name in out
    code, out, _ = command("stats", disk.storage.url)
    assert code == 0
    assert "2/3 shards, 5 usable, 1 not (1 unreadable)" in out
    assert "clip-3: moov atom not found" in out
    code, out, _ = command("verify", disk.storage.url)
    assert code == 0
    assert "2 shards checked, 0 damaged, 1 not featurized yet" in out
    path = folder_of(disk) / "000001.tar"
    path.write_bytes(path.read_bytes()[:-1])
    code, out, _ = command("verify", disk.storage.url)
    assert code == 1
    assert "shard 1: the tar has" in out


@pytest.mark.parametrize("words", [("ls", "{}/none"), ("stats", "{}", "--column", "clap"), ("verify", "{}/none")])
def test_an_error_of_the_users_is_one_line(disk, words):
    """A missing store or column is one line on stderr and exit status 2, not a traceback."""
    code, out, err = command(*(word.format(disk.storage.url) for word in words))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")


def test_ctrl_c_says_that_nothing_is_lost():
    """Ctrl-C ends a command with status 130 and a word to the user; typer alone ends it in silence."""
    code = (
        "import time, store.console as c; app = c.make_app('x');"
        "app.command()(lambda: (print(flush=True), time.sleep(60))); c.run(app)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it for what it puts behind
    )
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, err.count(b"\n")) == (130, 1)
    assert err.startswith(b"stopped")
