import math
import pickle
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import xxhash
from transformers import AutoTokenizer

from store import (
    Conversation,
    Corpus,
    DamagedError,
    Phase,
    Storage,
    Turn,
    UserError,
    load_conversations,
    parse_settings,
    save_conversations,
)
from store.exchange.importing import import_column, place, plan_foreign
from store.exchange.video_chatgpt import find_pickles, read_video_chatgpt
from trainer.data import TrainingData
from trainer.report import report_data
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
    assert [(each.key, each.reason) for each in data.left_out] == [("clips-3-mp4", "audio: absent")] * 2
    assert data.counts() == {"text": 1, "visual": 30, "audio": 29, "audio_visual": 29}


def stream(data, places):
    """The first conversations of a run, as one rank draws them."""
    each = data.pending(0, 0, 1)
    for step in range(1, -(-places // len(each))):
        each += data.pending(step, 0, 1)
    return each[:places]


def test_an_epoch_holds_every_conversation_once(feature_store, tokenizer):
    """With the data's own shares nothing is dropped and nothing comes twice before all came once."""
    data = TrainingData(config(feature_store, mixture={"visual": 1}, global_batch=15, steps=4), tokenizer)
    seen = Counter(pending.conversation.id for pending in stream(data, 60))
    assert set(seen.values()) == {2}
    assert len(seen) == 30


@pytest.mark.parametrize("schedule", ["mat", "pt1", "pt2"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_each_of_1000_global_batches_is_mixed_as_the_schedule_says(feature_store, tokenizer, ranks, schedule):
    """The shares are exact to rounding in every batch, whatever the number of ranks; and ranks see it alike."""
    mixture = {"visual": 260, "audio": 45, "audio_visual": 85}
    changes = {"schedule": schedule, "mixture": mixture, "global_batch": 32, "steps": 1000}
    data = TrainingData(config(feature_store, **changes), tokenizer)
    together, apart = {"audio_visual": 85}, {"visual": 260, "audio": 45}
    phases = {
        "mat": [(1000, mixture)],
        "pt1": [(round(1000 * 85 / 390), together), (1000 - round(1000 * 85 / 390), apart)],
        "pt2": [(round(1000 * 305 / 390), apart), (1000 - round(1000 * 305 / 390), together)],
    }[schedule]
    expected = [weights for steps, weights in phases for _ in range(steps)]
    for step, weights in enumerate(expected):
        drawn = Counter(pool.split(".")[1] for rank in range(ranks) for pool, _ in data.draw(step, rank, ranks))
        assert drawn.total() == 32
        for modality, count in drawn.items():
            share = 32 * weights[modality] / sum(weights.values())
            assert math.floor(share) <= count <= math.ceil(share), (step, drawn)


@pytest.mark.parametrize("schedule", ["mat", "pt1", "pt2"])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_two_epochs_hold_every_conversation_twice_at_any_number_of_ranks(feature_store, tokenizer, ranks, schedule):
    """Two epochs of 89 conversations fill 178 of 184 places; counts within a modality differ by one at most."""
    data = TrainingData(config(feature_store, steps=None, epochs=2.0, schedule=schedule), tokenizer)
    assert data.steps == 23
    drawn = [p for step in range(23) for rank in range(ranks) for p in data.pending(step, rank, ranks)]
    seen = Counter((p.conversation.modality, p.conversation.id) for p in drawn)
    assert len(seen) == 89
    assert sum(seen.values()) == 184
    pools = {}
    for (modality, _), count in seen.items():
        pools.setdefault(modality, []).append(count)
    assert sorted(map(len, pools.values())) == [1, 29, 29, 30]
    assert all(max(counts) - min(counts) <= 1 for counts in pools.values())
    if schedule == "mat":
        assert Counter(seen.values()) == {2: 83, 3: 6}


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_every_number_of_ranks_sees_the_same_global_batches(feature_store, tokenizer, ranks):
    """Otherwise a run on eight GPUs is not the run on one, and cannot resume as it."""
    data = TrainingData(config(feature_store, steps=8), tokenizer)
    for step in (0, 7):
        alone = [p.conversation.id for p in data.pending(step, 0, 1)]
        shared = [p.conversation.id for rank in range(ranks) for p in data.pending(step, rank, ranks)]
        assert shared == alone


def test_modalities_are_mixed_in_every_batch_as_asked(feature_store, tokenizer):
    """Modality-augmented training: each batch holds all three, in the shares of the configuration."""
    mixture = {"visual": 2, "audio": 1, "audio_visual": 1}
    data = TrainingData(config(feature_store, mixture=mixture, steps=20), tokenizer)
    for step in range(20):
        kinds = Counter(s.tokens.media[0][0] for s in data.samples(step, 0, 1))
        assert kinds == {"visual": 4, "audio": 2, "audio_visual": 2}


def test_a_coarser_grid_reads_a_subset_of_the_same_column(feature_store, tokenizer):
    fine = stream(TrainingData(config(feature_store, mixture={"visual": 1}), tokenizer), 6)[-1]
    coarse = stream(TrainingData(config(feature_store, mixture={"visual": 1}, frames=2), tokenizer), 6)[-1]
    assert fine.conversation == coarse.conversation
    assert (coarse.sample().arrays["temporal"] == fine.sample().arrays["temporal"][::2]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 3}, r"field 'frames': column clip-tiny\..* not featurized with 3 frames, but with 2 or 4"),
        ({"segments": 4}, r"field 'segments': column clap-tiny\..* not featurized with 4 segments, but with 2"),
        ({"visual": "clip-huge"}, r"no column 'clip-huge'.*clip-tiny"),
        ({"visual": "clap-tiny"}, r"field 'visual'.*is audio"),
        ({"sources": [{"store": "S", "conversations": "none"}]}, r"S: no store is there: no corpus\.parquet"),
        ({"mixture": {"text": 1}, "audio": None, "visual": None}, r"at least one names a column"),
        ({"epochs": 1.0}, r"either 'epochs' or 'steps'"),
        (
            {"mixture": {"audio_visual": 1}, "augment": {"visual": 0.5}},
            r"field 'augment': names visual, which 'mixture'",
        ),
        (
            {"schedule": [{"share": 1, "mixture": {"visual": 1}}], "augment": {"audio": 1}},
            r"field 'augment': names audio, which 'mixture' leaves out",
        ),
        ({"learning_rate": 1}, r"unknown field 'learning_rate'.*lr"),
    ],
)
def test_bad_configuration_is_one_clear_line(feature_store, tokenizer, changes, message):
    with pytest.raises(UserError, match=message) as error:
        TrainingData(config(feature_store, **changes), tokenizer)
    assert "\n" not in str(error.value)


def test_a_damaged_item_stops_training_or_gives_way_to_another_conversation(feature_store, tokenizer, tmp_path, capsys):
    """Never to another clip's features under the same question; and it is said, each time."""
    epoch = {"mixture": {"visual": 1}, "global_batch": 1, "steps": 30}
    drawn = stream(TrainingData(config(feature_store, **epoch), tokenizer), 30)
    before = [pending.sample() for pending in drawn]
    shutil.copytree(feature_store, tmp_path / "store")
    for tar in (tmp_path / "store" / "columns").glob("clip-tiny.*/*.tar"):
        data = bytearray(tar.read_bytes())
        if (at := data.find(before[0].arrays["temporal"].tobytes())) >= 0:
            data[at] ^= 1
            tar.write_bytes(data)
    changes = epoch | {"sources": [{"store": str(tmp_path / "store"), "conversations": "mixed"}]}
    with pytest.raises(DamagedError, match="differs from its checksum"):
        TrainingData(config(feature_store, **changes), tokenizer).samples(0, 0, 1)
    hurt = TrainingData(config(feature_store, **changes, tolerate=1), tokenizer)
    after = [sample for step in range(30) for sample in hurt.samples(step, 0, 1)]

    def same(one, other):
        return one.tokens == other.tokens and np.array_equal(one.arrays["temporal"], other.arrays["temporal"])

    assert [place for place in range(30) if not same(after[place], before[place])] == [0]
    (twin,) = (place for place in range(30) if same(before[place], after[0]))
    assert f"replaced by {drawn[twin].conversation.id}: " in capsys.readouterr().out


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
    assert (data.size, [each.reason for each in data.left_out]) == (2, ["visual: unreadable"])
    found = {pending.conversation.id: pending.sample().arrays for pending in stream(data, 16)}
    assert {name: len(arrays["temporal"]) for name, arrays in found.items()} == {"whole": 100, "short": 60}
    assert np.array_equal(found["short"]["spatial"], rows[100:])
    assert data.builds["visual"] == {"imported": "video-chatgpt"}


def kinds(data, step, ranks=1):
    """How many of each modality a global batch holds."""
    return Counter(p.conversation.modality for rank in range(ranks) for p in data.pending(step, rank, ranks))


def test_pretraining_schedules_separate_the_modalities(feature_store, tokenizer):
    """PT1: together, then apart; PT2: apart, then together; each kind as often as in MAT."""
    runs = {}
    for schedule in ("pt1", "pt2"):
        data = TrainingData(config(feature_store, schedule=schedule, steps=89), tokenizer)
        runs[schedule] = [kinds(data, step) for step in range(89)]
    assert [set(k) for k in runs["pt1"][:29]] == [{"audio_visual"}] * 29
    assert all("audio_visual" not in k for k in runs["pt1"][29:])
    assert runs["pt2"][60:] == runs["pt1"][:29]
    assert runs["pt2"][:60] == runs["pt1"][29:]


def test_what_the_mixture_does_not_draw_is_told(feature_store, tokenizer):
    """Else half of a corpus may be left out, and only a count that is not shown would say so."""
    every = TrainingData(config(feature_store), tokenizer).counts()
    drawn = TrainingData(config(feature_store, mixture={"visual": 1}), tokenizer)
    told = {kind: count for kind, count in every.items() if kind != "visual"}
    assert drawn.counts() == {"visual": every["visual"]}
    reasons = drawn.left_out.reasons()
    assert {kind: reasons[f"{kind}, which 'mixture' leaves out"] for kind in told} == told
    asked = TrainingData(config(feature_store, mixture={"visual": 1}, augment={"visual": 1}), tokenizer)
    assert "audio_visual, which 'mixture' leaves out" not in asked.left_out.reasons()
    phases = [{"share": 1, "mixture": {"visual": 1}}]
    reasons = TrainingData(config(feature_store, schedule=phases), tokenizer).left_out.reasons()
    assert reasons["audio, which 'schedule' leaves out"] == every["audio"]


def test_phases_have_mixtures_of_their_own(feature_store, tokenizer):
    phases = [{"share": 1, "mixture": {"audio": 1}}, {"share": 3, "mixture": {"visual": 3, "audio_visual": 1}}]
    data = TrainingData(config(feature_store, schedule=phases, steps=8), tokenizer)
    assert [kinds(data, step) for step in (1, 2, 7)] == [{"audio": 8}, *[{"visual": 6, "audio_visual": 2}] * 2]


def test_audio_visual_conversations_are_also_asked_by_one_sense(feature_store, tokenizer, capsys):
    """Such a sample is a visual-only one: it counts as that, its rows and its token are sight's alone."""
    augment = {"mixture": {"visual": 1}, "augment": {"visual": 0.5}, "global_batch": 9, "steps": 10}
    data = TrainingData(config(feature_store, **augment), tokenizer)
    report_data(data, config(feature_store, **augment), None, write=False)
    said = " ".join(capsys.readouterr().out.split())
    assert "59 usable conversations (30 visual, 29 audio_visual-as-visual), 44 in an epoch" in said
    drawn = stream(data, 90)
    asked = [pending for pending in drawn if "audio_visual" in pending.conversation.id]
    assert len(asked) == pytest.approx(90 / 3, abs=2)  # 30 of their own, half of 30
    assert all("audio" not in p.sample().arrays and p.tokens.media[0][0] == "visual" for p in asked)
    assert {pending.conversation.modality for pending in drawn} == {"visual"}


def test_sources_are_drawn_by_weight(feature_store, tokenizer):
    twice = [{"store": str(feature_store), "conversations": "mixed", "weight": w} for w in (1, 3)]
    data = TrainingData(config(feature_store, sources=twice, mixture={"visual": 1}, steps=10), tokenizer)
    drawn = [[pool for pool, _ in data.draw(step, 0, 1)] for step in range(10)]
    assert all(batch.count("0.visual") == 2 and batch.count("1.visual") == 6 for batch in drawn)


def digest_of_texts(config, talks, weights, phases, columns):
    """The identity as earlier versions saved it: every text of every pool."""
    digest = xxhash.xxh3_128(repr((2, config.seed, config.global_batch, phases, weights, columns)).encode())
    for c in talks:
        turns = [(t.instruction, t.modality, t.response) for t in c.turns]
        digest.update(repr((c.id, c.key, turns)).encode())
    return digest.hexdigest()


def test_a_run_that_an_earlier_version_stopped_goes_on_if_its_data_are_the_same(feature_store, tokenizer, tmp_path):
    """The digest in its states is another one; a changed text is refused as ever, wherever the store lies."""
    settings = config(feature_store, mixture={"visual": 1}, augment={"visual": 0.5})
    talks = load_conversations(Storage(feature_store), "mixed")
    drawn = [c for c in talks if c.modality == "visual"]
    single = [asked for c in talks if c.key != "clips-3-mp4" and (asked := c.asked_by("visual"))]  # it has no sound
    weights = {"visual": {"0.visual": 30_000, "0.audio_visual-as-visual": 14_500}}
    columns = sorted(path.name for path in (feature_store / "columns").iterdir())
    saved = digest_of_texts(settings, [*drawn, *single], weights, [Phase(3, {"visual": 1})], columns)
    data = TrainingData(settings, tokenizer)
    assert data.has_identity(saved)
    assert data.has_identity(data.identity)
    assert not data.has_identity(digest_of_texts(settings, drawn, weights, [Phase(3, {"visual": 1})], columns))
    storage = Storage(shutil.copytree(feature_store, tmp_path / "store"))
    moved = {"mixture": {"visual": 1}, "augment": {"visual": 0.5}}
    assert TrainingData(config(storage.root, **moved), tokenizer).identity == data.identity
    last = talks[-2]
    assert last.modality == "audio_visual"
    save_conversations(storage, "mixed", [*talks[:-2], replace(last, turns=last.turns[:1]), talks[-1]])
    changed = TrainingData(config(storage.root, **moved), tokenizer)
    assert not changed.has_identity(saved)
    assert not changed.has_identity(data.identity)
