"""Maps of tables and indices: right data or one clear line, whatever happens to their files."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import store.facts
import store.mapped
import store.maps
from store import (
    MODALITIES,
    ColumnReader,
    Conversation,
    DamagedError,
    MappedConversations,
    Storage,
    Turn,
    UserError,
    load_conversations,
    open_column,
    save_conversations,
)
from store.conversation import rows_of
from store.exchange.transfer import load_cargo, send
from store.facts import facts_of
from store.hashes import find, find_one, hash_key, hash_keys
from store.index import publish_index
from store.maps import BLOCK
from store.verify import unknown_files

ROOT = Path(__file__).parents[2]


def talk(number):
    turns = tuple(Turn(f"What {n}?", MODALITIES[(number + n) % 4], "" if number % 3 else "A cät") for n in range(1, 4))
    return Conversation(f"c{number}", f"clip-{number % 7}" if number % 5 else None, turns, {"n": number})


TALKS = [talk(number) for number in range(100)]


@pytest.fixture
def talks(tmp_path, monkeypatch):
    """A hundred conversations in small record batches."""
    monkeypatch.setattr(store.mapped, "ROWS", 8)
    monkeypatch.setattr(store.mapped, "READ_AT_ONCE", 20)
    storage = Storage(tmp_path / "talks")
    save_conversations(storage, "talk", TALKS)
    return storage


def maps(cache):
    return sorted((cache / "maps").glob("*.arrow"))


def test_mapped_conversations_are_those_that_were_saved(talks):
    """Rows of any batch, in any order and twice, are the conversations that every other reader sees."""
    mapped = MappedConversations(talks, "talk")
    assert list(mapped) == TALKS == load_conversations(talks, "talk")
    numbers = [99, 0, 8, 7, 99, 50]
    assert mapped.take(numbers) == [TALKS[n] for n in numbers]
    assert mapped.find(["clip-1", None, "none"]).tolist() == [{"clip-1": 0, None: 1}.get(c.key, -1) for c in TALKS]


TURNS = st.lists(st.builds(Turn, st.text(max_size=3), st.sampled_from(MODALITIES), st.text(max_size=3)), max_size=4)


@given(st.lists(TURNS, min_size=1, max_size=5))
def test_facts_say_what_the_conversations_say(several):
    """Training decides by them which conversations are in which pool; a slip would ask by sound about a picture."""
    conversations = [Conversation("c", None, tuple(turns)) for turns in several]
    facts = object.__new__(store.facts.Facts)
    for name, array in facts_of(rows_of(conversations), "").items():
        setattr(facts, name, array)
    for modality in MODALITIES:
        assert facts.of_modality(modality).tolist() == [c.modality == modality for c in conversations]
    for sense in ("visual", "audio"):
        assert facts.can_ask(sense).tolist() == [c.asked_by(sense) is not None for c in conversations]
        assert facts.perceives(sense).tolist() == [c.modality in (sense, "audio_visual") for c in conversations]
    assert facts.answered.tolist() == [any(t.response.strip() for t in c.turns) for c in conversations]


@pytest.mark.parametrize("text", ["\x1c\x1d", "\x85\u2003", "\u200b", "ÿ", "日", "\ufeff", " .", "\n\t "])
def test_blank_responses_are_those_that_python_finds_blank(text):
    facts = facts_of(rows_of([Conversation("c", None, (Turn("", "text", text),))]), "")
    assert bool(facts["bits"][0] & store.facts.ANSWERED) == bool(text.strip())


def test_hashes_that_begin_alike_are_told_apart():
    """Among a billion keys some do."""
    known = np.array([[1, 5], [7, 1], [7, 2], [7, 9], [9, 0]], np.uint64)
    asked = np.array([[7, 9], [7, 3], [1, 5], [9, 0], [7, 1], [10, 0], [0, 0], [9, 1]], np.uint64)
    assert find(known, asked).tolist() == [3, -1, 0, 4, 1, -1, -1, -1]
    assert find(known[:0], asked).tolist() == [-1] * 8
    assert [find_one(known, tuple(hashes)) for hashes in asked.tolist()] == find(known, asked).tolist()
    assert find_one(known[:0], (7, 9)) == -1
    keys = pa.array(["a", None, "", "日"])
    assert hash_keys(keys).tolist() == [list(hash_key(key or "")) for key in keys.to_pylist()]


def test_a_damaged_or_cut_map_is_never_believed(talks, disk, cache, monkeypatch):
    """A flipped bit gives the right data or one line, and then the same command gives the right data."""
    monkeypatch.setattr(store.maps, "BLOCK", 512)
    good = {}
    check(talks, disk)
    for path in maps(cache):
        good[path] = path.read_bytes()
    refused = 0
    for path, content in good.items():
        for place in itertools.chain(
            range(0, len(content), len(content) // 25), range(len(content) - 60, len(content), 7)
        ):
            path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
            if line := refusal(talks, disk):
                refused += 1
                assert line == f"{path}: was damaged and is removed; the same command makes it again"
                check(talks, disk)
            path.write_bytes(content)
        for size in (0, 10, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:size])
            check(talks, disk)
    assert refused > 10


def refusal(talks, disk):
    """The line with which it is refused, or None."""
    try:
        check(talks, disk)
    except DamagedError as error:
        return str(error)


def check(talks, disk):
    """Open everything anew; it is what was written."""
    mapped = MappedConversations(talks, "talk")
    assert list(mapped) == TALKS
    assert mapped.find(["clip-1"]).tolist() == [0 if c.key == "clip-1" else -1 for c in TALKS]
    reader = ColumnReader(disk.column)
    assert dict(reader.failed) == {"clip-3": disk.lost}
    for number in (0, 1, 2, 4, 5):
        found, expected = reader.read(f"clip-{number}"), disk.arrays(number)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_what_changed_is_mapped_anew(talks, disk, cache):
    """A conversation file or a shard that was written again is read as it is now."""
    check(talks, disk)
    save_conversations(talks, "talk", TALKS[:3])
    assert list(MappedConversations(talks, "talk")) == TALKS[:3]
    disk.fill(disk.column, 1, ["clip-5"])
    assert ColumnReader(disk.column).keys() == ["clip-0", "clip-1", "clip-2", "clip-5"]
    count = len(maps(cache))
    assert ColumnReader(disk.column).keys()[-1] == "clip-5"
    assert len(maps(cache)) == count


BUILDER = """
import os, signal, sys, time
from pathlib import Path
import store.index, store.mapped
from store import ColumnReader, MappedConversations, Storage, open_column
from store.console import run

