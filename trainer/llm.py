"""The LLM of a run: which are accepted, its tokenizer, its weights, and how its answers end.

An LLM is accepted if it gives the same numbers for packed conversations as the plain model gives for each alone.
Before any weight is read, `check_packing` refuses what would break that: it looks at the configuration, and counts the
layers that call our attention when the LLM's own code runs on tensors without data. docs/llms.md lists LLMs whose
numbers were compared.
"""

import copy
import json
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from tokenizers import AddedToken
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from store import UserError
from store.console import console
from trainer.attention import NAME as PACKED
from trainer.attention import Packing, packed_attention
from trainer.checks import check_llm_folder
from trainer.launch import is_first

PROBED = "packed_probed"  # attention that counts its calls
LENGTH_DEPENDENT = ("dynamic", "longrope")  # rope scalings that depend on the longest position of a pass
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_shape(model: str) -> tuple[Any, Any]:
    """The configuration and the tokenizer of an LLM, from a folder or a hub.

    Raises:
        UserError: it cannot be found, or its tokenizer is not accepted.
    """
    check_llm_folder(model)
    try:
        config, tokenizer = AutoConfig.from_pretrained(model), _load_tokenizer(model)
    except ModuleNotFoundError:
        raise
    except RecursionError:
        raise UserError(f"field 'model': {model}: its tokenizer lacks the unknown token that it names") from None
    except (OSError, ValueError, ImportError) as error:
        reading = "" if Path(model).is_dir() else "no such folder here, and as a name of a hub: "
        raise UserError(f"field 'model': {model}: {reading}{_line(error)}") from None
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        raise UserError(f"field 'model': {model}: needs a fast tokenizer with an end-of-text token")
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # transformers then makes an empty one
        raise UserError(
            f"field 'model': {model}: there is no file of a tokenizer; accepted: tokenizer.json, or tokenizer.model"
        )
    words = getattr(config, "vocab_size", None)
    if words and (beyond := {token: n for token, n in _ids(tokenizer).items() if n >= words}):
        token = min(beyond, key=lambda token: beyond[token])
        raise UserError(
            f"field 'model': {model}: {len(beyond)} tokens of its tokenizer have no word vector, such as {token!r}, "
            f"{beyond[token]}; accepted: ids below {words}, the vocab_size of its config.json"
        )
    return config, tokenizer


def _ids(tokenizer: Any) -> dict[str, int]:
    """The ids of the tokens that conversations can hold: of the control tokens, only the begin and end marks."""
    control = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    control -= {tokenizer.bos_token, tokenizer.eos_token}
    return {token: number for token, number in tokenizer.get_vocab().items() if token not in control}


def _load_tokenizer(model: str) -> Any:
    """A tokenizer; one that is published only as sentencepiece's file gives sentencepiece's own token ids.

    Raises:
        ValueError: the file is no tokenizer, or cannot be read here.
    """
    if _file(model, "tokenizer.json") or not (path := _file(model, "tokenizer.model")):
        return AutoTokenizer.from_pretrained(model)
    try:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2  # noqa: F401 what conversion imports
    except ImportError:
        raise ValueError(
            "its tokenizer.model needs sentencepiece and protobuf: pip install 'avllm[train]'; "
            "accepted without them: a folder with tokenizer.json"
        ) from None
    try:
        pieces = SentencePieceProcessor(model_file=path)
    except (RuntimeError, OSError):
        raise ValueError(
            "its tokenizer.model is no sentencepiece model, perhaps a Git LFS pointer; accepted: such a model, or a "
            "tokenizer.json beside it"
        ) from None
    named = _read_json(model, "special_tokens_map.json") | _read_json(model, "tokenizer_config.json")
    if not str(named.get("tokenizer_class") or "Llama").lower().startswith("llama"):
        return AutoTokenizer.from_pretrained(model)
    marks: dict[str, Any] = {}
    for name, number in (
        ("bos_token", pieces.bos_id()),
        ("eos_token", pieces.eos_id()),
        ("unk_token", pieces.unk_id()),
    ):
        mark = named.get(name)  # early folders give "", later ones an object
        text = (mark.get("content") if isinstance(mark, dict) else mark) or (number >= 0 and pieces.id_to_piece(number))
        if text:
            marks[name] = AddedToken(text, normalized=False)
    legacy, begins, ends = (named.get(name) for name in ("legacy", "add_bos_token", "add_eos_token"))
    return PreTrainedTokenizerFast.from_pretrained(  # LLaMA's own class would drop the token of a leading space
        model, legacy=legacy is not False, add_bos_token=begins is not False, add_eos_token=ends is True, **marks
    )


