"""LLMs in the form in which they are published: sentencepiece's model, .bin files, what is damaged, what lacks."""

import json
import os
import pickle
import shutil
import sys

import pytest
import torch
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer

from store import Turn, UserError, parse_settings
from trainer.checkpoint.export import export
from trainer.checkpoint.folder import load_checkpoint
from trainer.llm import load_llm, load_shape
from trainer.planning.estimate import dry_run
from trainer.prompt import ROW, PromptFormat, tokenize
from trainer.settings import TrainConfig
from trainer.stage import train

TEXTS = ["System: A chat\n Human: red  \u00e9 x", " red", " ", "  hi", "\nHuman", "", "\u65e5\u672c 12", "a</s>b<unk>"]


def test_vicunas_published_form_trains_both_stages_is_exported_and_asked(python, vicuna, tiny_run, tmp_path):
    """The paper's LLM: no tokenizer.json, no safetensors, a generation configuration that asks for sampling."""
    first, second = tmp_path / "stage1", tmp_path / "stage2"
    settings = tiny_run | {"steps": 3, "batch_tokens": 512, "max_tokens": 512}
    for stage, model, output in ((1, vicuna, first), (2, first / "checkpoint", second)):
        own = {"stage": stage, "model": str(model), "output": str(output), "save_every": 2}
        train(parse_settings(TrainConfig, settings | own, "test"))
    export(second, tmp_path / "exported", "2")
    for folder in (first / "checkpoint", second / "checkpoint", tmp_path / "exported"):
        assert not list(folder.glob("*.bin"))
        plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        pieces = SentencePieceProcessor(model_file=str(vicuna / "tokenizer.model"))
        assert all(tokenizer(t, split_special_tokens=True).input_ids == [1, *pieces.encode(t)] for t in TEXTS)
        generation = json.loads((folder / "generation_config.json").read_text())
        assert not generation.keys() & {"temperature", "top_p"}
        ours = load_checkpoint(folder, torch.float32)[0].llm.state_dict()
        assert all(torch.equal(tensor, ours[name]) for name, tensor in plain.float().state_dict().items())
    published = load_llm(str(vicuna), torch.float32)[0].state_dict()
    kept = load_checkpoint(first / "checkpoint", torch.float32)[0].llm.state_dict()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in published.items())
    store = tiny_run["sources"][0]["store"]
    asked = ["--store", store, "--key", "clips-1-mp4", "--max-new-tokens", 4, "What colour?"]
    done = python("serve", "chat", "--checkpoint", second / "checkpoint", *asked)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dry", [True, False])
def test_float16_weights_that_are_rounded_are_said_to_be(vicuna, tiny_run, tmp_path, capsys, dry):
    """Stage 1 does not train them, yet its checkpoint holds them as training used them."""
    for precision in ("bfloat16", "float32"):
        own = {
            "stage": 1,
            "steps": 1,
            "model": str(vicuna),
            "precision": precision,
            "output": str(tmp_path / precision),
        }
        (dry_run if dry else train)(parse_settings(TrainConfig, tiny_run | own, "test"))
        said = "float16 weights are rounded to bfloat16; precision=float32 keeps them" in capsys.readouterr().out
        assert said == (precision == "bfloat16")


@pytest.mark.parametrize(
    "name", ["./llm", "/nowhere/llm", "~/llm", "a/b/c", "runs/llm", "build/smollm2", "made/llm", "made/llm.bin"]
)
def test_a_folder_that_is_not_there_is_never_looked_for_on_a_hub(name, tmp_path, monkeypatch):
    """A hub that cannot be reached is tried for half a minute, and its error says nothing of a folder."""
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "llm.bin").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trainer.llm.AutoConfig.from_pretrained", lambda _: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match=r"^field 'model': \S+: no such folder here; accepted: "):
        load_shape(name)