killed = sys.argv[3] == "kill"

def watched(write):
    def slowly(path, *args):
        print(path.name, flush=True)
        if killed:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.5)
        write(path, *args)
    return slowly

if sys.argv[3] != "plain":
    store.index.write_arrays = watched(store.index.write_arrays)
    store.mapped.write_arrays = watched(store.mapped.write_arrays)
    store.mapped.write_rows = watched(store.mapped.write_rows)

def main():
    reader = ColumnReader(open_column(Storage(sys.argv[2]), "toy-l-14"))
    print(len(MappedConversations(Storage(sys.argv[1]), "talk")), len(reader))

run(main)
"""


def builder(talks, disk, how):
    words = [sys.executable, "-c", BUILDER, talks.root, disk.storage.root, how]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_start_together_make_each_map_once(talks, disk):
    """The ranks of a node start at the same moment; else each would read all sidecars and texts."""
    said = [each.communicate(timeout=100)[0].split() for each in [builder(talks, disk, "slow") for _ in range(3)]]
    assert [lines[-2:] for lines in said] == [["100", "5"]] * 3
    made = [line for lines in said for line in lines[:-2]]
    assert len(made) == len(set(made)) == 3


def test_a_process_killed_while_it_makes_a_map_leaves_nothing_wrong(talks, disk, cache):
    killed = builder(talks, disk, "kill")
    killed.communicate(timeout=100)
    assert killed.returncode == -9
    assert list((cache / "maps").glob("*.part"))
    check(talks, disk)
    assert not list((cache / "maps").glob("*.part"))


def test_a_full_cache_disk_is_one_line(talks, disk, cache):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
    words = [sys.executable, "-c", limit + BUILDER, talks.root, disk.storage.root, "plain"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    line = f"error: {cache}/maps: the cache cannot be written: File too large; make room, or set AVLLM_CACHE\n"
    assert (done.returncode, done.stderr) == (2, line)
    assert not maps(cache)
    check(talks, disk)


def test_a_map_larger_than_the_cache_is_refused(talks, monkeypatch):
    monkeypatch.setenv("AVLLM_CACHE_GB", "0.000001")
    with pytest.raises(UserError, match=r"AVLLM_CACHE_GB=1e-06: less than this map of 0\.000 GB"):
        MappedConversations(talks, "talk")


def test_an_unknown_modality_is_one_line(tmp_path):
    storage = Storage(tmp_path / "talks")
    save_conversations(storage, "talk", [Conversation("c7", None, (Turn("What?", "smell", "A rose"),))])
    with pytest.raises(DamagedError, match=r"talk\.parquet: conversation c7: a turn's modality is none of text"):
        MappedConversations(storage, "talk")


@pytest.mark.parametrize("root", ["memory", "s3"], indirect=True)
def test_a_published_index_is_read_in_place_of_the_sidecars(toy, cache, monkeypatch):
    """Another machine opens a remote column by a listing and one read, until the column changes."""
    sidecars = []
    read = Storage.read
    monkeypatch.setattr(Storage, "read", lambda self, name, *ends: sidecars.append(name) or read(self, name, *ends))
    publish_index(toy.column)
    publish_index(toy.column)
    sidecars.clear()
    names = [name for name in toy.column.files() if name.startswith("index-")]
    assert len(names) == 1
    column = open_column(Storage(toy.storage.url), toy.column.name)
    sidecars.clear()
    assert ColumnReader(column).keys() == ["clip-0", "clip-1", "clip-2", "clip-4", "clip-5"]
    assert sidecars == []
    toy.fill(toy.column, 1, ["clip-5"])
    assert ColumnReader(column).keys()[-1] == "clip-5"
    assert len([name for name in sidecars if name.endswith("0.json") or name.endswith("1.json")]) >= 2
    publish_index(toy.column)
    assert [name for name in toy.column.files() if name.startswith("index-")] != names
    for path in maps(cache):
        path.unlink()
    (name,) = [name for name in toy.column.files() if name.startswith("index-")]
    damaged = bytearray(toy.storage.read(toy.column.path(name)))
    damaged[len(damaged) // 2] ^= 1
    toy.storage.write(toy.column.path(name), bytes(damaged))
    assert ColumnReader(column).keys()[-1] == "clip-5"


def test_a_pushed_store_has_its_index_beside_it(disk, cache):
    """Whoever trains from there need not read every sidecar; nothing calls it a stranger's file."""
    target = Storage("memory://pushed/store")
    send(target, load_cargo(disk.storage, strip_uris=False), lambda _: None)
    names = target.names(f"columns/{disk.column.name}")
    assert sum(name.startswith("index-") for name in names) == 1
    assert unknown_files(target) == []
    assert ColumnReader(open_column(target, "toy-l-14")).keys() == ColumnReader(disk.column).keys()


def test_a_map_of_many_blocks_checks_only_what_is_read(tmp_path, monkeypatch, cache):
    """Opening costs the same whatever the size; damage elsewhere does not stop a run that never reads there."""
    monkeypatch.setattr(store.mapped, "ROWS", 64)
    storage = Storage(tmp_path / "talks")
    long = [Conversation(f"c{n}", None, (Turn("x" * 4000, "text", "yes"),)) for n in range(512)]
    save_conversations(storage, "talk", long)
    MappedConversations(storage, "talk")
    path = next(path for path in maps(cache) if ".talk" in path.name)
    content = bytearray(path.read_bytes())
    assert len(content) > 6 * BLOCK
    content[3 * BLOCK + 100] ^= 1
    path.write_bytes(content)
    mapped = MappedConversations(storage, "talk")
    assert mapped.take([0, 1, 511]) == [long[0], long[1], long[511]]
    with pytest.raises(DamagedError, match="was damaged and is removed; the same command makes it again"):
        list(mapped)
    assert not path.exists()
    assert list(MappedConversations(storage, "talk")) == long
    assert os.path.exists(path)
