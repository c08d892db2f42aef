"""Conversations that teach nothing are left out by name, before N is counted."""

import shutil

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from store import Conversation, Storage, Turn, UserError, parse_settings, save_conversations
from store.conversation import rows_of
from store.facts import ANSWERED, facts_of
from trainer.data import TrainingData
from trainer.llm import load_shape
from trainer.prompt import PromptFormat, beginning, lead_room, tokenize, tokenize_all
from trainer.settings import TrainConfig
from trainer.stage import train

KEYS = ("clips-1-mp4", "clips-2-mp4")


@pytest.fixture
def store(feature_store, tmp_path):
    shutil.copytree(feature_store, tmp_path / "store")
    return tmp_path / "store"


def settings_of(tiny_run, store, **changes):
    sources = [{"store": str(store), "conversations": "talk"}]
    return parse_settings(
        TrainConfig, tiny_run | {"stage": 1, "steps": 2, "output": "unused", "sources": sources} | changes, "test"
    )


def teaches(conversation, tokenizer, limit):
    """By tokenizing all of it: 4 temporal and 5 spatial rows, 2 of sound."""
    rows = {"text": 0, "visual": 9, "audio": 2, "audio_visual": 11}
    return any(tokenize(conversation.turns, rows, tokenizer, PromptFormat()).answers[:limit])


def test_exactly_those_whose_responses_are_all_beyond_max_tokens_are_left_out(tiny_run, store, tiny_llm):
    """One position more or less decides; N is of those that teach."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    talk = []
    for length in range(0, 160, 2):
        for modality in ("visual", "audio_visual", "text"):
            key = None if modality == "text" else KEYS[length % 2]
            turns = (Turn("a" * length, modality, ""), Turn("and", modality, "yes"))[length % 4 // 2 :]
            talk.append(Conversation(f"{length}-{modality}", key, turns))
    save_conversations(Storage(store), "talk", talk)
    for limit in (90, 120, 2048):
        data = TrainingData(settings_of(tiny_run, store, max_tokens=limit, steps=20), tokenizer)
        expected = [c.id for c in talk if not teaches(c, tokenizer, limit)]
        assert sorted(each.id for each in data.left_out) == sorted(expected)
        assert {each.reason for each in data.left_out} <= {f"no response within max_tokens {limit}"}
        assert data.size == len(talk) - len(expected)
        if limit < 2048:
            assert 10 < len(expected) < len(talk) - 10
        seen = [sample for step in range(20) for sample in data.samples(step, 0, 1)]
        assert all(any(sample.tokens.answers[:limit]) for sample in seen)


def test_empty_answers_are_left_out_and_teach_neither_a_space_nor_an_end(tiny_run, store, tiny_llm):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    turns = {"empty": [""], "blank": [" \n"], "both": ["", ""], "second": ["", "red"], "first": ["red", ""]}
    talk = [Conversation(k, KEYS[0], tuple(Turn("Say", "visual", r) for r in said)) for k, said in turns.items()]
    save_conversations(Storage(store), "talk", talk)
    data = TrainingData(settings_of(tiny_run, store), tokenizer)
    assert [(each.id, each.reason) for each in data.left_out] == [
        (k, "no response") for k in ("empty", "blank", "both")
    ]
    for sample in data.samples(0, 0, 1):
        learnt = [i for i, answer in zip(sample.tokens.ids, sample.tokens.answers, strict=True) if answer]
        assert tokenizer.decode(learnt) == " red</s>"
        assert sample.tokens.ids.count(tokenizer.eos_token_id) == 2


@pytest.mark.parametrize("dry", [True, False])
def test_a_run_counts_and_names_them_and_goes_on(python, tiny_run, store, tmp_path, dry):
    """Seven of eight responses beyond max_tokens, in batches of one: no step is empty."""
    talk = [Conversation(f"c{n}", KEYS[0], (Turn("why " * 90 * (n > 0), "visual", "red"),)) for n in range(8)]
    save_conversations(Storage(store), "talk", talk)
    own = {"max_tokens": 128, "batch_tokens": 128, "global_batch": 1, "output": str(tmp_path / "run")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings_of(tiny_run, store, **own).model_dump(mode="json")))
    done = python("trainer", "train", tmp_path / "run.yaml", *["--dry-run"] * dry)
    assert done.returncode == 0, done.stderr
    assert "1 usable conversations (1 visual)" in done.stdout
    assert "7 no response within max_tokens 128: c1, c2, c3, c4, c5 ..." in done.stdout
    assert (tmp_path / "run" / "checkpoint").exists() == (not dry)
    if dry:
        assert "host memory of 1 rank: " in done.stdout
        assert "at the start, as measured here: columns " in done.stdout


def test_where_nothing_is_left_one_line_says_why(tiny_run, store, tiny_llm, tmp_path):
    save_conversations(Storage(store), "talk", [Conversation("c", KEYS[0], (Turn("why " * 90, "visual", "red"),))])
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    with pytest.raises(UserError, match=r"no usable conversation; left out: .*no response within max_tokens 64"):
        TrainingData(settings_of(tiny_run, store, max_tokens=64), tokenizer)
    asked = {"sources": [{"store": str(store), "conversations": "talk"}], "every": 1}
    settings = settings_of(tiny_run, store, max_tokens=128, sources=tiny_run["sources"], evaluation=asked)
    with pytest.raises(UserError, match="none of 1 held-out conversations has a response within max_tokens"):
        train(settings.model_copy(update={"output": str(tmp_path / "run")}))


@pytest.fixture(scope="module")
def tokenizers(tiny_llm, vicuna):
    """Of pieces, and of bytes after composing characters, as Qwen2's does."""
    composing = AutoTokenizer.from_pretrained(tiny_llm)
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    return [load_shape(str(vicuna))[1], composing]


TURNS = st.lists(st.builds(Turn, st.text(max_size=20), st.sampled_from(["visual", "text"]), st.text(max_size=2)))


@given(TURNS.filter(len), st.integers(0, 1))
def test_the_cheap_bound_is_one(tokenizers, turns, number):
    """Else a conversation that teaches nothing would slip through untokenized."""
    tokenizer, rows = tokenizers[number], {"visual": 3, "text": 0}
    answers = tokenize(turns, rows, tokenizer, PromptFormat()).answers
    lead = answers.index(True) if any(answers) else len(answers)
    facts = facts_of(rows_of([Conversation("c", None, tuple(turns))]), "")
    (room,) = lead_room(facts["lead"], facts["media"], rows["visual"], PromptFormat())
    assert not any(answers) or lead <= len(beginning(tokenizer)) + room
    assert bool(facts["bits"] & ANSWERED) == any(answers)


def test_a_tokenizer_that_merges_the_prompt_with_the_response_is_refused(tiny_run, store):
    """It would be asked with other tokens than it was taught, and would learn of short answers only their end."""
    merging = Tokenizer(models.BPE())
    merging.decoder = decoders.ByteLevel()
    merging.normalizer = normalizers.ByteLevel()  # and no splitting at spaces
    words = ["\n Assistant: red"] * 9
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>"]
    merging.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=merging, bos_token="<s>", eos_token="</s>")
    assert len(tokenize_all([((Turn("", "text", "red"),), {})], tokenizer, PromptFormat())[0].ids) > 1
    save_conversations(Storage(store), "talk", [Conversation("c", KEYS[0], (Turn("why", "visual", "red"),))])
    with pytest.raises(UserError, match=r"merges 'Assistant:' with the response, into 't: '; accepted"):
        TrainingData(settings_of(tiny_run, store), tokenizer)