@pytest.mark.parametrize("name", ["mode/llm", "llm"])
def test_a_name_that_may_be_a_folder_or_a_hubs_is_refused_with_both_readings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^field 'model': {name}: no such folder here, and as a name of a hub: \w+"):
        load_shape(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": [{"store": "nowhere", "conversations": "mixed"}]}, "no store is there"),
        ({"visual": "clip-big"}, "there is no column 'clip-big'; it has: "),
        ({"visual": "clap-tiny"}, "field 'visual': column clap-tiny"),
        ({"frames": 64}, "field 'frames': column clip-tiny"),
        ({"conversations": "other"}, "there are no conversations 'other'; it has: mixed"),
    ],
)
@pytest.mark.parametrize("run", [train, dry_run])
@pytest.mark.parametrize("held_out", [False, True])
def test_the_store_is_looked_at_before_a_hub_is_asked(run, changes, message, held_out, tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr("trainer.llm.AutoConfig.from_pretrained", lambda _: pytest.fail("the hub was asked"))
    own = {"stage": 1, "steps": 1, "model": "owner/llm", "output": str(tmp_path / "run")} | changes
    sources = own.get("sources", tiny_run["sources"])
    if "conversations" in own:
        sources = [sources[0] | {"conversations": own.pop("conversations")}]
    own.pop("sources", None)
    own |= {"evaluation": {"sources": sources, "every": 1}} if held_out else {"sources": sources}
    with pytest.raises(UserError, match=message):
        run(parse_settings(TrainConfig, tiny_run | own, "test"))


CONFIGS = {
    "as Vicuna 1.5": {},
    "legacy": {"legacy": True},
    "fast": {"tokenizer_class": "LlamaTokenizerFast"},
    "as the first LLaMA folders": {
        "tokenizer_class": "LLaMATokenizer",
        "bos_token": "",
        "eos_token": "",
        "unk_token": "",
    },
}


def changed(vicuna, path, changes):
    shutil.copytree(vicuna, path)
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return path


@pytest.mark.parametrize("name", [*CONFIGS, "none"])
def test_token_ids_are_sentencepieces_own(vicuna, tmp_path, name):
    """Also around control tokens, where each text begins with sentencepiece's space, and of whole conversations."""
    folder = changed(vicuna, tmp_path / "llm", CONFIGS.get(name, {}))
    if name in ("none", "as the first LLaMA folders"):
        (folder / "special_tokens_map.json").unlink()
    if name == "none":
        (folder / "tokenizer_config.json").unlink()
    tokenizer = load_shape(str(folder))[1]
    pieces = SentencePieceProcessor(model_file=str(vicuna / "tokenizer.model"))
    for text in TEXTS:
        assert tokenizer(text, split_special_tokens=True).input_ids == [1, *pieces.encode(text)]
    red, green, other = (pieces.encode(text) for text in ("red", "green", " or"))
    assert tokenizer("red</s>green</s> or").input_ids == [1, *red, 2, *green, 2, *other]
    said = (Turn("What </s> colour?", "visual", "red"), Turn("Sure?", "text", ""))
    texts = ["System: S\n Human: What </s> colour?", "\n Assistant: red", "\n Human: Sure?\n Assistant:"]
    ids = tokenize(said, {"visual": 2}, tokenizer, PromptFormat(system="S"), open_ended=True).ids
    first, second, third = (pieces.encode(text) for text in texts)
    assert ids == [1, *first, ROW, ROW, *second, 2, *third]


def test_newer_handling_of_control_tokens_is_honoured(vicuna, tmp_path):
    """`legacy: false`: what follows a control token does not begin with a space of its own."""
    newer, legacy = load_shape(str(changed(vicuna, tmp_path / "llm", {"legacy": False})))[1], load_shape(str(vicuna))[1]
    ids = newer("t</s>t").input_ids
    assert newer.convert_ids_to_tokens(ids) == ["<s>", "\u2581", "t", "</s>", "t"]
    assert legacy("t</s>t").input_ids == [*ids[:-1], ids[1], ids[-1]]


class Harm:
    def __reduce__(self):
        return os.mkdir, (os.environ["HARM"],)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_in_bin_files_are_never_run(vicuna, tmp_path, monkeypatch):
    """A .bin file is a pickle, and a pickle is a program."""
    shutil.copytree(vicuna, tmp_path / "llm")
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    torch.save({"model.norm.weight": Harm()}, tmp_path / "llm" / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(UserError, match=r"more than tensors, which is never run; accepted: tensors by torch\.save"):
        load_llm(str(tmp_path / "llm"), torch.float32)
    assert not (tmp_path / "harm").exists()
    with open(tmp_path / "llm" / "pytorch_model-00001-of-00002.bin", "wb") as file:
        pickle.dump({"model.norm.weight": Harm()}, file)
    with pytest.raises(UserError, match="never run"):
        load_llm(str(tmp_path / "llm"), torch.float32)
    assert not (tmp_path / "harm").exists()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "tokenizer.model",
            POINTER,
            r"tokenizer\.model is no sentencepiece model, perhaps a Git LFS pointer; accepted",
        ),
        ("tokenizer.model", None, r"no file of a tokenizer; accepted: tokenizer\.json, or tokenizer\.model"),
        ("pytorch_model-00002-of-00002.bin", POINTER, "a Git LFS pointer"),
        ("pytorch_model-00002-of-00002.bin", None, r"cannot be read: .*pytorch_model-00002-of-00002\.bin"),
        ("pytorch_model.bin.index.json", None, "field 'model': "),
        ("model.safetensors", POINTER, "weights cannot be read"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused_in_one_line(vicuna, tmp_path, file, content, message):
    shutil.copytree(vicuna, tmp_path / "llm")
    path = tmp_path / "llm" / file
    path.unlink(missing_ok=True)
    if content:
        path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_llm(str(tmp_path / "llm"), torch.float32)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_a_tokenizer_that_nothing_here_reads_names_the_extra(vicuna, monkeypatch, package):
    for name in [n for n in sys.modules if n.startswith(("sentencepiece", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"needs sentencepiece and protobuf: pip install 'avllm\[train\]'"):
        load_shape(str(vicuna))


def test_tokens_without_a_word_vector_are_refused_before_weights_are_read(vicuna, tmp_path):
    """Else training stops at the first conversation that holds one, with an IndexError or a dead GPU."""
    folder = changed(vicuna, tmp_path / "llm", {"eos_token": "<|end|>"})
    for weights in folder.glob("*.bin"):
        weights.unlink()
    with pytest.raises(UserError, match=r"1 tokens .* such as '<\|end\|>', 300; accepted: ids below 300"):
        load_llm(str(folder), torch.float32)
    pad = {"content": "[PAD]", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    control = {"pad_token": "[PAD]", "added_tokens_decoder": {"300": {**pad, "special": True}}}
    padded = changed(vicuna, tmp_path / "padded", control)  # no conversation holds it
    assert len(load_llm(str(padded), torch.float32)[1]) == 301
