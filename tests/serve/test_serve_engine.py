"""Answers that share the engine's steps are those that each question gets alone."""

import random
import threading
import time
from queue import SimpleQueue

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import serve.local
from serve.engine import Limits, Piece, reply, stream
from serve.local import Local
from serve.sampling import Sampler
from serve.slots import SlotCache
from serve.text import TextStream
from store import UserError
from trainer.llm import generation_of

SMALL = {
    "vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
FAMILIES = {
    "Llama": {}, "Mistral": {"sliding_window": 12}, "Qwen3": {"head_dim": 8}, "Gemma3Text": {"head_dim": 8,
    "sliding_window": 12}, "Phi3": {}, "GPTNeoX": {}, "Cohere2": {"sliding_window": 12},
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tiny_llm):
    return AutoTokenizer.from_pretrained(tiny_llm)


@pytest.fixture(scope="module")
def llm(tiny_llm, tokenizer):
    return ready(AutoModelForCausalLM.from_pretrained(tiny_llm, attn_implementation="sdpa"), tokenizer)


@pytest.fixture
def engine(llm, tokenizer):
    engine = Local(llm, tokenizer, at_once=5)
    yield engine
    engine.close()


def ready(llm, tokenizer):
    llm.generation_config = generation_of(llm, tokenizer)
    return llm.eval()


def prompts(llm, count, seed=0, longest=40):
    draw = random.Random(seed)
    with torch.inference_mode():
        ids = [[draw.randrange(2, 400) for _ in range(draw.randrange(1, longest))] for _ in range(count)]
        return [llm.get_input_embeddings()(torch.tensor(some)) for some in ids]


def alone(llm, tokenizer, rows, tokens):
    """What `transformers` says to one question by itself."""
    with torch.inference_mode():
        ids = llm.generate(
            inputs_embeds=rows[None], attention_mask=torch.ones(1, len(rows)), max_new_tokens=tokens, do_sample=False,
            pad_token_id=1,
        )  # fmt: skip
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def ask(engine, rows, limits):
    pieces = SimpleQueue()
    return pieces, engine.submit(rows, limits, pieces.put)


def collect(pieces, timeout=60) -> list[Piece]:
    got = [pieces.get(timeout=timeout)]
    while got[-1].reason is None and got[-1].error is None:
        got.append(pieces.get(timeout=timeout))
    return got


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_each_question_alone(family, tokenizer):
    """Joining and leaving at random, in every family of LLMs, also beyond the window of its attention."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SMALL, **FAMILIES[family])
    llm = ready(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"), tokenizer)
    engine, draw = Local(llm, tokenizer, at_once=4), random.Random(0)
    rows, asked = prompts(llm, 24), []
    for prompt in rows:
        limits = Limits(draw.choice([1, 2, 3, 5, 8, 13, 21, 150]))
        asked.append((limits, ask(engine, prompt, limits)[0]))
        time.sleep(draw.choice([0, 0, 0.02]))
    answers = [(limits, collect(pieces)) for limits, pieces in asked]
    engine.close()
    for prompt, (limits, pieces) in zip(rows, answers, strict=True):
        assert "".join(p.text for p in pieces) == alone(llm, tokenizer, prompt, limits.max_tokens)
        assert pieces[-1].reason == ("length" if pieces[-1].tokens == limits.max_tokens else "stop")


def test_a_seed_decides_an_answer_whatever_else_is_asked(engine, llm):
    """Temperature flattens, so that seeds differ; the most likely token is sampled as temperature nears 0."""
    rows = prompts(llm, 12)
    limits = [Limits(12, temperature=1.5, seed=n % 4, top_p=0.9 if n % 2 else 1) for n in range(12)]
    together = [ask(engine, prompt, limit)[0] for prompt, limit in zip(rows, limits, strict=True)]
    together = [reply(collect(pieces)) for pieces in together]
    singly = [reply(list(stream(engine, prompt, limit))) for prompt, limit in zip(rows, limits, strict=True)]
    assert together == singly
    others = [reply(list(stream(engine, rows[0], Limits(12, temperature=1.5, seed=seed)))).text for seed in range(6)]
    assert len(set(others)) == 6
    cold = reply(list(stream(engine, rows[0], Limits(12, temperature=1e-4))))
    assert cold == reply(list(stream(engine, rows[0], Limits(12))))


def test_sampling_follows_the_probabilities_within_the_nucleus():
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    counts = torch.zeros(4)
    sampler = Sampler(Limits(temperature=1.0, top_p=0.9), torch.device("cpu"))
    for _ in range(4000):
        counts[sampler.choose(logits)] += 1
    assert counts[3] == 0
    assert (counts[:3] / 4000).tolist() == pytest.approx([0.526, 0.316, 0.158], abs=0.03)


def test_cancelling_frees_a_place_within_one_step(llm, tokenizer, monkeypatch):
    """An answer that nobody reads is not written to its end, and the next in turn begins at once."""
    engine, steps = Local(llm, tokenizer, at_once=1), []
    forward = llm.forward
    monkeypatch.setattr(llm, "forward", lambda **words: steps.append(time.sleep(0.02)) or forward(**words))
    monkeypatch.setattr(engine, "_ends", frozenset())
    first, second = prompts(llm, 2)
    pieces, cancel = ask(engine, first, Limits(200))
    pieces.get()
    waiting, _ = ask(engine, second, Limits(1))
    gone, withdraw = ask(engine, second, Limits(1))
    withdraw()
    before = len(steps)
    cancel()
    assert collect(pieces)[-1].reason == "cancelled"
    assert len(steps) - before <= 2
    assert collect(waiting)[-1].reason == "length"
    assert [piece.reason for piece in collect(gone)] == ["cancelled"]
    engine.close()


def test_closing_a_stream_ends_its_generation(engine, llm, monkeypatch):
    monkeypatch.setattr(engine, "_ends", frozenset())
    pieces = stream(engine, prompts(llm, 1)[0], Limits(200))
    next(pieces)
    pieces.close()
    deadline = time.monotonic() + 10
    while engine._running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not engine._running


def test_an_answer_ends_before_a_stop_text(engine, llm, tokenizer):
    """Whatever tokens it is spread over; none of it is ever sent."""
    rows = prompts(llm, 8, seed=3)
    for prompt in rows:
        whole = alone(llm, tokenizer, prompt, 30)
        if len(whole) < 6:
            continue
        stop = whole[3:5]
        pieces = list(stream(engine, prompt, Limits(30, stop=(stop, "never said"))))
        assert "".join(p.text for p in pieces) == whole[: whole.index(stop)]
        assert pieces[-1].reason == "stop"
        assert pieces[-1].tokens < 30


def test_a_failing_step_ends_its_answers_and_later_ones_are_served(engine, llm, monkeypatch):
    forward = llm.forward
    prompt = prompts(llm, 1)[0]
    whole = reply(list(stream(engine, prompt, Limits(5))))

    def fail(**words):
        if "input_ids" in words:
            raise MemoryError("no room")
        return forward(**words)

    monkeypatch.setattr(llm, "forward", fail)
    with pytest.raises(MemoryError, match="no room"):
        list(stream(engine, prompt, Limits(5)))
    monkeypatch.setattr(llm, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream(engine, prompt, Limits(5)))
    monkeypatch.setattr(llm, "forward", forward)
    assert reply(list(stream(engine, prompt, Limits(5)))) == whole


def test_a_failure_between_a_prompt_and_its_first_token_mixes_nothing_up(engine, llm, tokenizer, monkeypatch):
    """The prompt is in the cache already: it must not stay there as if it were another answer's."""
    first, second = prompts(llm, 2)
    choose = serve.local.choose_tokens
    monkeypatch.setattr(serve.local, "choose_tokens", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(stream(engine, first, Limits(6)))
    monkeypatch.setattr(serve.local, "choose_tokens", choose)
    assert reply(list(stream(engine, second, Limits(6)))).text == alone(llm, tokenizer, second, 6).strip()


def test_numbers_that_overflow_in_one_answer_do_not_reach_the_others(engine, llm, tokenizer):
    """Neither a neighbour's nor a later one's in the same place of the cache: zero times NaN is NaN."""
    rows = prompts(llm, 12, seed=5)
    overflow = llm.model.layers[0].register_forward_pre_hook(
        lambda _, words: (words[0].masked_fill(words[0].abs().amax(-1, keepdim=True) > 1e6, torch.nan), *words[1:])
    )
    bad = [ask(engine, 1e12 * row, Limits(6))[0] for row in rows[:4]]
    good = [ask(engine, row, Limits(6))[0] for row in rows]
    assert all(isinstance(collect(pieces)[-1].error, ArithmeticError) for pieces in bad)
    for prompt, pieces in zip(rows, good, strict=True):
        assert "".join(piece.text for piece in collect(pieces)) == alone(llm, tokenizer, prompt, 6)
    overflow.remove()


def test_nothing_of_an_earlier_answer_stays_in_its_place():
    """Rows of any length come and go; what a step sees of a row is its own numbers, and zeros before them."""
    draw, cache, lengths, marks = random.Random(0), SlotCache(1), [], []
    for mark in range(200):
        new = [draw.randrange(1, 60) for _ in range(draw.randrange(1, 4))]
        read = DynamicCache()
        numbers = torch.full((len(new), 1, max(new), 2), float(mark + 1) if mark % 3 else torch.nan)
        read.update(numbers, numbers, 0)
        cache.join(read, new)
        lengths, marks = lengths + new, marks + [mark + 1] * len(new)
        while len(lengths) > draw.randrange(8) or any((m - 1) % 3 == 0 for m in marks):
            row = next((r for r, m in enumerate(marks) if (m - 1) % 3 == 0), draw.randrange(len(lengths)))
            cache.leave(row)
            for listed in (lengths, marks):
                listed[row] = listed[-1]
                listed.pop()
        cache.begin_step()
        step = torch.tensor([float(m) for m in marks])[:, None, None, None].expand(-1, 1, 1, 2)
        keys, _ = cache.update(step, step, 0)
        cache.end_step()
        lengths = [length + 1 for length in lengths]
        longest = max(lengths, default=0)
        for row, (length, mark_) in enumerate(zip(lengths, marks, strict=True)):
            assert keys[row, 0, :, 0].tolist() == [0.0] * (longest - length) + [float(mark_)] * length


def test_what_cannot_be_generated_is_refused(engine, llm, tokenizer):
    rows = prompts(llm, 1)[0]
    with pytest.raises(UserError, match="takes 2048 positions; accepted: below 2048"):
        engine.submit(rows[:1].expand(2048, -1), Limits(), print)
    with pytest.raises(UserError, match="not finite"):
        engine.submit(rows / 0, Limits(), print)
    small = Local(llm, tokenizer, memory=1 << 14)
    with pytest.raises(UserError, match=r"may take \d+ positions"):
        small.submit(rows, Limits(1000), print)
    assert reply(list(stream(small, rows, Limits(2)))).tokens <= 2
    small.close()


def test_answers_keep_within_the_memory_and_end_at_the_context(llm, tokenizer):
    """Those without room wait; an answer that reaches the model's context ends there."""
    rows = [row[:1].expand(2000, -1) for row in prompts(llm, 6)]
    engine = Local(llm, tokenizer)
    engine._memory = engine._bytes(2, 2048)
    engine._ends = frozenset()
    asked = [ask(engine, row, Limits(1000))[0] for row in rows]
    assert {(p[-1].reason, p[-1].tokens) for p in map(collect, asked)} == {("length", 48)}
    assert max(layer._buffers[0].shape[0] for layer in engine._cache.layers) <= 3
    engine.close()


def test_closing_cancels_what_is_under_way(llm, tokenizer, monkeypatch):
    engine = Local(llm, tokenizer, at_once=2)
    monkeypatch.setattr(engine, "_ends", frozenset())
    asked = [ask(engine, row, Limits(200))[0] for row in prompts(llm, 5)]
    engine.close()
    assert {collect(pieces)[-1].reason for pieces in asked} <= {"cancelled", "length"}
    assert not any(t is engine._thread for t in threading.enumerate())
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(prompts(llm, 1)[0], Limits(), print)


@given(text=st.text(max_size=40), stops=st.lists(st.text(min_size=1, max_size=4), max_size=3), data=st.data())
def test_pieces_are_the_text_up_to_the_first_stop(tiny_llm, text, stops, data):
    """The tokenizer is byte-level, so characters are spread over tokens, and stop texts over characters."""
    tokenizer = TOKENIZERS.setdefault("tiny", AutoTokenizer.from_pretrained(tiny_llm))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if data.draw(st.booleans()) and text:
        at = data.draw(st.integers(0, len(text) - 1))
        stops = [*stops, text[at : at + 3]]
    pieces, said = TextStream(tokenizer, stops), ""
    for token in ids:
        fresh = pieces.add(token)
        said += fresh
        if pieces.is_stopped:
            break
    said += pieces.finish()
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    ends = [(whole.index(stop) + len(stop), whole.index(stop)) for stop in stops if stop in whole]
    assert said == (whole[: min(ends)[1]] if ends else whole)
    assert pieces.is_stopped == bool(ends)


TOKENIZERS: dict = {}
