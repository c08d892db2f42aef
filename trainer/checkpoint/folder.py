"""A checkpoint: an ordinary Hugging Face folder of the LLM, with the projectors and what they read in `avllm/`.

`config.json`, safetensors and tokenizer of the LLM load anywhere; `avllm/projectors.safetensors` and
`avllm/config.json` (columns with their specs, time grid, prompt format) make it an `AudioVisualLM`.
"""

import json
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors.torch import load_file, save_file

from store import UserError
from store.publish import publishing
from trainer.attention import NAME as PACKED
from trainer.checkpoint.info import FOLDER, CheckpointInfo, read_info
from trainer.checkpoint.weights import Weights
from trainer.llm import are_weights, digest_of, load_llm
from trainer.model import AudioVisualLM
from trainer.trainable import ADAPTER


def save_checkpoint(folder: str | Path, llm: Any, weights: Weights, tokenizer: Any, info: CheckpointInfo) -> None:
    """Write a checkpoint; its folder appears whole, in place of an older one of that name."""
    folder = Path(folder)
    dtype = next(iter(weights.llm.values())).dtype
    info = info.model_copy(update={"llm": digest_of(weights.llm.items(), dtype)})
    with publishing(folder) as temporary:
        (temporary / FOLDER).mkdir(parents=True)
        llm.save_pretrained(temporary, state_dict=weights.llm)
        llm.config.dtype = dtype  # else it would be the dtype in training
        llm.config.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        save_file(weights.projectors, temporary / FOLDER / "projectors.safetensors")
        if weights.adapter:
            llm.peft_config[ADAPTER].save_pretrained(temporary / FOLDER / "adapter")
            save_file(weights.adapter, temporary / FOLDER / "adapter" / "adapter_model.safetensors")
        (temporary / FOLDER / "config.json").write_text(info.model_dump_json(indent=2))
        (temporary / "README.md").write_text(model_card(info))


def model_card(info: CheckpointInfo) -> str:
    """The README.md of a checkpoint as a model repository; a function of the checkpoint alone."""
    reads = [
        f"- {modality}: `{spec.name}`, column digest `{spec.fingerprint}`, built by "
        f"`{json.dumps(info.builds[modality], sort_keys=True)}`"
        for modality, spec in sorted(info.columns.items())
    ]
    lines = [
        "---",
        "library_name: avllm",
        "tags: [video, audio, multimodal]",
        *([f"base_model: {info.base}"] if info.base else []),
        "---",
        "",
        "# An audio-visual LLM",
        "",
        f"Trained by avllm: stage {info.stage}, {info.steps} steps"
        f"{f', attention by {info.attention}' if info.attention else ''}. The folder loads as an ordinary causal LM "
        "(`AutoModelForCausalLM.from_pretrained`); `avllm/` holds the linear projectors that carry features of "
        "frozen encoders into it.",
        "",
        f"It reads T = {info.frames} frames and K = {info.segments} sound segments of",
        "",
        *reads,
        "",
        "and answers turns of this form, where `<MOD>` stands for the features' rows:",
        "",
        f"    System: {info.prompt.system}",
        "     Human: <instruction> <MOD>",
        "     Assistant: <response>",
        "",
        "```bash",
        "avllm serve chat --checkpoint . --media clip.mp4 --watch --listen",
        "```",
        "",
    ]
    return "\n".join(lines)


def check_llm(folder: str | Path, info: CheckpointInfo, llm: Any) -> None:
    """Refuse a checkpoint whose LLM was replaced: its projectors were trained for the original one.

    Raises:
        UserError: the weights of `llm`, read from the checkpoint, are not those it was written with.
    """
    if not are_weights(info.llm, llm):
        raise UserError(
            f"{folder}: the LLM's weights are not those that this checkpoint was written with; its projectors were "
            "trained with those: write it again by avllm trainer export, or train again"
        )


def checkpoint_digest(folder: str | Path, info: CheckpointInfo) -> str:
    """Identify a checkpoint's weights: a digest of the LLM's and of the projectors."""
    projectors = xxhash.xxh3_128((Path(folder) / FOLDER / "projectors.safetensors").read_bytes()).hexdigest()
    return f"{info.llm or 'unknown'}+{projectors}"


def load_projectors(folder: str | Path) -> dict[str, torch.Tensor]:
    """The projectors of a checkpoint: `<feature>.weight` [D_l, D], `.bias` [D_l], `.mean` and `.deviation` [D]."""
    return load_file(Path(folder) / FOLDER / "projectors.safetensors")


def load_checkpoint(
    folder: str | Path, dtype: torch.dtype, attention: str = PACKED
) -> tuple[AudioVisualLM, Any, CheckpointInfo]:
    """The whole model of a checkpoint, its tokenizer and its metadata."""
    info = read_info(folder)
    llm, tokenizer = load_llm(str(folder), dtype, attention)
    check_llm(folder, info, llm)
    model = AudioVisualLM(llm, info.grid.widths(info.columns))
    model.projectors.load_state_dict(load_projectors(folder))
    model.to(dtype)
    return model, tokenizer, info