def _file(model: str, name: str) -> str | None:
    """The path of a file in a folder or in a hub's repository; None if it is not there."""
    path: str | None = cached_file(model, name, _raise_exceptions_for_missing_entries=False)
    return path


def _read_json(model: str, name: str) -> dict[str, Any]:
    path = _file(model, name)
    content: dict[str, Any] = json.loads(Path(path).read_text()) if path else {}
    return content


def load_llm(model: str, dtype: torch.dtype, attention: str = PACKED, longest: int | None = None) -> tuple[Any, Any]:
    """An LLM with all its weights and a clean generation configuration, and its tokenizer.

    Args:
        model: a folder or a hub name.
        dtype: of the weights.
        attention: its name in Hugging Face.
        longest: positions of the longest conversation, if packed rows will go through the LLM.

    Raises:
        UserError: it cannot be found, is not accepted, or lacks weights, or its tokenizer is not accepted.
    """
    config, tokenizer = load_shape(model)
    if longest:
        check_packing(config, longest, model)
    say_rounding(config, dtype, model)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=dtype,
            attn_implementation=attention,
            config=config,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
        )
        llm, report = loaded
    except ModuleNotFoundError:
        raise
    except pickle.UnpicklingError:
        raise UserError(
            f"field 'model': {model}: a .bin file of its weights is damaged, a Git LFS pointer, or holds more than "
            "tensors, which is never run; accepted: tensors by torch.save, or safetensors"
        ) from None
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"field 'model': {model}: its weights cannot be read: {_line(error)}") from None
    lacking = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if lacking:
        raise UserError(f"field 'model': {model}: lacks {len(lacking)} of its weights, such as {lacking[0]}")
    llm.generation_config = generation_of(llm, tokenizer)
    return llm, tokenizer


def say_rounding(config: Any, dtype: torch.dtype, model: str) -> None:
    """Print that float16 weights lose precision in bfloat16, also in stage 1, which does not train them."""
    if config.dtype == torch.float16 and dtype == torch.bfloat16 and is_first():
        console.print(f"{model}: float16 weights are rounded to bfloat16; precision=float32 keeps them as they are")


