"""The stream: items out of several columns, into given memory and in batches; order; processes; damage."""

import copy
import itertools
import json
import os
import pickle
import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader

import store.reader
import store.tars
from store import (
    ColumnReader,
    ColumnSpec,
    DamagedError,
    Feature,
    Order,
    Storage,
    Stream,
    UserError,
    create_column,
    open_column,
    places_of,
)

KEYS = ["clip-0", "clip-1", "clip-2", "clip-4", "clip-5"]  # the usable ones of `toy`
ITEMS = 41
HEARD = ColumnSpec(
    name="ear", modality="audio", numerics={}, features={"audio": Feature(shape=(2, 3), dtype="float32")}
)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert found[name].shape == expected[name].shape
        assert np.array_equal(found[name], expected[name])


def numbers(batch):
    return batch.arrays["audio"][:, 0, 0].astype(int).tolist()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A column of 41 items in shards of 1 to 7; every number of item `i` is i."""
    column = create_column(Storage(tmp_path_factory.mktemp("many")), HEARD, {})
    keys = iter(range(ITEMS))
    for shard in range(12):
        with column.write_shard(shard) as writer:
            for number in itertools.islice(keys, 1 + shard % 7 if shard < 11 else None):
                writer.add(f"i{number}", {"audio": np.full((2, 3), number, np.float32)}, {})
    return column


@pytest.fixture(scope="module")
def stream(many):
    reader = ColumnReader(many)
    assert len(reader) == ITEMS
    return Stream([reader], reader.keys())


# what a batch holds


def test_a_batch_equals_its_items(toy):
    """Packed rows, bounds and fixed shapes give back what was written, of two columns, where one lacks an item."""
    heard = create_column(toy.storage, HEARD, {})
    written = {key: dict(toy.arrays(int(key[5:]))) for key in KEYS} | {"clip-3": {}, None: {}}
    with heard.write_shard(0) as writer:
        for number in (0, 1, 3):
            written[f"clip-{number}"]["audio"] = np.full((2, 3), number, np.float32)
            writer.add(f"clip-{number}", {"audio": written[f"clip-{number}"]["audio"]}, {})
    keys = [*KEYS, None, "clip-3"]
    readers = [ColumnReader(toy.column), ColumnReader(heard)]
    places = [[0, 3, 1], [5], [6, 6, 2, 4], [5, 2]]
    stream = Stream(readers, keys)
    for batch, asked in zip(map(stream.__getitems__, places), places, strict=True):
        assert (batch.places, batch.keys) == (tuple(asked), tuple(keys[p] for p in asked))
        assert len(batch) == len(asked)
        for number, key in enumerate(batch.keys):
            same(batch.item(number), written[key])
        assert batch.arrays["temporal"].shape[0] == batch.bounds["temporal"][-1]
        assert batch.held["audio"].tolist() == [key in readers[1] for key in batch.keys]


def test_only_the_features_asked_for_are_read_and_checked(toy):
    """A run reads one of the grids of a column; the others must not cost a read."""
    reader = ColumnReader(toy.column)
    batch = Stream([reader], KEYS, ["spatial.t4"]).__getitems__([0, 1])
    assert batch.arrays["spatial.t4"].shape == (2, 3)
    assert batch.arrays.keys() == {"spatial.t4"}
    assert reader.checked.sum() == 2


@pytest.mark.parametrize(
    ("keys", "features", "message"),
    [(["clip-3"], None, "moov atom"), (["clip-9"], None, "no item 'clip-9'"), (KEYS, ["audio"], "'audio'.*temporal")],
)
def test_what_is_not_there_is_refused_on_opening(toy, keys, features, message):
    """Not at step 40,000."""
    with pytest.raises(UserError, match=message):
        Stream([ColumnReader(toy.column)], keys, features)


def test_two_columns_with_one_name_are_refused(toy):
    """Else one would hide the other."""
    with pytest.raises(UserError, match=r"'spatial\.t4'.*both"):
        Stream([ColumnReader(toy.column)] * 2, KEYS)


def test_arrays_are_read_to_where_they_are_wanted(toy):
    """Training's way: some features of an item, into parts of larger memory, and nothing beside them is touched."""
    stream = Stream([ColumnReader(toy.column)], KEYS)
    for place, key in enumerate(KEYS):
        for names in (["temporal"], ["spatial.t4", "temporal"]):
            expected = {name: toy.arrays(int(key[5:]))[name] for name in names}
            assert {n: shape for n, shape in stream.shapes(place).items() if n in names} == {
                name: array.shape for name, array in expected.items()
            }
            memory = {name: np.full((2 + len(a), *a.shape[1:]), 7, a.dtype) for name, a in expected.items()}
            stream.read_item_into(place, {name: array[1:-1] for name, array in memory.items()})
            for name, array in memory.items():
                assert np.array_equal(array[1:-1], expected[name])
                assert (array[0] == 7).all()
                assert (array[-1] == 7).all()


