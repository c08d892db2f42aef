"""Questions as the LLM reads them: embedded rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from store import Arrays, Turn, UserError
from trainer.batch import Sample, pack
from trainer.checkpoint.folder import load_projectors
from trainer.checkpoint.info import CheckpointInfo, read_info
from trainer.features import FEATURES_OF, rows_of
from trainer.llm import load_shape
from trainer.model import AudioVisualLM
from trainer.prompt import PromptFormat, tokenize


@dataclass(frozen=True)
class Question:
    """A dialogue about an item, whose last turn awaits its response.

    Attributes:
        turns: of the dialogue.
        arrays: the item's features.
        system: system text; None keeps the checkpoint's.
        begun: how the response begins; the model goes on from there.
    """

    turns: tuple[Turn, ...]
    arrays: Arrays
    system: str | None = None
    begun: str = ""


class Prompts:
    """Embeds questions with a checkpoint's projectors and word vectors.

    Args:
        model: whose `embed` is used; it stays on its device.
        tokenizer: the LLM's.
        info: the checkpoint's metadata.
    """

    def __init__(self, model: AudioVisualLM, tokenizer: Any, info: CheckpointInfo) -> None:
        self.tokenizer, self.info = tokenizer, info
        self._model = model

    @torch.inference_mode()
    def embed(self, question: Question) -> torch.Tensor:
        """The embedded prompt [S, D_l] of one question alone, so that equal questions give equal bits.

        Raises:
            UserError: a turn asks by features that the item lacks.
        """
        sample = self._sample(question)
        batch = pack([sample], self._model.widths, len(sample.tokens.ids))
        return self._model.embed(batch.to(self._model.llm.get_input_embeddings().weight.device))

    def _sample(self, question: Question) -> Sample:
        for turn in question.turns:
            missing = FEATURES_OF[turn.modality] - question.arrays.keys()
            if missing:
                raise UserError(
                    f"the question asks by {turn.modality}, but there are no {', '.join(sorted(missing))} tokens"
                )
        prompt = self.info.prompt if question.system is None else PromptFormat(system=question.system)
        tokens = tokenize(question.turns, rows_of(question.arrays), self.tokenizer, prompt, open_ended=True)
        if question.begun:
            tokens.ids += self.tokenizer(f" {question.begun}", add_special_tokens=False).input_ids
        return Sample(tokens, question.arrays)


class WordTable(nn.Module):
    """The word vectors of an LLM, in place of the whole LLM."""

    def __init__(self, config: Any, weight: torch.Tensor) -> None:
        super().__init__()
        self.config = config
        self._words = nn.Embedding(weight.shape[0], weight.shape[1], _weight=weight)

    def get_input_embeddings(self) -> nn.Embedding:
        """As the LLM's."""
        return self._words


def load_prompts(checkpoint: str | Path, dtype: torch.dtype) -> Prompts:
    """Load what embedding needs of a checkpoint: the projectors and one tensor of the LLM.

    Raises:
        UserError: the folder is no checkpoint of this trainer, or its LLM does more with words than look up vectors.
    """
    info = read_info(checkpoint)
    config, tokenizer = load_shape(str(checkpoint))
    table = WordTable(config, _word_vectors(Path(checkpoint), config).to(dtype))
    model = AudioVisualLM(table, info.grid.widths(info.columns))
    model.projectors.load_state_dict(load_projectors(checkpoint))
    return Prompts(model.to(dtype).eval(), tokenizer, info)


def _word_vectors(folder: Path, config: Any) -> torch.Tensor:
    """The LLM's input embeddings [V, D_l], read alone."""
    with torch.device("meta"):
        llm: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    words = llm.get_input_embeddings()
    if type(words) is not nn.Embedding:
        raise UserError(f"{folder}: its LLM scales its word vectors, so prompts cannot be embedded without it")
    name = next(name for name, module in llm.named_modules() if module is words)
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            if f"{name}.weight" in file.keys():  # noqa: SIM118 it is no dictionary
                tensor: torch.Tensor = file.get_tensor(f"{name}.weight")
                return tensor
    raise UserError(f"{folder}: no word vectors ({name}.weight) in its safetensors")
