"""A trained checkpoint that answers questions about clips, by an engine here or by a vLLM server."""

import os
from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from typing import Self

import torch

from serve.engine import Engine, Limits, Piece, Reply, reply, stream, until_end
from serve.features import FeatureSource
from serve.local import Local
from serve.prompts import Prompts, Question, load_prompts
from serve.vllm import VLLM
from trainer.checkpoint.folder import load_checkpoint
from trainer.checkpoint.info import CheckpointInfo
from trainer.model import AudioVisualLM

__all__ = ["Assistant", "Question"]


class Assistant:
    """A checkpoint that answers. A context manager, which closes it; Ctrl-C does not wait for the engine's step.

    Attributes:
        features: encodes or loads the features of an item.

    Args:
        prompts: embeds questions.
        engine: generates answers.
    """

    def __init__(self, prompts: Prompts, engine: Engine) -> None:
        self.prompts, self.engine = prompts, engine
        self.info: CheckpointInfo = prompts.info
        self.features = FeatureSource(prompts.info)

    @classmethod
    def load(cls, checkpoint: str, vllm: str | None = None) -> "Assistant":
        """Load a checkpoint from its folder.

        Args:
            checkpoint: the folder.
            vllm: URL of a vLLM server that serves the folder; None generates here, on the GPU if there is one.

        Raises:
            UserError: the folder is no checkpoint of this trainer, or the server cannot be used.
        """
        has_gpu = torch.cuda.is_available()
        if has_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))  # of torchrun, whose ranks share questions
        dtype = torch.bfloat16 if has_gpu else torch.float32
        if vllm is not None:
            engine = VLLM(vllm)  # before the weights, which take longer than to find that no server is there
            return cls(load_prompts(checkpoint, dtype), engine)
        model, tokenizer, info = load_checkpoint(checkpoint, dtype, attention="sdpa")
        return cls.of(model, tokenizer, info)

    @classmethod
    def of(cls, model: AudioVisualLM, tokenizer: object, info: CheckpointInfo) -> "Assistant":
        """An assistant of a model in memory, whose LLM uses `sdpa` attention; it is moved to a GPU if there is one."""
        model = model.eval().to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(Prompts(model, tokenizer, info), Local(model.llm, tokenizer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):
            self.close()

    def stream(self, question: Question, limits: Limits = Limits()) -> Generator[Piece]:
        """Yield an answer piece by piece; closing the iterator ends generation at its next step.

        Raises:
            UserError: the question asks by features that the item lacks, or is too long.
            Exception: whatever generation raised, as soon as it fails.
        """
        return stream(self.engine, self.prompts.embed(question), limits)

    def answer(self, questions: Sequence[Question], limits: Limits = Limits()) -> list[Reply]:
        """The answers to some questions, generated together. Raises as `stream`."""
        queues = [SimpleQueue[Piece]() for _ in questions]
        cancels: list[Callable[[], None]] = []
        try:
            for question, queue in zip(questions, queues, strict=True):
                cancels.append(self.engine.submit(self.prompts.embed(question), limits, queue.put))
            return [reply(list(until_end(queue))) for queue in queues]
        finally:
            for cancel in cancels:  # else, after a failure, the others would be written to their ends
                cancel()

    def close(self) -> None:
        """Free what the engine holds, and end the decoding process."""
        self.engine.close()
        self.features.close()
