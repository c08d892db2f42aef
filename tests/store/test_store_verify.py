"""Damage: whatever byte of a store changes, verify says so, and what is read is right or refused."""

import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from store import (
    ColumnReader,
    Conversation,
    Corpus,
    DamagedError,
    Storage,
    Stream,
    Turn,
    UserError,
    create_column,
    load_conversations,
    open_column,
    save_conversations,
    verify_column,
)
from store.exchange.merge import plan_merge, run_merge
from store.exchange.transfer import load_cargo, send
from store.sealed import open_table, seal_json, write_table
from store.verify import unknown_files, verify_tables

ROOT = Path(__file__).parents[2]
TALKS = [Conversation("1", "clip-0", (Turn("What?", "visual", "A cat"),), {"n": 1})]


def damaged_tables(small):
    return [fault for _, fault in verify_tables(small.storage)]


def damaged_columns(small):
    """What the command finds in the columns."""
    try:
        column = open_column(small.storage, small.column.name)
    except DamagedError as error:
        return [str(error)]
    return damaged_shards(small, column)


def damaged_shards(small, column=None):
    found = verify_column(column or small.column, small.corpus, [0])
    return [checked.fault for checked in found if checked.fault]


def read_tables(small):
    """How many tables are refused on a machine that has no map of them; one that is not holds what was written."""
    with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, AVLLM_CACHE=cache):
        return refused(
            lambda: Corpus.load(small.storage).items == small.corpus.items,
            lambda: load_conversations(small.storage, "talk") == TALKS,
        )


def read_columns(small):
    """How many items are refused; one that is not holds what was written."""
    try:
        column = open_column(small.storage, "toy-l-14")
        assert column.build == small.column.build
        return read_shards(small, column)
    except DamagedError:
        return 2


def read_shards(small, column=None):
    reader = ColumnReader(column or small.column)
    assert reader.keys() == ["clip-0", "clip-1"]
    return refused(*(functools.partial(read_item, reader, small, number) for number in (0, 1)))


def read_item(reader, small, number):
    found, expected = reader.read(f"clip-{number}"), small.arrays(number)
    return all(np.array_equal(found[name], expected[name]) for name in expected)


def refused(*checks):
    count = 0
    for check in checks:
        try:
            assert check()
        except DamagedError:
            count += 1
    return count


@pytest.fixture
def small(tmp_path, build_store):
    store = build_store(tmp_path / "small", items=2)
    save_conversations(store.storage, "talk", TALKS)
    assert damaged_tables(store) + damaged_columns(store) == []
    assert read_tables(store) + read_columns(store) == 0
    return store


LONG = "AVLLM_LONG" in os.environ
TABLES = [(name, damaged_tables, read_tables) for name in ("corpus.parquet", "conversations/talk.parquet")]
COLUMN = [("column.json", damaged_columns, read_columns), ("000000.json", damaged_columns, read_columns)]
TAR = ("000000.tar", damaged_shards, read_shards)


def path_of(small, name):
    return Path(small.storage.path(name if "parquet" in name else small.column.path(name)))


@pytest.mark.parametrize(("name", "damaged", "read"), [*TABLES, *COLUMN, TAR])
def test_any_flipped_byte_is_reported_and_never_read(small, name, damaged, read):
    """Headers, footers and padding too. Else training reads noise, or another item."""
    path = path_of(small, name)
    good = path.read_bytes()
    places = range(0, len(good), 1 if LONG or len(good) < 5000 else 7)
    entries = [entry for item in small.column.sidecar(0).items for entry in item.arrays.values()]
    times = 0
    for place in places:
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(bytes([good[place] ^ (1 << place % 8)]))
        found = damaged(small)
        assert len(found) == 1, place
        assert "\n" not in found[0]
        times += bool(read(small))
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(good[place : place + 1])
    read_by_us = [place for place in places if any(e.offset <= place < e.offset + e.nbytes for e in entries)]
    assert times == len(read_by_us if name.endswith("tar") else places)
    assert damaged(small) == []


@pytest.mark.parametrize(("name", "damaged", "read"), [*TABLES, *COLUMN, TAR])
@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_any_cut_file_is_reported_and_never_read(small, name, damaged, read, keep):
    path = path_of(small, name)
    path.write_bytes(path.read_bytes()[:keep])
    assert len(damaged(small)) == 1
    assert read(small)


def test_two_shards_that_changed_places_are_noticed(toy):
    """Each is sound by itself; in the other's place it would hand out other items under the plan's order."""
    names = {(n, s): toy.column.path(f"00000{n}.{s}") for n in (0, 1) for s in ("tar", "json")}
    data = {place: toy.storage.read(name) for place, name in names.items()}
    for suffixes, fault in ((("tar",), "the tar differs from its checksum"), (("tar", "json"), "another shard")):
        for suffix in suffixes:
            for number in (0, 1):
                toy.storage.write(names[number, suffix], data[1 - number, suffix])
        faults = [checked.fault for checked in verify_column(toy.column, toy.corpus)]
        assert len(faults) == 2
        assert all(fault in each for each in faults)


