"""A trained checkpoint that answers: features of a clip, and text that comes token by token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, Literal, get_args

import numpy as np
import torch
from pydantic import TypeAdapter
from transformers import TextIteratorStreamer

from featurize.encoders import Encoder, build_encoder
from featurize.media import MediaError
from featurize.prepare import ItemMedia
from featurize.settings import AnyEncoder
from featurize.sources.kinds import kind_of
from store import Arrays, ColumnReader, MediaItem, Modality, Storage, Turn, UserError, open_column
from trainer.batch import Sample, pack
from trainer.checkpoint.folder import CheckpointInfo, load_checkpoint
from trainer.features import PERCEIVES, rows_of
from trainer.model import AudioVisualLM
from trainer.prompt import tokenize

Sense = Literal["visual", "audio"]


@dataclass(frozen=True)
class Question:
    """What is asked of an item: the turns so far (the last one's response is what is wanted) and its arrays."""

    turns: tuple[Turn, ...]
    arrays: Arrays


def perceived(arrays: Arrays) -> Modality:
    """The modality token that asks for all the features that are there."""
    if "temporal" in arrays:
        return "audio_visual" if "audio" in arrays else "visual"
    return "audio" if "audio" in arrays else "text"


class Assistant:
    """A checkpoint with its tokenizer and, when raw media is asked about, its encoders.

    Args:
        model: moved to the device; its LLM's attention is `sdpa`.
        tokenizer: of its LLM.
        info: what the checkpoint says about itself.
    """

    def __init__(self, model: AudioVisualLM, tokenizer: Any, info: CheckpointInfo) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.tokenizer, self.info = model.eval().to(self.device), tokenizer, info
        self._encoders: dict[str, Encoder[Any]] = {}

    @classmethod
    def load(cls, checkpoint: str) -> "Assistant":
        """The assistant of a checkpoint's folder.

        Raises:
            UserError: the folder is no checkpoint of this trainer.
        """
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        return cls(*load_checkpoint(checkpoint, dtype, attention="sdpa"))

    @property
    def senses(self) -> list[Sense]:
        """What the checkpoint was trained to perceive."""
        return [sense for sense in get_args(Sense) if sense in self.info.columns]

    def look(self, path: str, senses: Sequence[Sense]) -> Arrays:
        """Decode and encode a raw file with the encoders that the checkpoint names.

        Raises:
            UserError: an encoder now gives another fingerprint than the one the checkpoint was trained on.
            MediaError: the file cannot be used for one of the senses.
        """
        uri = path if "://" in path else str(Path(path).absolute())
        item = MediaItem(key="question", uri=uri, kind=kind_of(path, path), shard=0, position=0, bytes=None)
        arrays: Arrays = {}
        for sense in senses:
            encoder = self._encoder(sense)
            units = encoder.prepare(item, ItemMedia(item, [encoder]))
            arrays |= self.info.grid.select(encoder.encode_item(units))
        return arrays

    def recall(self, store: str, key: str, senses: Sequence[Sense]) -> Arrays:
        """The features of an item as a store has them.

        Raises:
            UserError: the store lacks the column, or has never seen the item.
            MediaError: the item could not be featurized.
        """
        arrays: Arrays = {}
        for sense in senses:
            reader = ColumnReader(open_column(Storage(store), self._trained(sense).folder))
            if key in reader.failed:
                raise MediaError(reader.failed[key].code, reader.failed[key].reason)
            arrays |= self.info.grid.select(reader.read(key))
        return arrays

    @torch.inference_mode()
    def stream(self, question: Question, max_new_tokens: int = 256) -> Iterator[str]:
        """The answer, greedily, in pieces as they come; closing the iterator ends generation at its next step.

        Raises:
            Exception: what generation raised, at once.
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
        """The answers to a batch of questions, greedily."""
        output = self._generate(**self._inputs(questions), max_new_tokens=max_new_tokens)
        return [text.strip() for text in self.tokenizer.batch_decode(output, skip_special_tokens=True)]

    def _generate(self, **inputs: Any) -> torch.Tensor:
        with torch.inference_mode():
            output: torch.Tensor = self.model.llm.generate(
                **inputs, do_sample=False, pad_token_id=self.tokenizer.eos_token_id
            )
        return output

    def _inputs(self, questions: Sequence[Question]) -> dict[str, torch.Tensor]:
        """Embedded prompts, padded on the left, and the mask of what is not padding."""
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
            lacking = PERCEIVES[turn.modality] - question.arrays.keys()
            if lacking:
                raise UserError(
                    f"the question asks by {turn.modality}, but there are no {', '.join(sorted(lacking))} tokens"
                )
        rows = rows_of(question.arrays)
        tokens = tokenize(question.turns, rows, self.tokenizer, self.info.prompt, open_ended=True)
        return Sample(tokens, question.arrays, question.turns[-1].modality, "question")

    def _trained(self, sense: Sense) -> Any:
        if sense not in self.info.columns:
            raise UserError(f"this checkpoint was trained without a {sense} column")
        return self.info.columns[sense]

    def _encoder(self, sense: Sense) -> Encoder[Any]:
        if sense not in self._encoders:
            trained = self._trained(sense)
            build = self.info.builds[sense]
            if "imported" in build:
                raise UserError(
                    f"column {trained.folder} was imported ({build['imported']}): its encoder cannot be built here; "
                    "ask about items of a store that holds it, with --store and --key"
                )
            settings: Any = TypeAdapter(AnyEncoder).validate_python(build)
            encoder = build_encoder(settings)
            if encoder.spec != trained:
                raise UserError(
                    f"{settings.encoder}: gives the column {encoder.spec.folder}, "
                    f"but the checkpoint was trained on {trained.folder}; were its weights changed?"
                )
            self._encoders[sense] = encoder
        return self._encoders[sense]
