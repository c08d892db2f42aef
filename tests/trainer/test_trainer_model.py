import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from store import Turn
from trainer import attention
from trainer.attention import Packing, torch_attention
from trainer.batch import Sample, pack
from trainer.features import rows_of
from trainer.llm import load_llm
from trainer.model import AudioVisualLM, ColumnStatistics, initialize_projectors
from trainer.prompt import PromptFormat, tokenize
from trainer.settings import TrainConfig
from trainer.trainable import choose_trained

BASE = {
    "stage": 2,
    "model": "none",
    "sources": ({"store": "none", "conversations": "none"},),
    "visual": "none",
    "audio": "none",
    "output": "none",
    "global_batch": 4,
    "steps": 1,
    "lr": 1e-3,
}
WIDTHS = {"temporal": 6, "spatial": 6, "audio": 7}


@pytest.fixture(scope="module")
def model(tiny_llm):
    llm, _ = load_llm(str(tiny_llm), torch.float32)
    torch.manual_seed(1)
    return AudioVisualLM(llm, WIDTHS)


@pytest.fixture(scope="module")
def samples(tiny_llm):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm)
    rng = np.random.default_rng(0)

    def sample(*turns):
        arrays = {name: rng.standard_normal((n, WIDTHS[name])).astype(np.float32) for name, n in SHAPES.items()}
        return Sample(tokenize(turns, rows_of(arrays), tokenizer, PromptFormat()), arrays)

    return [
        sample(Turn("What colour?", "visual", "red")),
        sample(Turn("What sound is it, then?", "audio", "low"), Turn("And the colour?", "visual", "a dark red")),
        sample(Turn("Both?", "audio_visual", "red and low")),
        sample(Turn("Hello", "text", "good day")),
    ]


SHAPES = {"temporal": 4, "spatial": 5, "audio": 2}


def plain_loss(model, sample):
    """The loss of one conversation, written out: no packing, no packed attention, logits everywhere."""
    embed, ids, rows = model.llm.get_input_embeddings(), [], []
    media = {start: modality for modality, start in sample.tokens.media}
    position = 0
    while position < len(sample.tokens.ids):
        if position in media:
            names = {"visual": ["temporal", "spatial"], "audio": ["audio"]}.get(media[position], list(SHAPES))
            for name in names:
                rows.append(model.projectors[name](torch.from_numpy(sample.arrays[name])))
                position += len(sample.arrays[name])
                ids += [-100] * len(sample.arrays[name])
        else:
            rows.append(embed(torch.tensor([sample.tokens.ids[position]])))
            ids.append(sample.tokens.ids[position] if sample.tokens.answers[position] else -100)
            position += 1
    model.llm.set_attn_implementation("eager")
    logits = model.llm(inputs_embeds=torch.cat(rows)[None]).logits[0]
    model.llm.set_attn_implementation(attention.NAME)
    return F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), ignore_index=-100, reduction="sum")


def test_packed_losses_equal_a_plain_reading(model, samples):
    """Packing, sparse logits and our attention are speed only: the numbers are those of the plain model."""
    with torch.no_grad():
        packed = model(pack(samples, WIDTHS, 2048)).item()
        plain = sum(plain_loss(model, sample).item() for sample in samples)
    assert packed == pytest.approx(plain, rel=1e-5)


def test_no_attention_across_packed_samples(model, samples):
    """The gradient of one sample's loss with respect to another's input is exactly zero."""
    batch = pack(samples, WIDTHS, 2048)
    embedded = model.embed(batch).detach().requires_grad_()
    hidden = model.llm.base_model(
        inputs_embeds=embedded[None], position_ids=batch.positions[None], packing=batch.packing, use_cache=False
    ).last_hidden_state[0]
    start, end = batch.packing.bounds[1:3].tolist()
    hidden[start:end].square().sum().backward()
    assert embedded.grad[start:end].abs().sum() > 0
    assert embedded.grad[:start].abs().max() == 0
    assert embedded.grad[end:].abs().max() == 0


def test_every_projector_takes_part_in_every_batch(model, samples):
    """A projector without a gradient would hang a collective; one with a wrong gradient would drift."""
    model.zero_grad()
    model(pack(samples[3:], WIDTHS, 2048)).backward()
    for name, projector in model.projectors.items():
        assert projector.weight.grad is not None, name
        assert projector.weight.grad.abs().max() == 0, name


def test_a_conversation_is_cut_at_max_tokens(samples):
    batch = pack(samples, WIDTHS, 30)
    assert np.diff(batch.packing.bounds).max() == 30
    assert (batch.targets_at >= 0).all()


