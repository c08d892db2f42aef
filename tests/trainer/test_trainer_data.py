import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
from transformers import AutoTokenizer

from store import (
    Conversation,
    Corpus,
    DamagedError,
    Storage,
    Turn,
    UserError,
    parse_settings,
    save_conversations,
)
from store.care.foreign import import_column, place, plan_foreign
from store.care.video_chatgpt import find_pickles, read_video_chatgpt
from trainer.data import TrainingData
from trainer.settings import TrainConfig


def config(store, **changes):
    base = {
        "stage": 1,
        "model": "unused",
        "sources": [{"store": str(store), "conversations": "mixed"}],
        "visual": "clip-tiny",
        "audio": "clap-tiny",
        "frames": 4,
        "segments": 2,
        "output": "unused",
        "global_batch": 8,
        "steps": 3,
        "lr": 1e-3,
    }
    return parse_settings(TrainConfig, base | changes, "test")


@pytest.fixture(scope="module")
def tokenizer(tiny_llm):
    return AutoTokenizer.from_pretrained(tiny_llm)


def test_conversations_of_failed_items_are_left_out_and_counted(feature_store, tokenizer):
    """A silent clip must not be answered about by ear, and nobody should have to guess how many are missing."""
    data = TrainingData(config(feature_store), tokenizer)
    assert data.size == 91 - 2
    assert data.left_out == {"audio: absent": 2}
    assert data.counts() == {"text": 1, "visual": 30, "audio": 29, "audio_visual": 29}


def test_an_epoch_holds_every_conversation_once(feature_store, tokenizer):
    """With the data's own shares nothing is dropped and nothing comes twice before all came once."""
    data = TrainingData(config(feature_store, mixture={"visual": 1}), tokenizer)
    seen = Counter(data.sample(place).origin for place in range(60))
    assert set(seen.values()) == {2}
    assert len(seen) == 30


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_every_number_of_ranks_sees_the_same_global_batches(feature_store, tokenizer, ranks):
    """Otherwise a run on eight GPUs is not the run on one, and cannot resume as it."""
    data = TrainingData(config(feature_store), tokenizer)
    for step in (0, 7):
        alone = [s.origin for s in data.samples(step, 0, 1)]
        shared = [s.origin for rank in range(ranks) for s in data.samples(step, rank, ranks)]
        assert shared == alone


def test_modalities_are_mixed_in_every_batch_as_asked(feature_store, tokenizer):
    """Modality-augmented training: each batch holds all three, in the shares of the configuration."""
    data = TrainingData(config(feature_store, mixture={"visual": 2, "audio": 1, "audio_visual": 1}), tokenizer)
    for step in range(20):
        kinds = Counter(s.tokens.media[0][0] for s in data.samples(step, 0, 1))
        assert kinds == {"visual": 4, "audio": 2, "audio_visual": 2}


def test_a_coarser_grid_reads_a_subset_of_the_same_column(feature_store, tokenizer):
    fine = TrainingData(config(feature_store, mixture={"visual": 1}), tokenizer).sample(5)
    coarse = TrainingData(config(feature_store, mixture={"visual": 1}, frames=2), tokenizer).sample(5)
    assert fine.origin == coarse.origin
    assert (coarse.arrays["temporal"] == fine.arrays["temporal"][::2]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 3}, r"field 'frames'.*spatial\.t3.*spatial\.t2, spatial\.t4"),
        ({"segments": 4}, r"field 'segments'.*audio\.k4.*audio\.k2"),
        ({"visual": "clip-huge"}, r"no column 'clip-huge'.*clip-tiny"),
        ({"visual": "clap-tiny"}, r"field 'visual'.*is audio"),
        ({"sources": [{"store": "S", "conversations": "none"}]}, r"S: no store is there: no corpus\.parquet"),
        ({"mixture": {"text": 1}, "audio": None, "visual": None}, r"at least one names a column"),
        ({"epochs": 1.0}, r"either 'epochs' or 'steps'"),
        ({"learning_rate": 1}, r"unknown field 'learning_rate'.*lr"),
    ],
)
def test_bad_configuration_is_one_clear_line(feature_store, tokenizer, changes, message):
    with pytest.raises(UserError, match=message) as error:
        TrainingData(config(feature_store, **changes), tokenizer)
    assert "\n" not in str(error.value)


def test_a_damaged_item_stops_training_or_gives_way_to_another_conversation(feature_store, tokenizer, tmp_path, capsys):
    """Never to another clip's features under the same question; and it is said, each time."""
    sound = TrainingData(config(feature_store, mixture={"visual": 1}), tokenizer)
    before = [sound.sample(place) for place in range(30)]
    shutil.copytree(feature_store, tmp_path / "store")
    for tar in (tmp_path / "store" / "columns").glob("clip-tiny.*/*.tar"):
        data = bytearray(tar.read_bytes())
        if (at := data.find(before[0].arrays["temporal"].tobytes())) >= 0:
            data[at] ^= 1
            tar.write_bytes(data)
    changes = {"mixture": {"visual": 1}, "sources": [{"store": str(tmp_path / "store"), "conversations": "mixed"}]}
    with pytest.raises(DamagedError, match="differs from its checksum"):
        TrainingData(config(feature_store, **changes), tokenizer).sample(0)
    hurt = TrainingData(config(feature_store, **changes, tolerate=1), tokenizer)
    after = [hurt.sample(place) for place in range(30)]
    assert [place for place in range(30) if after[place].origin != before[place].origin] == [0]
    twin = next(sample for sample in before if sample.origin == after[0].origin)
    assert after[0].tokens == twin.tokens
    assert np.array_equal(after[0].arrays["temporal"], twin.arrays["temporal"])
    assert f"replaced by {twin.origin.split()[0]}: " in capsys.readouterr().out


def test_imported_features_are_trained_on_like_others(tmp_path, tokenizer):
    """Video-ChatGPT's pickles, one of a short clip and one that is broken: joined, counted and read by the trainer."""
    rows = np.random.default_rng(0).standard_normal((104, 8)).astype(np.float16)
    short = np.where((np.arange(104) < 60)[:, None] | (np.arange(104) >= 100)[:, None], rows, 0).astype(np.float16)
    for name, content in (("whole", pickle.dumps(rows)), ("short", pickle.dumps(short)), ("broken", b"no pickle")):
        (tmp_path / f"{name}.pkl").write_bytes(content)
    storage, corpus = Storage(tmp_path / "store"), Corpus()
    foreign = read_video_chatgpt(find_pickles(tmp_path), "theirs", lambda _: None)
    plan_foreign(corpus, foreign, "video", 2)
    corpus.save(storage)
    list(import_column(storage, corpus, foreign, place(corpus, foreign, "here")))
    talks = [Conversation(k, k, (Turn("What?", "visual", "A cat"),)) for k in ("whole", "short", "broken")]
    save_conversations(storage, "mixed", talks)
    data = TrainingData(config(storage.url, visual="theirs", audio=None, frames=100), tokenizer)
    assert (data.size, data.left_out) == (2, {"visual: unreadable": 1})
    found = {sample.origin.split()[0]: sample.arrays for sample in data.some_items(2)}
    assert {name: len(arrays["temporal"]) for name, arrays in found.items()} == {"whole": 100, "short": 60}
    assert np.array_equal(found["short"]["spatial"], rows[100:])
    assert data.builds["visual"] == {"imported": "video-chatgpt"}
