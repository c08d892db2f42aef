"""A model and settings that the tests of choices share."""

import shutil

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
