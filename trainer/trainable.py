"""Which weights of a model are trained, and in which precision."""

import fnmatch
import warnings
from typing import Any

import torch
from torch import nn

from store import UserError
from trainer.launch import uses_deepspeed
from trainer.model import AudioVisualLM
from trainer.settings import TrainConfig

ADAPTER = "default"  # peft's name for the adapters that a run trains


def choose_trained(config: TrainConfig, model: AudioVisualLM) -> None:
    """Make a model ready to train: choose what is trained, and set its precision, checkpointing, compilation and mode.

    The projectors are trained, as modules are by default. In stage 2 the LLM is too, or adapters in it: then peft
    freezes the LLM's own weights. Projectors and what is trained become float32, but for the LLM under DeepSpeed, which
    keeps float32 originals of its own.

    Raises:
        UserError: a pattern of `freeze` matches no parameter that would be trained, or all of them are frozen.
    """
    llm = model.llm
    llm.requires_grad_(config.stage == 2)
    if config.lora:
        _add_adapters(config, llm)
    for pattern in config.freeze:
        matching = [p for name, p in model.named_parameters() if p.requires_grad and fnmatch.fnmatch(name, pattern)]
        if not matching:
            examples = [name for name, p in model.named_parameters() if p.requires_grad][:3]
            raise UserError(
                f"field 'freeze': {pattern} matches no trained parameter; there are {', '.join(examples)} ..."
            )
        for parameter in matching:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("field 'freeze': nothing is left to train")
    by_deepspeed = uses_deepspeed(config)
    for name, parameter in model.named_parameters():
        if name.startswith("projectors.") or (parameter.requires_grad and not by_deepspeed):
            parameter.data = parameter.data.float()
    if config.gradient_checkpointing:
        # the second is its name in earlier versions of transformers
        enable = getattr(llm, "activation_checkpointing_enable", None) or llm.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        llm.enable_input_require_grads()
    if config.compile:
        for layer in llm.base_model.layers:
            layer.compile(dynamic=True)
    model.train()


def _add_adapters(config: TrainConfig, llm: Any) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora.layer import ParamWrapper

    assert config.lora is not None
    targets = config.lora.targets
    settings = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=config.model,
    )
    linear = {name.rpartition(".")[2] for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    torch.manual_seed(config.seed % 2**63)  # for the adapters' initial weights
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings")  # refused below
            warnings.filterwarnings("ignore", "The following .*_pattern keys")  # for mixtures of experts: refused too
            inject_adapter_in_model(settings, llm, ADAPTER)
    except ValueError as error:
        raise UserError(f"field 'lora.targets': {' '.join(str(error).split())[:300]}") from None
    weights = dict(llm.named_parameters())  # tied weights appear under one name only
    for name, module in llm.named_modules():
        if isinstance(module, ParamWrapper):
            raise UserError(
                f"field 'lora.targets': {name} is a mixture's router or experts, which are no linear layers; "
                f"accepted: {', '.join(sorted(linear - {'lm_head'}))}"
            )
        if hasattr(module, "lora_A") and (module.lora_embedding_A or f"{name}.base_layer.weight" not in weights):
            raise UserError(f"field 'lora.targets': {name} is an embedding or tied to one; accepted: linear layers")


def precision(config: TrainConfig) -> torch.dtype:
    """The dtype of the arithmetic and of a checkpoint's LLM."""
    return torch.bfloat16 if config.precision == "bfloat16" else torch.float32