@pytest.mark.parametrize("gap", [0, 1 << 20])
def test_arrays_far_apart_in_a_tar_are_read_by_calls_of_their_own(toy, monkeypatch, gap):
    """What lies between is read and thrown away only where that is little."""
    calls, preadv = [], os.preadv
    monkeypatch.setattr(store.reader, "GAP", gap)
    monkeypatch.setattr(store.tars.os, "preadv", lambda *words: (calls.append(words), preadv(*words))[1])
    reader = ColumnReader(toy.column)
    for number, key in ((0, "clip-0"), (4, "clip-4")):
        calls.clear()
        arrays = reader.read(key)
        same(arrays, toy.arrays(number))
        assert len(arrays) > 1
        assert len(calls) == (1 if gap else len(arrays))


def test_threads_read_from_one_reader(many):
    """A first epoch is read, and its checksums compared, by several threads at once."""
    reader = ColumnReader(many)
    stream = Stream([reader], reader.keys())
    memory = np.empty((40 * ITEMS, 2, 3), np.float32)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: stream.read_item_into(n % ITEMS, {"audio": memory[n]}), range(len(memory))))
    assert (memory == np.arange(len(memory), dtype=np.float32)[:, None, None] % ITEMS).all()
    assert reader.checked.all()


# order, ranks, workers, resume


def steps(stream, order, first, last, batch, rank=0, ranks=1):
    """The items of the steps of one rank."""
    places = ([order[c] for c in places_of(step, batch, rank, ranks)] for step in range(first, last))
    return [numbers(stream.__getitems__(each)) for each in places]


@pytest.mark.parametrize("batch", [1, 4, 12, 48])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 48])
def test_nothing_is_dropped_or_repeated(stream, ranks, batch):
    """Over ranks x batch, with fewer items than ranks too: each epoch holds each item once."""
    if batch % ranks:
        with pytest.raises(AssertionError):
            places_of(0, batch, 0, ranks)
        return
    order, count = Order(ITEMS, 5), ITEMS  # so many steps are `batch` epochs
    parts = [steps(stream, order, 0, count, batch, rank, ranks) for rank in range(ranks)]
    whole = [number for step in zip(*parts, strict=True) for part in step for number in part]
    assert len(whole) == batch * ITEMS
    for epoch in range(batch):
        assert sorted(whole[epoch * ITEMS : (epoch + 1) * ITEMS]) == list(range(ITEMS))


def test_a_run_resumes_exactly_at_every_step(stream):
    """The state is the step alone, through JSON, into fresh objects."""
    order = Order(ITEMS, 7)
    whole = steps(stream, order, 0, 15, 8)
    for step in range(15):
        state = json.dumps({"step": step})
        fresh = pickle.loads(pickle.dumps((stream, order)))
        assert steps(*fresh, json.loads(state)["step"], 15, 8) == whole[step:]


@pytest.mark.parametrize("chain", [(8, 2, 8), (1, 120, 3), (5, 4, 6)])
def test_ranks_may_change_between_steps(stream, chain):
    """The elastic matrix: a run goes on at any number of ranks, more than once, and sees the same global batches."""
    order, whole = Order(ITEMS, 7), steps(stream, Order(ITEMS, 7), 0, 6, 120)
    found = []
    for number, ranks in enumerate(chain):
        parts = [steps(stream, order, 2 * number, 2 * number + 2, 120, rank, ranks) for rank in range(ranks)]
        found += [[n for part in step for n in part] for step in zip(*parts, strict=True)]
    assert found == whole


@pytest.mark.parametrize(("workers", "context"), [(0, None), (1, "fork"), (2, "fork"), (1, "spawn")])
def test_a_data_loader_gives_the_same_batches(stream, workers, context):
    """torch's DataLoader asks for whole batches, in its own processes too; fork after threads have run is safe."""
    order = Order(ITEMS, 7)
    places = [[order[c] for c in places_of(step, 8, 0, 1)] for step in range(6)]
    loader = DataLoader(
        stream,
        batch_sampler=places,
        num_workers=workers,
        collate_fn=copy.copy,  # a spawned process can import it
        multiprocessing_context=context,
    )
    assert [numbers(batch) for batch in loader] == steps(stream, order, 0, 6, 8)


# damage