def test_projectors_start_at_the_scale_of_words_whatever_the_columns_scale(model):
    """Without it weak or shifted features drown, and random ones are not learnt at all."""
    rng = np.random.default_rng(0)
    rows = (50 + 7 * rng.standard_normal((400, 6))).astype(np.float32)
    statistics = ColumnStatistics()
    statistics.add({"temporal": rows[:250]})
    statistics.add({"temporal": rows[250:]})
    initialize_projectors(model, statistics, seed=3)
    words = model.llm.get_input_embeddings().weight.std()
    with torch.no_grad():
        projected = model.projectors["temporal"](torch.from_numpy(rows))
    assert projected.std().item() == pytest.approx(words.item(), rel=0.3)
    assert projected.mean(0).abs().max() < 0.2 * words


def test_torch_attention_equals_each_sample_alone():
    lengths = [5, 17, 1]
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, h, sum(lengths), 8) for h in (4, 2, 2))
    mixed = torch_attention(query, key, value, Packing.of(lengths), None)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = F.scaled_dot_product_attention(
            query[:, :, part], key[:, :, part], value[:, :, part], is_causal=True, enable_gqa=True
        )
        torch.testing.assert_close(mixed[:, part], alone.transpose(1, 2))
        start += length


@pytest.mark.parametrize("length", [1, 5, 300, attention.PRODUCTS, attention.PRODUCTS + 1])
def test_attention_in_bfloat16_is_that_in_float64_up_to_rounding(length, monkeypatch):
    """Values and gradients, on either side of the length up to which products of matrices are taken."""
    torch.manual_seed(0)
    query, key, value, wanted = (torch.randn(1, h, length, 64).bfloat16() for h in (6, 2, 2, 6))
    found, calls = [], []
    written_out = attention.product_attention
    monkeypatch.setattr(attention, "product_attention", lambda *given: calls.append(0) or written_out(*given))
    for dtype in (torch.float64, torch.bfloat16):
        inputs = [x.to(dtype).requires_grad_() for x in (query, key, value)]
        mixed = torch_attention(*inputs, Packing.of([length]), 0.2)
        mixed.backward(wanted.transpose(1, 2).to(dtype))
        found.append([mixed.detach(), *(x.grad for x in inputs)])
    assert len(calls) == (length <= attention.PRODUCTS)
    for exact, rounded in zip(*found, strict=True):
        assert (rounded.double() - exact).norm() <= 0.01 * exact.norm() + 1e-6


def test_what_casts_a_model_leaves_its_positions_and_statistics_exact(model):
    """Older DeepSpeeds cast a whole module: positions of 1,000 would then turn by angles that are wrong by a radian."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any("inv_freq" in name for name in before)
    cast = copy.deepcopy(model).bfloat16()
    assert {p.dtype for p in cast.parameters()} == {torch.bfloat16}
    assert all(torch.equal(buffer, before[name]) for name, buffer in cast.named_buffers())


def test_attention_gets_the_precision_of_the_arithmetic(tiny_llm, samples, monkeypatch):
    """Stage 2 keeps float32 weights: rows that stayed float32 under autocast would shut flash-attn's kernel out."""
    llm, _ = load_llm(str(tiny_llm), torch.float32)
    seen = set()

    def watched(query, key, value, *given):
        seen.update(x.dtype for x in (query, key, value))
        return torch_attention(query, key, value, *given)

    monkeypatch.setitem(attention.KERNELS, "by conversation", watched)
    with torch.autocast("cpu", torch.bfloat16):
        AudioVisualLM(llm, WIDTHS)(pack(samples, WIDTHS, 2048))
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_layers_change_nothing_but_rounding(tiny_llm, samples, checkpointing):
    """And new lengths are no new program: compiling anew would cost more than it saves."""
    found = []
    for compiled in (False, True):
        llm, _ = load_llm(str(tiny_llm), torch.float32)
        torch.manual_seed(0)
        model = AudioVisualLM(llm, WIDTHS)
        settings = {"compile": compiled, "gradient_checkpointing": checkpointing}
        choose_trained(TrainConfig(**BASE, **settings), model)
        assert all((layer._compiled_call_impl is not None) == compiled for layer in llm.base_model.layers)
        values = []
        for count in (2, 4, 3):
            with torch._dynamo.config.patch(error_on_recompile=count != 2):
                loss = model(pack(samples[:count], WIDTHS, 2048))
                loss.backward()
            values += [loss.detach(), *(p.grad.clone() for p in model.parameters())]
        found.append(values)
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_llm_is_a_plain_hugging_face_model(tiny_llm):
    """What we load is what everybody else loads."""
    ours, _ = load_llm(str(tiny_llm), torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_llm)
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name
