"""A model and settings that the tests of choices share."""

import io
import json
import shutil
import time

import pytest


@pytest.fixture(scope="session")
def tied_llm(tiny_llm, tmp_path_factory):
    """An LLM whose head is its word table, as SmolLM2's and many others' is."""
    import torch
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tied") / "llm"
    shutil.copytree(tiny_llm, folder)
    config = LlamaConfig.from_pretrained(folder)
    config.tie_word_embeddings = True
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_run(feature_store, tiny_llm):
    """Settings of a run on the small store, without `stage` and `steps`."""
    return {
        "model": str(tiny_llm),
        "sources": [{"store": str(feature_store), "conversations": "mixed"}],
        "visual": "clip-tiny",
        "audio": "clap-tiny",
        "frames": 4,
        "segments": 2,
        "global_batch": 8,
        "lr": 5e-3,
        "precision": "float32",
    }


@pytest.fixture(scope="session")
def tied_stage2(tiny_run, tied_llm):
    """Stage 2 on that LLM, with several passes in a step."""
    return tiny_run | {"stage": 2, "steps": 6, "model": str(tied_llm), "batch_tokens": 256, "max_tokens": 256}


@pytest.fixture(scope="session")
def end_well():
    """A function that waits for the processes of a run; as soon as one fails it kills the others, who wait for it."""

    def end_well(processes, seconds=900) -> bool:
        deadline = time.monotonic() + seconds
        while any(statuses := [process.poll() for process in processes]) or None in statuses:
            if any(statuses) or time.monotonic() > deadline:
                for process in processes:
                    process.kill()
                return False
            time.sleep(0.05)
        return True

    return end_well


@pytest.fixture(scope="session")
def start_ranks(forks, free_port):
    """A function that starts the processes of a run, without a launcher's."""

    def start_ranks(config, processes) -> list:
        many = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        with open(config.with_suffix(".log"), "ab") as log:
            return [
                forks.start("trainer", "train", config, out=log, err=log, env=ranks)
                for rank in range(processes)
                for ranks in [many | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}]
            ]

    return start_ranks


@pytest.fixture(scope="session")
def finish_ranks(start_ranks, end_well):
    """A function that trains to the end."""

    def finish_ranks(config, processes) -> None:
        assert end_well(start_ranks(config, processes)), config.with_suffix(".log").read_text()[-5000:]

    return finish_ranks


def mark(text):
    return {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


@pytest.fixture(scope="session")
def vicuna(tmp_path_factory):
    """A tiny LLM in the form in which Vicuna is published: sentencepiece's model, two .bin files, nothing newer."""
    import sentencepiece
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("vicuna") / "llm"
    folder.mkdir()
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(  # as LLaMA's was
        sentence_iterator=iter(["System: A chat\n Human: What colour?\n Assistant: red or green"] * 20),
        model_writer=pieces,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        character_coverage=1.0,
        hard_vocab_limit=True,
        minloglevel=2,
    )
    marks = {"bos_token": mark("<s>"), "eos_token": mark("</s>"), "unk_token": mark("<unk>")}
    objects = {name: {"__type": "AddedToken", **value} for name, value in marks.items()}
    llama = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rope_scaling": None,
        "pretraining_tp": 1,
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    }
    texts = {
        "config.json": llama,
        "generation_config.json": {
            **{"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            **{"max_length": 4096, "temperature": 0.9, "top_p": 0.6, "transformers_version": "4.31.0"},
        },
        "special_tokens_map.json": {**marks, "pad_token": "<unk>"},
        "tokenizer_config.json": {
            **{"add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False},
            **{"model_max_length": 2048, "pad_token": None, "padding_side": "right", "sp_model_kwargs": {}},
            **{"tokenizer_class": "LlamaTokenizer", **objects},
        },
    }
    for name, text in texts.items():
        (folder / name).write_text(json.dumps(text))
    (folder / "tokenizer.model").write_bytes(pieces.getvalue())
    torch.manual_seed(0)
    weights = LlamaForCausalLM(LlamaConfig.from_pretrained(folder)).half().state_dict()
    weights |= {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(2)}  # of that time
    names = list(weights)
    index = {name: f"pytorch_model-0000{1 + (n > 9)}-of-00002.bin" for n, name in enumerate(names)}
    for file in set(index.values()):
        torch.save({name: weights[name].clone() for name in names if index[name] == file}, folder / file)
    size = sum(tensor.nbytes for tensor in weights.values())
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    )
    return folder
