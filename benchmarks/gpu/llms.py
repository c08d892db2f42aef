"""LLMs with random weights, and a tokenizer without a file."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.conversations import WORDS
from trainer.attention import NAME as PACKED
from trainer.shapes import llm_shape

SHAPES = {  # width, of the MLP, layers, heads, of keys, rows of the word table, whether it is the head too
    "1B": (2048, 8192, 16, 32, 8, 128256, True),  # Llama 3.2 1B's
    "tiny": (64, 128, 2, 4, 2, 512, False),
}
PUBLISHED = {"7B": "lmsys/vicuna-7b-v1.5", "135M": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def shape_of(name: str, layers: int | None = None) -> LlamaConfig:
    """The configuration of an LLM that never ends an answer by itself.

    Args:
        name: of `SHAPES` or `PUBLISHED`.
        layers: in place of its own number.
    """
    if name in PUBLISHED:
        shape = llm_shape(PUBLISHED[name])
        assert shape
    else:
        hidden, mlp, depth, heads, keys, words, tied = SHAPES[name]
        shape = LlamaConfig(
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=keys,
            vocab_size=words,
            tie_word_embeddings=tied,
        )
    shape.max_position_embeddings = 16384
    shape.num_hidden_layers = layers or shape.num_hidden_layers
    shape.bos_token_id = shape.eos_token_id = shape.pad_token_id = None
    return shape


def build_llm(
    shape: LlamaConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16, attention: str = PACKED
) -> Any:
    """Such an LLM with random weights, the same every time."""
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(shape, dtype=dtype, attn_implementation=attention)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word is a token."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", "</s>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
