"""LLMs with random weights, and a tokenizer without a file."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from benchmarks.conversations import WORDS
from trainer.attention import NAME as PACKED
from trainer.planning.shapes import LLMS, llama

TINY = (64, 128, 2, 4, 2, 512, False)  # like a row of `trainer.planning.shapes.LLMS`
PUBLISHED = {
    "7B": "lmsys/vicuna-7b-v1.5",
    "1B": "meta-llama/Llama-3.2-1B",
    "135M": "HuggingFaceTB/SmolLM2-135M-Instruct",
}


def shape_of(name: str, layers: int | None = None) -> LlamaConfig:
    """The configuration of an LLM that never ends an answer by itself.

    Args:
        name: a key of `PUBLISHED`, or `tiny`.
        layers: how many layers; None keeps its own number.
    """
    shape = llama(*(LLMS[PUBLISHED[name]] if name in PUBLISHED else TINY))
    shape.max_position_embeddings = 16384
    shape.num_hidden_layers = layers or shape.num_hidden_layers
    shape.bos_token_id = shape.eos_token_id = shape.pad_token_id = None
    return shape


def build_llm(
    shape: LlamaConfig, device: torch.device, dtype: torch.dtype = torch.bfloat16, attention: str = PACKED
) -> Any:
    """Build an LLM of a shape with random weights, the same every time."""
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            shape, dtype=dtype, attn_implementation=attention
        )


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each word."""
    vocabulary = {word: number for number, word in enumerate(["<unk>", "</s>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    build: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = build(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    return tokenizer
