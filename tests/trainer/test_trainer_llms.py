"""Which LLMs are accepted: packed rows give the numbers of each conversation alone through plain transformers."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from store import Turn, UserError
from trainer.batch import Sample, pack
from trainer.checkpoint.folder import save_checkpoint
from trainer.checkpoint.info import CheckpointInfo
from trainer.checkpoint.weights import gather_weights
from trainer.features import rows_of
from trainer.llm import check_packing, load_llm
from trainer.model import AudioVisualLM
from trainer.prompt import PromptFormat, tokenize

WIDTHS = {"temporal": 6, "spatial": 6, "audio": 7}
SHAPES = {"temporal": 4, "spatial": 5, "audio": 2}
SMALL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
WIDE = {"head_dim": 8}
ACCEPTED = {
    "Llama": {},
    "Mistral": {"sliding_window": 200},
    "Mixtral": {"num_local_experts": 4},
    "Qwen2": {},
    "Qwen3": WIDE,
    "Qwen3Moe": WIDE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "Gemma": WIDE,
    "Gemma3Text": WIDE | {"sliding_window": 200},
    "Granite": {"logits_scaling": 8.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5},
    "Olmo2": {},
    "Olmo3": {"sliding_window": 200},
    "Phi": {},
    "Phi3": {},
    "SmolLM3": {},
    "Cohere": {"logit_scale": 0.25},
    "Cohere2": {"sliding_window": 200},
    "Starcoder2": {},
    "GPTNeoX": {},
    "Glm": WIDE,
    "Glm4": WIDE,
    "Helium": WIDE,
    "Arcee": {},
    "Exaone4": {"sliding_window": 200},
}
REFUSED = {
    "window": ("Mistral", {"sliding_window": 16}, "its attention sees 16 positions; accepted: max_tokens up to 16"),
    "windows of some layers": (
        "Gemma3Text",
        WIDE | {"sliding_window": 16, "layer_types": ["sliding_attention"] * 2},
        "16",
    ),
    "soft-caps": ("Gemma2", WIDE, "softcap"),
    "sinks": ("GptOss", WIDE, "s_aux"),
    "an encoder": ("T5", {}, "a t5 is no causal language model"),
    "dropout of an old family": ("GPT2", {}, "dropout|pdrop"),
    "dropout": ("Llama", {"attention_dropout": 0.1}, "attention_dropout 0.1; accepted: 0"),
    "chunks": ("Llama4Text", {"attention_chunk_size": 16}, "its attention sees 16 positions"),
    "own attention": ("Bloom", {}, "only 0 of its 2 layers are attention"),
    "convolutions": ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "only 1 of its 2 layers"),
    "an interface of its own": ("Falcon", {}, "a falcon does not take packed rows: its attention is its own"),
    "states": ("Mamba", {}, "only 0 of its 2 layers"),
    "lost arguments": ("StableLm", {}, "do not hand on where conversations begin"),
    "rope by length": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, "max_position_embeddings": 64},
        "64 positions",
    ),
    "too many positions": (
        "Llama",
        {"max_position_embeddings": 64},
        "field 'max_tokens': 128; .* made for 64 positions",
    ),
}


def folder_of(family, changes, tiny_llm, path):
    """A tiny random model of a family, with the tokenizer of the other tests, as a Hugging Face folder."""
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in llm.parameters():  # far from the start, where all families look alike
            parameter.add_(0.1 * torch.randn_like(parameter))
    llm.save_pretrained(path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_llm / file, path / file)
    return path


def samples_of(tokenizer):
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((n, WIDTHS[name])).astype(np.float32) for name, n in SHAPES.items()}
    turns = [
        (Turn("What colour?", "visual", "red"),),
        (Turn("What sound is it, then?", "audio", "low"), Turn("And the colour?", "visual", "a dark red")),
        (Turn("Hello", "text", "good day"),),
    ]
    return [Sample(tokenize(t, rows_of(arrays), tokenizer, PromptFormat()), arrays) for t in turns]


def plain_loss(model, sample):
    """The loss of one conversation: its own embeddings, plain attention, the model's own logits of all positions."""
    batch = pack([sample], WIDTHS, 2048)
    logits = model.llm(inputs_embeds=model.embed(batch)[None], use_cache=False).logits[0]
    answers = torch.tensor(sample.tokens.answers[1:])
    return F.cross_entropy(logits[:-1][answers], torch.tensor(sample.tokens.ids[1:])[answers], reduction="sum")


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ACCEPTED)
def test_packed_numbers_are_those_of_plain_transformers(family, tiny_llm, tmp_path):
    """Loss, gradients, greedy answer and the saved checkpoint: trained and asked is one model, the published one."""
    folder = folder_of(family, ACCEPTED[family], tiny_llm, tmp_path / "llm")
    llm, tokenizer = load_llm(str(folder), torch.float32, longest=128)
    torch.manual_seed(1)
    model = AudioVisualLM(llm, WIDTHS)
    samples = samples_of(tokenizer)
    packed = model(pack(samples, WIDTHS, 128))
    ours = gradients(model, packed)
    llm.set_attn_implementation("eager")
    plain = sum(plain_loss(model, sample) for sample in samples)
    theirs = gradients(model, plain)
    assert packed.item() == pytest.approx(plain.item(), rel=1e-5)
    assert ours.keys() == theirs.keys()
    worst = max(float((ours[n] - theirs[n]).norm() / (theirs[n].norm() + 1e-6)) for n in ours)
    assert worst < 1e-3
    print(f"\n| {family} | {abs(packed.item() / plain.item() - 1):.0e} | {worst:.0e} |")
    info = CheckpointInfo(frames=4, segments=2, columns={}, builds={}, prompt=PromptFormat(), stage=2, steps=1)
    save_checkpoint(tmp_path / "saved", llm, gather_weights(model, torch.float32), tokenizer, info)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager").eval()
    ids = torch.tensor([samples[2].tokens.ids[:12]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, llm.eval()(ids).logits)
        given = again.get_input_embeddings()(ids)
        answer = again.generate(inputs_embeds=given, attention_mask=torch.ones_like(ids), max_new_tokens=5)[0].tolist()
        for number in range(len(answer)):
            assert again(ids).logits[0, -1].argmax().item() == answer[number]
            ids = torch.cat([ids, torch.tensor([[answer[number]]])], 1)
    assert len(answer) == 5 or answer[-1] == 1


@pytest.mark.parametrize("why", REFUSED)
def test_what_packed_attention_does_not_do_is_refused_before_weights_are_read(why):
    """An argument that nobody reads trains another model than the one that is published and asked."""
    family, changes, said = REFUSED[why]
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    with pytest.raises(UserError, match=said) as error:
        check_packing(config, 128, "some/llm")
    assert "some/llm" in str(error.value)
    assert "\n" not in str(error.value)
    assert config.dtype is None


def test_a_window_or_scaling_that_is_never_reached_changes_nothing():
    for family, changes in (
        ("Mistral", {"sliding_window": 128}),
        ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    ):
        check_packing(getattr(transformers, f"{family}Config")(**{**SMALL, **changes}), 128, "some/llm")


def test_missing_weights_are_refused(tiny_llm, tmp_path):
    """They would be random, and the run would go on."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_llm, tmp_path / "llm")
    weights = load_file(tmp_path / "llm" / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file({k: v for k, v in weights.items() if k != lost}, tmp_path / "llm" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"lacks 1 of its weights, such as {lost}"):
        load_llm(str(tmp_path / "llm"), torch.float32)
    renamed = {f"other.{k}": v for k, v in weights.items()}
    save_file(renamed, tmp_path / "llm" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks \d+ of its weights"):
        load_llm(str(tmp_path / "llm"), torch.float32)
    wide = weights | {lost: weights[lost].repeat(2, 1)}
    save_file(wide, tmp_path / "llm" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"lacks 1 of its weights, such as {lost}"):
        load_llm(str(tmp_path / "llm"), torch.float32)


def test_one_clean_generation_configuration_is_used_and_saved(tiny_llm, tmp_path):
    """An LLM's penalties change what is greedy; an end mark that is not its own is never found."""
    shutil.copytree(tiny_llm, tmp_path / "llm")
    file = tmp_path / "llm" / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [7, 9], "temperature": 0.9, "top_p": 0.6, "repetition_penalty": 2.0}))
    llm, tokenizer = load_llm(str(tmp_path / "llm"), torch.float32)
    llm.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == [tokenizer.eos_token_id, 7, 9]
    assert not saved.keys() & {"temperature", "top_p", "repetition_penalty"}
    assert AutoConfig.from_pretrained(tmp_path / "saved").model_type == "llama"
    assert AutoTokenizer.from_pretrained(tmp_path / "llm").eos_token_id == tokenizer.eos_token_id
