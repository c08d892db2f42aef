"""A request's way to its answer: features, turns, embedded rows, and pieces of text from the engine's thread."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable

import torch

from serve.api.clips.find import Clips
from serve.api.dialogue import question_of, take_medium
from serve.api.errors import ApiError
from serve.api.media.files import SentFile
from serve.api.media.parts import Item, Receiver
from serve.api.metrics import Metrics
from serve.api.requests import ChatRequest, most_tokens
from serve.api.settings import ApiSettings
from serve.assistant import Assistant
from serve.engine import Limits, Piece
from serve.features import Features
from serve.prompts import Question
from store import UserError

RETRY_SECONDS = 1


class Answer:
    """An answer under way. It has to be closed, which frees its place.

    Attributes:
        prompt_tokens: positions of its prompt.
        last: its last piece so far.
        ends: when it must have ended, by the event loop's clock.

    Args:
        metrics: of all answers.
        free: frees its place.
        seconds: that it may take.
    """

    def __init__(self, metrics: Metrics, free: Callable[[], None], seconds: float) -> None:
        self.prompt_tokens, self.last = 0, Piece("", 0)
        self.ends = asyncio.get_running_loop().time() + seconds
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
            ApiError: the server stops, or the answer takes too long.
            Exception: whatever generation raised.
        """
        clock = asyncio.get_running_loop().time
        while not self.last.reason:
            try:
                async with asyncio.timeout_at(self.ends if silence is None else min(self.ends, clock() + silence)):
                    piece = await self._pieces.get()
            except TimeoutError:
                if clock() >= self.ends:
                    raise _too_late() from None
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


def _too_late() -> ApiError:
    """A new error each time: one that is raised again keeps the frames of all requests that it ended."""
    return ApiError(503, "the answer takes too long", code="timeout")


class Answering:
    """Begins answers, as many as there are places.

    Attributes:
        metrics: of all answers.
        running: how many requests have a place.
        spool: where sent files are put.

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
        self._clips = Clips(assistant.features, settings, self.metrics)
        self.spool = self._clips.spool
        self._receiver = Receiver(settings, self.spool)

    @property
    def is_full(self) -> bool:
        """Whether another request would be refused."""
        return self.running >= self._settings.queue

    def check(self) -> None:
        """Return if a question would be answered now; may take seconds.

        Raises:
            EngineError: it would not.
        """
        self._assistant.engine.check()

    async def begin(self, chat: ChatRequest, received: Callable[[], None]) -> Answer:
        """Take a place, and start answering.

        Args:
            chat: the request; its medium is taken out of it.
            received: called when the medium's data is held no longer.

        Raises:
            ApiError: no place is free, or the medium cannot be used, or the question does not fit the model.
        """
        limits = self._limits(chat)
        answer = self._take_place()
        try:
            async with asyncio.timeout_at(answer.ends):
                place, medium = await self._receive(chat)
                received()
                features = await self._find(medium) if medium else None
                await self._submit(answer, question_of(chat, place, features), limits)
        except TimeoutError:
            answer.close()
            raise _too_late() from None
        except BaseException:
            answer.close()
            raise
        return answer

    async def close(self) -> None:
        """End all answers and free what they used."""
        await self._receiver.close()
        await self._clips.close()
        await asyncio.to_thread(self._assistant.close)

    def _take_place(self) -> Answer:
        if self.is_full:
            self.metrics.refused.inc()
            raise ApiError(
                429, "all places are taken; try again", code="queue_full", headers={"Retry-After": str(RETRY_SECONDS)}
            )
        self.running += 1
        return Answer(self.metrics, self._free_place, self._settings.answer_seconds)

    def _free_place(self) -> None:
        self.running -= 1

    async def _receive(self, chat: ChatRequest) -> tuple[int, Item | SentFile | None]:
        found = take_medium(chat)
        if found is None:
            return 0, None
        return found.message, await self._receiver.receive(found.part, found.where)

    async def _find(self, medium: Item | SentFile) -> Features:
        return await (self._clips.load(medium) if isinstance(medium, Item) else self._clips.find(medium))

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
