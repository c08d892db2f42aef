"""A trained checkpoint that answers, token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from transformers import TextIteratorStreamer

from serve.features import FeatureSource
from store import Arrays, Turn, UserError
from trainer.batch import Sample, pack
from trainer.checkpoint.folder import CheckpointInfo, load_checkpoint
from trainer.features import FEATURES_OF, rows_of
from trainer.model import AudioVisualLM
from trainer.prompt import tokenize


@dataclass(frozen=True)
class Question:
    """A dialogue about an item, whose last turn awaits its response, and the item's feature arrays."""

    turns: tuple[Turn, ...]
    arrays: Arrays


class Assistant:
    """A checkpoint with its tokenizer.

    Attributes:
        features: encodes or loads the features of an item.

    Args:
        model: its LLM uses `sdpa` attention; it is moved to the GPU if there is one.
        tokenizer: the LLM's.
        info: the checkpoint's metadata.
    """

    def __init__(self, model: AudioVisualLM, tokenizer: Any, info: CheckpointInfo) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.tokenizer, self.info = model.eval().to(self.device), tokenizer, info
        self.features = FeatureSource(info)

    @classmethod
    def load(cls, checkpoint: str) -> "Assistant":
        """Load a checkpoint from its folder.

        Raises:
            UserError: the folder is no checkpoint of this trainer.
        """
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        return cls(*load_checkpoint(checkpoint, dtype, attention="sdpa"))

    @torch.inference_mode()
    def stream(self, question: Question, max_new_tokens: int = 256) -> Iterator[str]:
        """Yield the greedy answer piece by piece; closing the iterator stops generation at its next step.

        Raises:
            Exception: whatever generation raised, as soon as it fails.
        """
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=False, skip_special_tokens=True)
        inputs = {**self._inputs([question]), "max_new_tokens": max_new_tokens, "streamer": streamer}
        closed, failed = Event(), list[Exception]()

        def stop(ids: torch.Tensor, _: Any) -> torch.Tensor:
            return torch.full(ids.shape[:1], closed.is_set(), device=ids.device)

        def generate() -> None:
            try:
                self._generate(**inputs, stopping_criteria=[stop])
            except Exception as error:
                failed.append(error)
                streamer.on_finalized_text("", stream_end=True)

        thread = Thread(target=generate)
        thread.start()
        try:
            yield from streamer
        finally:
            closed.set()
            thread.join()
        if failed:
            raise failed[0]

    @torch.inference_mode()
    def answer(self, questions: Sequence[Question], max_new_tokens: int = 32) -> list[str]:
        """Greedy answers to a batch of questions."""
        output = self._generate(**self._inputs(questions), max_new_tokens=max_new_tokens)
        return [text.strip() for text in self.tokenizer.batch_decode(output, skip_special_tokens=True)]

    def _generate(self, **inputs: Any) -> torch.Tensor:
        with torch.inference_mode():
            output: torch.Tensor = self.model.llm.generate(
                **inputs, do_sample=False, pad_token_id=self.tokenizer.eos_token_id
            )
        return output

    def _inputs(self, questions: Sequence[Question]) -> dict[str, torch.Tensor]:
        """Left-padded prompt embeddings [questions, positions, width] and their attention mask."""
        samples = [self._sample(question) for question in questions]
        batch = pack(samples, self.model.widths, max(len(s.tokens.ids) for s in samples)).to(self.device)
        prompts = torch.split(self.model.embed(batch), np.diff(batch.packing.bounds.cpu().numpy()).tolist())
        longest = max(len(prompt) for prompt in prompts)
        embeds = prompts[0].new_zeros(len(prompts), longest, prompts[0].shape[1])
        mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=self.device)
        for row, prompt in enumerate(prompts):
            embeds[row, longest - len(prompt) :] = prompt
            mask[row, longest - len(prompt) :] = 1
        return {"inputs_embeds": embeds, "attention_mask": mask}

    def _sample(self, question: Question) -> Sample:
        for turn in question.turns:
            missing = FEATURES_OF[turn.modality] - question.arrays.keys()
            if missing:
                raise UserError(
                    f"the question asks by {turn.modality}, but there are no {', '.join(sorted(missing))} tokens"
                )
        rows = rows_of(question.arrays)
        tokens = tokenize(question.turns, rows, self.tokenizer, self.info.prompt, open_ended=True)
        return Sample(tokens, question.arrays, question.turns[-1].modality, "question")