def test_arrays_of_another_shape_are_noticed(disk):
    """A sound shard whose arrays are not the spec's was written by other code; stacking it would fail at hour nine."""
    name = disk.column.path("000001.json")
    content = json.loads(disk.storage.read(name))
    content["arrays"]["temporal"]["shape"] = [[2, 5], 2]
    disk.storage.write(name, seal_json({field: content[field] for field in content if field != "xxh3"}))
    faults = [checked.fault for checked in verify_column(disk.column, disk.corpus) if checked.fault]
    assert faults == [
        f"{disk.storage.where(name)}: its arrays 'temporal' do not fit the column's spec or the tar's size"
    ]


def test_a_strangers_file_is_named_and_harms_nothing(toy):
    """A note in a store is not damage, but no checksum covers it, so it is said."""
    toy.storage.write(toy.column.path("notes.json"), b"{}")
    toy.storage.write("columns/README", b"")
    toy.storage.write("todo", b"")
    assert set(unknown_files(toy.storage)) == {toy.column.path("notes.json"), "columns/README", "todo"}
    assert not [checked.fault for checked in verify_column(toy.column, toy.corpus) if checked.fault]


# formats


def test_a_newer_format_is_one_clear_line(toy):
    """A store of a later version is refused with what to do, never taken for damage or misread."""
    storage = toy.storage
    save_conversations(storage, "talk", TALKS)
    newer = r"format 9; this version reads formats up to [12]: upgrade avllm"
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
            with storage.local_copy(name) as path:
                table = open_table(path, 1, name).read()
            with storage.writing(name) as path:
                write_table(path, table.to_batches(), table.schema, 9)
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
    assert "talk.parquet: differs from its checksum, or another program wrote it; avllm featurize plan" in out
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


def test_an_error_about_a_shard_names_the_command_that_mends_it(tmp_path, build_store, python):
    """Of the plan there is no such command, so none is named."""
    store = build_store(tmp_path / "my store")
    sidecar = store.column.path("000001.json")
    store.storage.write(sidecar, b"{}")
    done = python("store", "card", store.storage.url)
    remedy = f"mend it: avllm featurize repair '{tmp_path}/my store'"
    assert done.stderr == f"error: {store.storage.where(sidecar)}: differs from its checksum; {remedy}\n"
    store.storage.write("corpus.parquet", b"PAR1")
    assert "mend it" not in python("store", "card", store.storage.url).stderr


@pytest.mark.parametrize("name", ["000001.json", "000001.tar"])
def test_whatever_reads_a_damaged_shard_the_remedy_is_known(disk, tmp_path, name):
    """Reading, streaming, merging and sending all blame the file by its full path."""
    path = Path(disk.storage.path(disk.column.path(name)))
    path.write_bytes(path.read_bytes()[:-1])
    for use in (
        lambda: ColumnReader(disk.column).read("clip-4"),
        lambda: Stream([ColumnReader(disk.column)], ["clip-4"])[0],
        lambda: run_merge(plan_merge(Storage(tmp_path / "all"), [disk.storage], prefix=False), bool),
        lambda: send(Storage(tmp_path / "far"), load_cargo(disk.storage, strip_uris=False), bool),
    ):
        with pytest.raises(DamagedError) as caught:
            use()
        for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):  # ranks and workers send it on
            assert (error.store, error.column, error.shard) == (disk.storage.url, disk.column.name, 1)
            assert error.remedy == f"avllm featurize repair {disk.storage.url}"


def test_counting_goes_on_past_what_is_damaged(disk, python):
    """The other shards and columns are counted; the damaged file is named on stderr, and the exit status is 1."""
    other = create_column(disk.storage, disk.spec.model_copy(update={"name": "other"}), {})
    lost = create_column(disk.storage, disk.spec.model_copy(update={"name": "lost"}), {})
    disk.fill(other, 0, ["clip-0", "clip-1", "clip-2", "clip-3"])
    disk.storage.write(disk.column.path("000000.json"), b"{}")
    disk.storage.write(lost.path("column.json"), b"{}")
    for command in ("stats", "ls"):
        done = python("store", command, disk.storage.url, "--json")
        assert done.returncode == 1
        said = json.loads(done.stdout)
        counts = {
            each["column"]: (each["shards"], each["usable"])
            for each in (said if command == "stats" else said["columns"])
        }
        assert counts == {other.name: (1, 3), disk.column.name: (1, 2)}
        first, second = done.stderr.splitlines()
        assert first.startswith(
            f"damaged: {disk.storage.where(lost.path('column.json'))}: differs from its checksum; remove"
        )
        assert second.startswith(f"damaged: {disk.storage.where(disk.column.path('000000.json'))}: differs")
        assert second.endswith(f"avllm featurize repair {disk.storage.url}")
