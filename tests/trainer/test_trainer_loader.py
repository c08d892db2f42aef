"""Batches as training takes them: read straight to their place, ahead, by threads; damaged items; stores elsewhere."""

import itertools
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from store import (
    ColumnReader,
    Conversation,
    DamagedError,
    Storage,
    Turn,
    load_conversations,
    open_column,
    parse_settings,
    save_conversations,
)
from trainer.batch import fill_passes, pack
from trainer.data import TrainingData
from trainer.features import FEATURES_OF
from trainer.llm import load_shape
from trainer.loader import LOOKAHEAD, BatchMemory, Loader, rank_batch
from trainer.prompt import ROW
from trainer.settings import TrainConfig

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture
def store(feature_store, tmp_path):
    """A copy, with conversations that name one item in two turns beside those of one."""
    storage = Storage(shutil.copytree(feature_store, tmp_path / "store"))
    twice = [
        Conversation(
            f"twice-{n}", f"clips-{n}-mp4", (Turn("What?", m, "red " * n), Turn("And now? " * n, m, "still so"))
        )
        for m in ("visual", "audio_visual")
        for n in range(6, 12)
    ]
    save_conversations(storage, "mixed", [*load_conversations(storage, "mixed"), *twice])
    return storage.root


@pytest.fixture
def settings(tiny_run, store):
    def make(**changes):
        sources = [{"store": changes.pop("store", store), "conversations": "mixed"}]
        base = {"stage": 2, "steps": 6, "output": "none", "batch_tokens": 256, "max_tokens": 256, "sources": sources}
        return parse_settings(TrainConfig, tiny_run | base | changes, "")

    return make


def data_of(config):
    return TrainingData(config, load_shape(config.model)[1])


def equal(found, expected):
    return len(found) == len(expected) and all(
        a.packing.lengths == b.packing.lengths
        and all(torch.equal(x.cpu(), y) for x, y in zip(a.tensors(), b.tensors(), strict=True))
        and all(len(rows) == 0 or rows.dtype == b.rows[name].dtype for name, rows in a.rows.items())
        for a, b in zip(found, expected, strict=True)
    )


def packed(data, config, step, rank, ranks):
    """The batch by the plain way: whole items in memory, selected, cut and copied."""
    samples = data.samples(step, rank, ranks)
    shares = fill_passes([min(len(s.tokens.ids), config.max_tokens) for s in samples], config.batch_tokens)
    return [pack([samples[n] for n in numbers], data.widths, config.max_tokens) for numbers in shares]


def contents(batch):
    """Each conversation of a pass: its tokens, the tokens it is taught, and its rows with their places."""
    bounds = batch.packing.bounds.tolist()
    for start, end in itertools.pairwise(bounds):
        taught = (batch.targets_at >= start - 1) & (batch.targets_at < end - 1)
        rows = {}
        for name, places in batch.rows_at.items():
            inside = (places >= start) & (places < end)
            rows[name] = (places[inside] - start).tolist(), batch.rows[name][inside].float().numpy().tobytes()
        yield str((batch.ids[start:end].tolist(), batch.targets[taught].tolist(), rows))


def written(sample, widths, max_tokens):
    """The same of a sample, read off its texts and arrays, with none of the code that lays out a pass."""
    ids, answers = sample.tokens.ids[:max_tokens], sample.tokens.answers[:max_tokens]
    places, arrays = {name: [] for name in widths}, {name: [] for name in widths}
    for modality, at in sample.tokens.media:
        for name in (name for name in ("temporal", "spatial", "audio") if name in FEATURES_OF[modality]):
            here = list(range(at, min(at + len(sample.arrays[name]), len(ids))))
            places[name] += here
            arrays[name].append(sample.arrays[name][: len(here)].astype("f4").tobytes())
            at += len(sample.arrays[name])
    taught = [token for token, answer in zip(ids, answers, strict=True) if answer]
    return str((
        [0 if token == ROW else token for token in ids],
        taught,
        {name: (places[name], b"".join(arrays[name])) for name in widths},
    ))  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"max_tokens": 100, "batch_tokens": 100}])
def test_a_batch_holds_what_its_conversations_say_and_show(settings, changes):
    """Each once, with its own text and its own item's rows: a text lost for all ways of packing shows here alone."""
    config = settings(steps=20, **changes)
    data = data_of(config)
    for step in range(20):
        passes = rank_batch(data, config, step, 1, 2).passes
        found = sorted(each for batch in passes for each in contents(batch))
        assert found == sorted(written(s, data.widths, config.max_tokens) for s in data.samples(step, 1, 2))


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("changes", [{}, {"frames": 2}, {"max_tokens": 100, "batch_tokens": 100}, {"audio": None}])
def test_items_read_to_their_place_are_what_copying_them_gives(settings, changes, threads):
    """Whole, sub-sampled to fewer frames, cut within their rows, and twice in one conversation."""
    config = settings(steps=20, **changes)
    data, memory = data_of(config), BatchMemory()
    with ThreadPoolExecutor(2) as pool:
        for step in range(20):
            memory.clear()
            made = rank_batch(data, config, step, 1, 2, memory.allocate, pool if threads else None)
            assert equal(made.passes, packed(data, config, step, 1, 2))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("first", range(6))
