"""Damage: whatever byte of a store changes, verify says so, and what is read is right or refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from store import (
    ColumnReader,
    Conversation,
    Corpus,
    DamagedError,
    Turn,
    UserError,
    load_conversations,
    open_column,
    save_conversations,
    verify_column,
)
from store.sealed import seal_json, seal_table, unseal_table
from store.verify import unknown_files, verify_tables

ROOT = Path(__file__).parents[2]
TALKS = [Conversation("1", "clip-0", (Turn("What?", "visual", "A cat"),), {"n": 1})]


def damage(storage):
    """All that verify finds, as the command finds it."""
    found = [fault for _, fault in verify_tables(storage)]
    for name in storage.names("columns"):
        try:
            column = open_column(storage, name)
        except DamagedError as error:
            found.append(str(error))
            continue
        found += [checked.fault for checked in verify_column(column, Corpus.load(storage)) if checked.fault]
    return found


def read_all(storage, small):
    """Read everything that a store holds; whatever is handed out is what was written."""
    refused = 0
    for check in (lambda: Corpus.load(storage).items == small.corpus.items,
                  lambda: load_conversations(storage, "talk") == TALKS,
                  lambda: open_column(storage, "toy-l-14").build == small.column.build):  # fmt: skip
        try:
            assert check()
        except DamagedError:
            refused += 1
    try:
        reader = ColumnReader(open_column(storage, "toy-l-14"))
    except DamagedError:
        return refused + 1
    assert reader.failed == ({} if "clip-3" not in reader.failed else {"clip-3": small.lost})
    for number in (0, 1):
        try:
            found = reader.read(f"clip-{number}")
        except DamagedError:
            refused += 1
            continue
        expected = small.arrays(number)
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
    return refused


@pytest.fixture
def small(tmp_path, build_store):
    store = build_store(tmp_path / "small", items=2)
    save_conversations(store.storage, "talk", TALKS)
    assert damage(store.storage) == []
    assert read_all(store.storage, store) == 0
    return store


FILES = ["corpus.parquet", "conversations/talk.parquet", "columns/{}/column.json", "columns/{}/000000.json",
         "columns/{}/000000.tar"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_reported_and_never_read(small, name):
    """Every byte of every file: headers, footers and padding too. Else training reads noise, or another item."""
    storage = small.storage
    path = Path(storage.path(name.format(small.column.name)))
    good = path.read_bytes()
    refused = 0
    for place in range(len(good)):
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(bytes([good[place] ^ (1 << place % 8)]))
        found = damage(storage) if name.startswith("columns") else [fault for _, fault in verify_tables(storage)]
        assert len(found) == 1, place
        assert "\n" not in found[0]
        refused += bool(read_all(storage, small))
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(good[place : place + 1])
    numbers = sum(array.nbytes for number in (0, 1) for array in small.arrays(number).values())
    assert refused == (numbers if name.endswith("tar") else len(good))
    assert damage(storage) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_any_cut_file_is_reported_and_never_read(small, name, keep):
    path = Path(small.storage.path(name.format(small.column.name)))
    path.write_bytes(path.read_bytes()[:keep])
    assert [fault for _, fault in verify_tables(small.storage)] if "parquet" in name else damage(small.storage)
    assert read_all(small.storage, small)


def test_two_shards_that_changed_places_are_noticed(toy):
    """Each is sound by itself; in the other's place it would hand out other items under the plan's order."""
    names = {(n, s): toy.column.path(f"00000{n}.{s}") for n in (0, 1) for s in ("tar", "json")}
    data = {place: toy.storage.read(name) for place, name in names.items()}
    for suffixes, fault in ((("tar",), "bytes, the sidecar says"), (("tar", "json"), "another shard")):
        for suffix in suffixes:
            for number in (0, 1):
                toy.storage.write(names[number, suffix], data[1 - number, suffix])
        faults = [checked.fault for checked in verify_column(toy.column, toy.corpus)]
        assert len(faults) == 2
        assert all(fault in each for each in faults)


def test_arrays_of_another_shape_are_noticed(disk):
    """A sound shard whose arrays are not the spec's was written by other code; stacking it would fail at hour nine."""
    other = disk.spec.model_copy(update={"features": {"temporal": disk.spec.features["temporal"]}})
    column = disk.column
    column.spec = other
    with column.write_shard(1) as writer:
        for number in (4, 5):
            writer.add(f"clip-{number}", {"temporal": disk.arrays(number)["temporal"]}, {})
    name = column.path("000001.json")
    content = json.loads(disk.storage.read(name)) | {"column": disk.spec.fingerprint}
    content.pop("xxh3")
    column.spec = disk.spec
    disk.storage.write(name, seal_json(content))
    faults = [checked.fault for checked in verify_column(column, disk.corpus) if checked.fault]
    assert faults == ["the arrays of clip-4 are not those of the column's spec"]


