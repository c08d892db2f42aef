"""Generated tokens as text, piece by piece, up to a stop text."""

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # a character of which some bytes are still to come


class TextStream:
    """Turns tokens into text as they come.

    Text is held back while it may be the beginning of a stop text, or of a character.

    Attributes:
        tokens: how many were added.
        is_stopped: whether a stop text was found; what follows it is dropped.

    Args:
        tokenizer: decodes the tokens; special ones are skipped.
        stop: the stop texts; the one that ends first ends the answer.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokens, self.is_stopped = 0, False
        self._tokenizer, self._stop = tokenizer, tuple(filter(None, stop))
        self._ids: list[int] = []  # the last that became text, since decoding depends on neighbours, and later ones
        self._read = 0  # how many of them are text
        self._held = ""

    def add(self, token: int) -> str:
        """Add a token; return the text that is now certain."""
        self.tokens += 1
        self._ids.append(token)
        text = self._decode(self._ids)
        fresh = text[len(self._decode(self._ids[: self._read])) :]
        if not fresh or text.endswith(UNFINISHED):
            return ""
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        return self._release(fresh)

    def finish(self) -> str:
        """Return what was held back; call it once, at the answer's end."""
        if self.is_stopped:
            return ""
        text = self._decode(self._ids)[len(self._decode(self._ids[: self._read])) :]
        released = self._release(text)
        return released if self.is_stopped else released + self._held

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _release(self, fresh: str) -> str:
        """Cut at the first stop text, else hold back the longest end that may begin one."""
        if not self._stop:
            return fresh
        text = self._held + fresh
        ends = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self.is_stopped, self._held = True, ""
            return text[: min(ends)[1]]
        held = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text with which a stop text begins."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