def test_batches_are_those_of_their_steps_however_memory_is_used_again(settings, device, first):
    """A batch that is overwritten while a step trains on it would teach nonsense without a word; so at any resume."""
    config = settings()
    data = data_of(config)
    found = []
    for step, batch in enumerate(Loader(data, config, 0, 1, torch.device(device)).batches(first), first):
        time.sleep(0.01)  # the next one is being made
        assert {tensor.device.type for each in batch.passes for tensor in each.tensors()} == {device}
        found.append(equal(batch.passes, packed(data, config, step, 0, 1)))
    assert found == [True] * (6 - first)


def test_memory_grows_and_is_used_again():
    memory = BatchMemory()
    for size in (100, 1000, 10, 1000):
        memory.clear()
        first, second = memory.allocate((size, 3), "f4"), memory.allocate((size,), "i8")
        first[:], second[:] = 1, 2
        assert (first == 1).all()
        assert first.shape == (size, 3)
    memory.clear()
    again = memory.allocate((5, 3), "f4")
    assert (again == 1).all(), "not the memory of the batch before"
    assert again.ctypes.data % 64 == 0


def hurt(store, column, key):
    """Flip a bit of an item."""
    index = ColumnReader(opened := open_column(Storage(store), column)).index
    row = index.row(key)
    path = Path(opened.storage.path(opened.path(f"{index.shard[row]:06d}.tar")))
    content = bytearray(path.read_bytes())
    content[index.offset[row, -1] + 3] ^= 4  # of a feature that the run reads
    path.write_bytes(content)


@pytest.mark.parametrize("threads", [False, True])
def test_the_bound_on_damaged_items_is_one_for_a_run(settings, store, threads, monkeypatch):
    """One item in each column, met by several pools and again in each epoch: they count as two."""
    hurt(store, "clip-tiny", "clips-5-mp4")
    hurt(store, "clap-tiny", "clips-9-mp4")
    config = settings(steps=50, tolerate=2)
    data, replaced = data_of(config), set()

    def replace(pending, error):
        replaced.add(pending.conversation.id)
        return TrainingData.replace(data, pending, error)

    monkeypatch.setattr(data, "replace", replace)
    with ThreadPoolExecutor(2) as pool:
        made = [rank_batch(data, config, step, 0, 1, pool=pool if threads else None) for step in range(50)]
        assert sorted(key for _, key in data.damaged) == ["clips-5-mp4", "clips-9-mp4"]
        for step, batch in enumerate(made):
            assert equal(batch.passes, packed(data, config, step, 0, 1))
        assert replaced == {"5-visual", "5-audio_visual", "9-audio", "9-audio_visual", "twice-9"}
        strict = settings(steps=50, tolerate=1)
        fewer = data_of(strict)
        with pytest.raises(DamagedError, match="differs from its checksum"):
            [rank_batch(fewer, strict, step, 0, 1, pool=pool if threads else None) for step in range(50)]


def test_where_no_sound_conversation_is_left_a_run_stops(settings, store):
    """Whatever is tolerated: else it would look for one for ever."""
    hurt(store, "clip-tiny", "clips-5-mp4")
    talk = [Conversation(str(n), "clips-5-mp4", (Turn("What?", "visual", "red"),)) for n in range(3)]
    save_conversations(Storage(store), "mixed", talk)
    config = settings(tolerate=9)
    with pytest.raises(DamagedError, match=r"clips-5-mp4\.temporal differs"):
        rank_batch(data_of(config), config, 0, 0, 1)


def test_shards_of_a_store_elsewhere_are_copied_ahead_of_their_turn(settings, store, tmp_path, monkeypatch):
    """While the first step trains, those of later ones are on their way."""
    monkeypatch.setenv("AVLLM_CACHE", str(tmp_path / "cache"))
    there = Storage(f"memory://{uuid.uuid4().hex}")
    for path in Path(store).rglob("*.*"):
        if path.is_file():
            there.write(str(path.relative_to(store)), path.read_bytes())
    changes = {"global_batch": 1, "steps": LOOKAHEAD + 20, "mixture": {"visual": 1}}
    config, near = settings(store=there.url, **changes), settings(**changes)
    data, local = data_of(config), data_of(near)
    batches = Loader(data, config, 0, 1, torch.device("cpu")).batches(0)
    first = next(batches)
    wanted = {each for step in range(LOOKAHEAD) for each in data.remote_shards(step, 0, 1)}
    assert len(wanted) == 4
    deadline = time.monotonic() + 60
    cache = tmp_path / "cache"
    while len(list(cache.rglob("*.tar"))) < len(wanted) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(cache.rglob("*.tar"))) == len(wanted)
    assert equal(first.passes, packed(local, near, 0, 0, 1))
    for step, batch in enumerate(batches, 1):
        assert equal(batch.passes, packed(local, near, step, 0, 1))
