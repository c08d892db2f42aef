"""Load models of the transformers package from a local folder or a hub. Code shipped with weights is never run."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featurize.settings import EncoderSettings
from store import UserError, canonical_json, is_missing_folder
from store.hub import is_offline

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
        settings: whose weights are a folder, a hub id such as `openai/whisper-tiny`, or a published short name; with
            a folder or an id, the architecture is only a label.
        published: hub ids by architecture and short name.
        also: what else is accepted as weights.

    Raises:
        UserError: there is no such folder, or no such name.
    """
    architecture, weights = settings.architecture, settings.weights
    if "/" in weights:
        if is_missing_folder(weights):
            raise UserError(f"{weights}: no such folder here; expected one that transformers' save_pretrained wrote")
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
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # of weights; it would also leave a semaphore behind when the worker is ended
    try:
        return kind.from_pretrained(source, **options)
    except Exception as error:  # hub, file and parsing errors of many packages
        if is_offline() and isinstance(error, OSError) and not Path(source).exists():
            raise UserError(
                f"field 'encoder': {source}: no hub answers, and the weights are not in its cache; "
                "without a hub: a folder that transformers' save_pretrained wrote"
            ) from None
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{source}: cannot be loaded as {kind.__name__}: {first}") from None


def load_model(kind: Any, source: str) -> Any:
    """A model in float32 with all its weights from `source`.

    Raises:
        UserError: it cannot be loaded, or lacks weights, which transformers would draw at random.
    """
    import torch

    # Mismatches are refused below, by name.
    model, loading = load(kind, source, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True)
    wrong = sorted([*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])])
    if wrong:
        raise UserError(f"{source}: not the weights of {kind.__name__}: {len(wrong)} tensors differ, first {wrong[0]}")
    return model


def vocabulary_digest(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's tokens and their ids."""
    return hashlib.sha256(canonical_json(tokenizer.get_vocab())).hexdigest()


def shaping(config: Any) -> dict[str, Any]:
    """The values of a configuration that, besides the weights, affect its model's numbers or greedy captions."""
    values = {name: getattr(config, name, None) for name in SHAPING}
    return {name: value for name, value in values.items() if value}
