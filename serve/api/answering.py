"""A request's way to its answer: features, turns, embedded rows, and pieces of text from the engine's thread."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable

import torch

from serve.api.clips import Clips
from serve.api.dialogue import find_medium, question_of
from serve.api.errors import ApiError
from serve.api.media import medium_of
from serve.api.metrics import Metrics
from serve.api.requests import ChatRequest, most_tokens
from serve.api.settings import ApiSettings
from serve.assistant import Assistant
from serve.engine import Limits, Piece
from serve.features import Features, FeatureSource
from serve.prompts import Question
from store import UserError

RETRY_SECONDS = 1


class Answer:
    """An answer under way. It has to be closed, which frees its place.

    Attributes:
        prompt_tokens: positions of its prompt.
        last: its last piece so far.
    """

    def __init__(self, metrics: Metrics, free: Callable[[], None]) -> None:
        self.prompt_tokens, self.last = 0, Piece("", 0)
        self._metrics, self._free = metrics, free
        self._started = time.perf_counter()
        self._pieces: asyncio.Queue[Piece] = asyncio.Queue()
        self._cancel: Callable[[], None] | None = None

    def submit(self, assistant: Assistant, rows: torch.Tensor, limits: Limits) -> None:
        """Start generation.

        Raises:
            UserError: the prompt leaves no room for an answer, or is not finite.
        """
        loop = asyncio.get_running_loop()

        def deliver(piece: Piece) -> None:
            loop.call_soon_threadsafe(self._pieces.put_nowait, piece)

        self._cancel = assistant.engine.submit(rows, limits, deliver)
        self.prompt_tokens = len(rows)
        self._metrics.prompt_tokens.inc(len(rows))

    async def pieces(self, silence: float | None = None) -> AsyncIterator[Piece | None]:
        """Yield pieces up to the last one, and None after each `silence` in seconds without one.

        Raises:
            ApiError: the server stops.
            Exception: whatever generation raised.
        """
        while not self.last.reason:
            try:
                async with asyncio.timeout(silence):
                    piece = await self._pieces.get()
            except TimeoutError:
                yield None
                continue
            if piece.error:
                raise piece.error
            self._count(piece)
            self.last = piece
            if piece.reason == "cancelled":
                raise ApiError(503, "the server is stopping", code="stopping")
            yield piece

    def close(self) -> None:
        """End generation at its next step, and free the place."""
        if self._cancel:
            self._cancel()
            self._metrics.answered.labels(self.last.reason or "unfinished").inc()
        self._free()

    def _count(self, piece: Piece) -> None:
        if not self.last.tokens:
            self._metrics.first_seconds.observe(time.perf_counter() - self._started)
        self._metrics.generated_tokens.inc(piece.tokens - self.last.tokens)


class Answering:
    """Begins answers, as many as there are places.

    Attributes:
        metrics: of all answers.
        running: how many requests have a place.

    Args:
        assistant: which answers.
        settings: of the server.

    Raises:
        UserError: a store cannot be opened, or lacks a column of the checkpoint.
    """

    def __init__(self, assistant: Assistant, settings: ApiSettings) -> None:
        self.running = 0
        self.metrics = Metrics(lambda: self.running)
        self._assistant, self._settings = assistant, settings
        self._clips = Clips(FeatureSource(assistant.info, settings.decode_seconds), settings, self.metrics)

    @property
    def is_full(self) -> bool:
        """Whether another request would be refused."""
        return self.running >= self._settings.queue

    async def begin(self, chat: ChatRequest) -> Answer:
        """Take a place, and start answering.

        Raises:
            ApiError: no place is free, or the medium cannot be used, or the question does not fit the model.
        """
        limits = self._limits(chat)
        answer = self._take_place()
        try:
            question = question_of(chat, await self._features(chat))
            await self._submit(answer, question, limits)
        except BaseException:
            answer.close()
            raise
        return answer

    async def close(self) -> None:
        """End all answers and free what they used."""
        await asyncio.to_thread(self._assistant.close)
        await self._clips.close()

    def _take_place(self) -> Answer:
        if self.is_full:
            self.metrics.refused.inc()
            raise ApiError(
                429, "all places are taken; try again", code="queue_full", headers={"Retry-After": str(RETRY_SECONDS)}
            )
        self.running += 1
        return Answer(self.metrics, self._free_place)

    def _free_place(self) -> None:
        self.running -= 1

    async def _features(self, chat: ChatRequest) -> Features | None:
        found = find_medium(chat)
        if found is None:
            return None
        return await self._clips.find(await asyncio.to_thread(medium_of, found.part, found.where, self._settings))

    async def _submit(self, answer: Answer, question: Question, limits: Limits) -> None:
        try:
            rows = await asyncio.to_thread(self._assistant.prompts.embed, question)
            answer.submit(self._assistant, rows, limits)
        except UserError as error:
            raise ApiError(400, str(error), "messages") from None

    def _limits(self, chat: ChatRequest) -> Limits:
        return Limits(
            max_tokens=most_tokens(chat, self._settings),
            temperature=chat.temperature or 0.0,
            top_p=1.0 if chat.top_p is None else chat.top_p,
            seed=secrets.randbits(63) if chat.seed is None else chat.seed,
            stop=tuple(chat.stop or ()),
        )