@pytest.fixture
def hurt(many, tmp_path):
    """A copy of `many` in which items 3 and 4, in one shard, and 40, the last, have a flipped bit."""
    shutil.copytree(many.storage.root, tmp_path / "hurt")
    column = open_column(Storage(tmp_path / "hurt"), "ear")
    index = ColumnReader(column).index
    for number in (3, 4, 40):
        path = Path(column.storage.path(column.path(f"{index.shard[number]:06d}.tar")))
        data = bytearray(path.read_bytes())
        data[index.offset[number, 0] + 5] ^= 4
        path.write_bytes(data)
    return column


def test_a_damaged_item_stops_the_stream(hurt):
    """Unless told otherwise; the message names file and key."""
    reader = ColumnReader(hurt)
    stream = Stream([reader], reader.keys())
    assert numbers(stream.__getitems__([0, 1])) == [0, 1]
    for read in (
        lambda: stream.__getitems__([2, 3]),
        lambda: stream.read_item_into(3, {"audio": np.empty((2, 3), "f4")}),
    ):
        with pytest.raises(DamagedError, match=r"columns/ear.*\.tar: i3\.audio differs from its checksum"):
            read()


def test_a_tolerated_item_is_replaced_by_its_neighbour_and_recorded(hurt):
    """Always by the same one, in its own place: the rest of the stream does not move."""
    reader = ColumnReader(hurt)
    stream = Stream([reader], reader.keys(), tolerate=3)
    for _ in range(2):
        places = [list(range(i, i + 4)) for i in range(0, 40, 4)] + [[40]]
        found = [n for batch in map(stream.__getitems__, places) for n in numbers(batch)]
        assert found == [0, 1, 2, 5, 5, *range(5, 40), 0]
        assert [(place, r.key, r.by) for place, r in stream.replaced.items()] == [
            (3, "i3", 4), (4, "i4", 5), (40, "i40", 0)
        ]  # fmt: skip
    assert all("differs from its checksum" in r.reason for r in stream.replaced.values())


def test_where_no_sound_item_is_left_the_stream_stops(hurt):
    """Whatever is tolerated: else it would look for one for ever."""
    reader = ColumnReader(hurt)
    with pytest.raises(DamagedError, match=r"i[34]\.audio differs"):
        Stream([reader], ["i3", "i4"], tolerate=9)[0]


def test_no_more_are_replaced_than_are_tolerated(hurt):
    """A store that rots is not trained on."""
    reader = ColumnReader(hurt)
    stream = Stream([reader], reader.keys(), tolerate=2)
    assert [numbers(stream.__getitems__([place])) for place in (3, 4)] == [[5], [5]]
    with pytest.raises(DamagedError, match="i40"):
        stream[40]


@pytest.mark.parametrize("change", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-512])])
def test_a_missing_or_cut_tar_names_itself(hurt, change):
    """Its size is compared when it is opened."""
    change(Path(hurt.storage.path(hurt.path("000000.tar"))))
    reader = ColumnReader(hurt)
    with pytest.raises(DamagedError, match=r"000000\.tar"):
        Stream([reader], reader.keys())[0]
    same(Stream([reader], reader.keys(), tolerate=1)[0], {"audio": np.full((2, 3), 1, np.float32)})


def test_a_tar_cut_while_it_is_open_is_noticed(hurt):
    """A short read is not a batch with old numbers at its end."""
    reader = ColumnReader(hurt)
    stream = Stream([reader], reader.keys())
    stream[5]
    path = Path(hurt.storage.path(hurt.path(f"{reader.index.shard[5]:06d}.tar")))
    path.write_bytes(path.read_bytes()[: reader.index.offset[5, 0] + 3])
    with pytest.raises(DamagedError, match="shorter than its sidecar says"):
        stream[5]


# other file systems


def test_shards_of_another_file_system_come_through_the_cache(many, stream, tmp_path, monkeypatch):
    """Each is fetched once, whole, and the batches are the same."""
    monkeypatch.setenv("AVLLM_CACHE", str(tmp_path))
    there = Storage(f"memory://{uuid.uuid4().hex}")
    for name in many.storage.names(many.path("")):
        there.write(many.path(name), many.storage.read(many.path(name)))
    reader = ColumnReader(open_column(there, "ear"))
    remote, order = Stream([reader], reader.keys()), Order(ITEMS, 1)
    assert [len(remote.remote_shards(place)) for place in range(ITEMS)] == [1] * ITEMS
    assert not any(stream.remote_shards(place) for place in range(ITEMS))
    assert steps(remote, order, 0, 12, 8) == steps(stream, order, 0, 12, 8)
    assert len(list(tmp_path.rglob("*.tar"))) == 12