def test_a_strangers_file_is_named_and_harms_nothing(toy):
    """A note in a store is not damage, but no checksum covers it, so it is said."""
    toy.storage.write(toy.column.path("notes.json"), b"{}")
    toy.storage.write("columns/README", b"")
    toy.storage.write("todo", b"")
    assert set(unknown_files(toy.storage)) == {toy.column.path("notes.json"), "columns/README", "todo"}
    assert damage(toy.storage.__class__(toy.storage.url)) == []


# formats


def test_a_newer_format_is_one_clear_line(toy):
    """A store of a later version is refused with what to do, never taken for damage or misread."""
    storage = toy.storage
    save_conversations(storage, "talk", TALKS)
    newer = "format 9; this version reads formats up to 1: upgrade avllm"
    checks = {
        toy.column.path("000000.json"): lambda: ColumnReader(toy.column),
        toy.column.path("column.json"): lambda: open_column(storage, "toy-l-14"),
        "corpus.parquet": lambda: Corpus.load(storage),
        "conversations/talk.parquet": lambda: load_conversations(storage, "talk"),
    }
    for name, read in checks.items():
        good = storage.read(name)
        if name.endswith("json"):
            content = json.loads(good) | {"format": 9, "more": "of the future"}
            content.pop("xxh3")
            storage.write(name, seal_json(content))
        else:
            storage.write(name, seal_table(unseal_table(good, 1, name), 9))
        with pytest.raises(UserError, match=newer) as caught:
            read()
        assert str(caught.value).startswith(storage.where(name))
        assert not isinstance(caught.value, DamagedError)
        storage.write(name, good)
    storage.write(toy.column.path("000000.json"), seal_json({"format": 9}))
    with pytest.raises(UserError, match=newer):
        list(verify_column(toy.column, toy.corpus))


# the command


def verify(store, *words):
    command = [sys.executable, "-m", "store", "verify", store, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_the_command_says_what_to_do(small):
    """What cannot be encoded again is named with its remedy, and the remedy works."""
    storage, column = small.storage, small.column
    spoil = {name: storage.read(name) for name in (column.path("column.json"), "conversations/talk.parquet")}
    for name, good in spoil.items():
        storage.write(name, good[:-9] + b"?" + good[-8:])
    storage.write(column.path("notes.txt"), b"")
    code, out, _ = verify(storage.url)
    assert code == 1
    assert "talk.parquet: differs from its checksum, or another program wrote it; python -m featurize plan" in out
    assert "column.json: differs from its checksum; remove it" in out
    assert f"nothing reads it: {storage.where(column.path('notes.txt'))}" in out
    storage.remove(column.path("column.json"))
    assert "column.json: no such file" in verify(storage.url)[1]
    for name, good in spoil.items():
        storage.write(name, good)
    assert verify(storage.url)[0] == 0
    storage.write("corpus.parquet", b"PAR1")
    code, out, _ = verify(storage.url)
    assert code == 1
    assert "corpus.parquet: differs" in out
    assert "restore a copy" in out
    shutil.rmtree(storage.path("columns"))
    assert "settings are for --repair" in verify(storage.url, "gpus=1")[2]
