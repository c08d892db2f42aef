"""What an engine is: prompts as embedded rows go in, pieces of text come out."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, Protocol

from store import UserError

if TYPE_CHECKING:
    import torch

Reason = Literal["stop", "length", "cancelled"]


class EngineError(UserError):
    """An engine cannot answer, through no fault of the question.

    Attributes:
        is_away: the server that generates is not reached, or is starting or stopping; it may be back soon.
    """

    def __init__(self, message: str, is_away: bool = False) -> None:
        super().__init__(message)
        self.is_away = is_away


@dataclass(frozen=True)
class Limits:
    """How an answer is generated, and when it ends.

    Attributes:
        max_tokens: longest answer.
        temperature: of sampling; 0 takes the most likely token.
        top_p: samples from the fewest tokens whose probabilities sum to this.
        seed: of sampling. The same question with the same seed gets the same answer, whatever else is asked, but for
            the rounding of batches of other shapes.
        stop: texts that end an answer; they are not part of it.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer; the last piece has a reason or an error.

    Attributes:
        text: may be empty.
        tokens: generated so far.
        reason: why the answer ended: an end mark or a stop text, a limit, or nobody wanted it any more.
        error: why generation failed.
    """

    text: str
    tokens: int
    reason: Reason | None = None
    error: Exception | None = None


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    text: str
    tokens: int
    reason: Reason


class Engine(Protocol):
    """Generates answers to prompts.

    Attributes:
        context: how many positions a prompt and its answer can take together.
        at_once: how many questions are worth having under way at the same time.
    """

    context: int
    at_once: int

    def submit(self, rows: "torch.Tensor", limits: Limits, deliver: Callable[[Piece], None]) -> Callable[[], None]:
        """Start answering a prompt; returns at once.

        Args:
            rows: the embedded prompt [S, D_l].
            limits: of this answer.
            deliver: receives every piece, in a thread of the engine, so it must not block.

        Returns:
            A function that ends the answer at its next step; the last piece then has the reason `cancelled`.

        Raises:
            UserError: the prompt leaves no room for an answer, or is not finite.
        """

    def check(self) -> None:
        """Return if a question would be answered now; may take seconds.

        Raises:
            EngineError: it would not.
        """

    def close(self) -> None:
        """Cancel all answers and free what the engine holds."""


def check_rows(rows: "torch.Tensor", limits: Limits, context: int) -> int:
    """The most tokens that the answer to a prompt can have.

    Raises:
        UserError: the prompt leaves no room for an answer, or is not finite.
    """
    if len(rows) >= context:
        raise UserError(f"the question takes {len(rows)} positions; accepted: below {context}, the model's context")
    if not rows.isfinite().all():
        raise UserError("the question's features give numbers that are not finite")
    return min(limits.max_tokens, context - len(rows))


def stream(engine: Engine, rows: "torch.Tensor", limits: Limits) -> Generator[Piece]:
    """Yield the pieces of an answer; closing the iterator ends generation at its next step.

    Raises:
        Exception: whatever generation raised.
    """
    pieces: SimpleQueue[Piece] = SimpleQueue()
    cancel = engine.submit(rows, limits, pieces.put)
    try:
        yield from until_end(pieces)
    finally:
        cancel()


def until_end(pieces: "SimpleQueue[Piece]") -> Iterator[Piece]:
    """Yield an answer's pieces from a queue, to the last one; raises the error that the last one has."""
    while True:
        piece = pieces.get()
        if piece.error:
            raise piece.error
        yield piece
        if piece.reason:
            return


def reply(pieces: Sequence[Piece]) -> Reply:
    """The whole answer, without surrounding blanks."""
    last = pieces[-1]
    assert last.reason
    return Reply("".join(piece.text for piece in pieces).strip(), last.tokens, last.reason)
