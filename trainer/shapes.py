"""Shapes of the LLMs that the shipped recipes name, for estimates where no model hub can be reached.

They are those of `config.json` in lmsys/vicuna-7b-v1.5 and lmsys/vicuna-13b-v1.5 on the Hugging Face hub, which are
Llama 2's (arXiv 2307.09288). Training never reads them: it takes the model's own configuration.
"""

from typing import Any

from transformers import AutoConfig, LlamaConfig

from store import UserError


def _vicuna(hidden: int, intermediate: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "vocab_size": 32000,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }


SHAPES = {
    "lmsys/vicuna-7b-v1.5": _vicuna(4096, 11008, 32, 32),
    "lmsys/vicuna-13b-v1.5": _vicuna(5120, 13824, 40, 40),
}


def llm_shape(model: str) -> Any:
    """The configuration of an LLM, without its weights.

    Raises:
        UserError: it is neither a folder nor one of the shapes known here, and no hub has it.
    """
    if model in SHAPES:
        return LlamaConfig(**SHAPES[model])
    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"field 'model': {model}: {' '.join(str(error).split())[:300]}") from None
