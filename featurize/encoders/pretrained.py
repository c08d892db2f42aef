"""Models of the transformers package, from a local folder or a hub. No code that comes with weights is run."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurize.settings import EncoderSettings
from store import UserError, canonical_json

SHAPING = (
    *("num_attention_heads", "encoder_attention_heads", "decoder_attention_heads"),
    *("hidden_act", "activation_function", "layer_norm_eps", "scale_embedding"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
    *("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id"),
    *("min_length", "min_new_tokens", "repetition_penalty", "no_repeat_ngram_size"),
)
Published = Mapping[str, Mapping[str, str]]


def source_of(settings: EncoderSettings, published: Published, also: str = "") -> str:
    """Where weights are: a local folder, or the id of a repository on a hub.

    Args:
        settings: their weights are a folder, an id such as `openai/whisper-tiny`, or a short name of published ones;
            beside a folder or an id, the architecture is a label.
        published: for each architecture, the ids behind the short names.
        also: what else is accepted as weights.

    Raises:
        UserError: there is no such folder, or no such name.
    """
    architecture, weights = settings.architecture, settings.weights
    if "/" in weights:
        local = weights[0] in "/." or weights.count("/") > 1
        if local and not Path(weights).is_dir():
            raise UserError(f"{weights}: no such folder; expected one that transformers' save_pretrained wrote")
        return weights
    if architecture not in published:
        raise UserError(f"field 'encoder': no architecture {architecture!r}; accepted: {', '.join(published)}")
    names = published[architecture]
    if weights not in names:
        raise UserError(
            f"field 'encoder': {architecture} has no weights {weights!r}; "
            f"accepted: {also}a local folder, an id on a hub, {', '.join(names)}"
        )
    return names[weights]


def load(kind: Any, source: str, **options: Any) -> Any:
    """`kind.from_pretrained(source)`; tensors come from safetensors, or from a torch file read as tensors only.

    Raises:
        UserError: it cannot be loaded.
    """
    try:
        return kind.from_pretrained(source, **options)
    except Exception as error:  # hub, file and parsing errors of many packages
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: cannot be loaded as {kind.__name__}: {first}") from None


def load_model(kind: Any, source: str) -> Any:
    """A model in float32 with all its weights from `source`.

    Raises:
        UserError: it cannot be loaded, or some of its weights are not there; transformers would draw them at random.
    """
    import torch

    model, found = load(
        kind, source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )  # what is mismatched is refused here, by name
    wrong = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if wrong:
        raise UserError(f"{source}: not the weights of {kind.__name__}: {len(wrong)} tensors differ, first {wrong[0]}")
    return model


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's words and their numbers."""
    return hashlib.sha256(canonical_json(tokenizer.get_vocab())).hexdigest()


def shaping(config: Any) -> dict[str, Any]:
    """What a configuration says, beside the weights, that shapes the numbers or the greedy captions of its model."""
    found = {name: getattr(config, name, None) for name in SHAPING}
    return {name: value for name, value in found.items() if value}