def digest_of(weights: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype) -> str:
    """Identify weights by content, whatever file they came from: `<dtype>:<digest of all names and bytes>`.

    It takes 0.1 to 0.2 seconds per GB, far less than reading them did.

    Args:
        weights: by name, on the CPU.
        dtype: weights are first rounded to it.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(weights, key=lambda named: named[0]):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().to(dtype).contiguous().flatten().view(torch.uint8).numpy().data)
    return f"{str(dtype).removeprefix('torch.')}:{digest.hexdigest()}"


def are_weights(digest: str | None, llm: Any) -> bool:
    """Whether an LLM's weights match a digest.

    True also where that cannot be checked: without a digest, and for weights that were read in a coarser dtype.
    """
    if digest is None:
        return True
    dtype = getattr(torch, digest.partition(":")[0])
    return llm.dtype not in (dtype, torch.float32) or digest_of(llm.named_parameters(), dtype) == digest


def generation_of(llm: Any, tokenizer: Any) -> GenerationConfig:
    """Greedy decoding that stops at any end mark: the tokenizer's (which training teaches) or the LLM's own.

    Penalties, beams and sampling from the LLM's folder would change greedy answers, and are dropped.
    """
    named = (llm.generation_config.eos_token_id, llm.config.eos_token_id)
    marks = {tokenizer.eos_token_id, *(mark for ids in named for mark in _listed(ids))}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        eos_token_id=sorted(marks),
        pad_token_id=tokenizer.eos_token_id,
        bos_token_id=llm.config.bos_token_id,
    )


def _listed(marks: int | list[int] | None) -> list[int]:
    return [] if marks is None else [marks] if isinstance(marks, int) else list(marks)


def check_packing(config: Any, longest: int, model: str) -> None:
    """Refuse an LLM that would not give the same numbers for packed rows as for each conversation alone.

    Args:
        config: of the LLM.
        longest: positions of the longest conversation.
        model: its name, for messages.

    Raises:
        UserError: says what the LLM needs that packed rows do not give.
    """
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(
            f"field 'model': {model}: a {config.model_type} is no causal language model; docs/llms.md lists those"
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit and longest > limit:
        raise UserError(f"field 'max_tokens': {longest}; {model} was made for {limit} positions")
    for kind, original in _rope_scalings(config):
        if kind in LENGTH_DEPENDENT and longest > original:
            raise UserError(
                f"field 'model': {model}: its {kind} rope scaling looks at the longest position of a pass beyond "
                f"{original}, so conversations would change each other; accepted: max_tokens up to {original}"
            )
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk and longest > chunk:
        raise UserError(
            f"field 'model': {model}: its attention sees {chunk} positions; accepted: max_tokens up to that"
        )
    calls = _probe(config, longest, model)
    if calls != config.num_hidden_layers:
        raise UserError(
            f"field 'model': {model}: only {calls} of its {config.num_hidden_layers} layers are attention as Hugging "
            "Face's attention interface knows it; through the others packed conversations would see each other"
        )


def _rope_scalings(config: Any) -> Iterator[tuple[str, int]]:
    """The kind of each rope scaling, and the positions up to which it does not depend on lengths."""
    for rope in _rope_parameters(config):
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        yield str(rope.get("rope_type", "default")), original


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The dictionaries of rope parameters: one for all layers, or one for each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return [parameters, *(value for value in parameters.values() if isinstance(value, dict))]


def _probe(config: Any, longest: int, model: str) -> int:
    """Count the layers that call our attention, in a forward pass of one conversation on tensors without data."""
    calls: list[str] = []

    def recorded(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        calls.append(type(module).__name__)
        return packed_attention(module, *args, **kwargs)

    AttentionInterface.register(PROBED, recorded)
    config = copy.deepcopy(config)
    for rope in _rope_parameters(config):
        if rope.get("rope_type") in LENGTH_DEPENDENT:  # it would read positions, which have no data here
            rope["rope_type"] = "default"
    try:
        with torch.device("meta"):
            llm: Any = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=torch.bfloat16, attn_implementation=PROBED
            )
            embedded = torch.empty(1, longest, llm.get_input_embeddings().weight.shape[1], dtype=torch.bfloat16)
            positions = torch.arange(longest)[None]
        packing = Packing((longest,), torch.tensor([0, longest], dtype=torch.int32))
        llm.train()(
            inputs_embeds=embedded,
            position_ids=positions,
            packing=packing,
            use_cache=False,
            logits_to_keep=torch.zeros(1, dtype=torch.long, device="meta"),
        )
    except UserError as error:
        raise UserError(f"field 'model': {model}: {error}") from None
    except Exception as error:  # the model's own code may raise anything
        why = "its attention is its own" if PROBED in str(error) else _line(error)
        raise UserError(f"field 'model': {model}: a {config.model_type} does not take packed rows: {why}") from None
    return len(calls)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
