"""What conversations have in common: messages in turn, with tokens that say by which sense they ask."""

import re
from collections.abc import Sequence
from typing import Any

from store import Candidate, Modality, Turn, UserError

TOKENS: dict[str, frozenset[str]] = {
    "<image>": frozenset({"visual"}),
    "<video>": frozenset({"visual"}),
    "<audio>": frozenset({"audio"}),
    "<VIS>": frozenset({"visual"}),
    "<AUD>": frozenset({"audio"}),
    "<AUD_VIS>": frozenset({"visual", "audio"}),
}
ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant")
_TOKEN = re.compile(f"<(?:{'|'.join(re.escape(token[1:-1]) for token in TOKENS)})>", re.IGNORECASE)
_PERCEIVES = {token.lower(): senses for token, senses in TOKENS.items()}


def read_turns(
    messages: Sequence[Any], fields: tuple[str, str], media: Candidate | None, where: str
) -> tuple[Turn, ...]:
    """Turns out of messages, each an object whose two `fields` hold the speaker and the text.

    Raises:
        UserError: a message has no such form, or the speakers do not take turns; names `where` and message.
    """
    texts = [_message(m, fields, (ASKS, ANSWERS)[i % 2], f"{where}, message {i}") for i, m in enumerate(messages)]
    if not texts or len(texts) % 2:
        raise UserError(f"{where}: {len(texts)} messages; expected a question and an answer in turn")
    turns = [_turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True)]
    perceives = {turn.modality for turn in turns} - {"text"}
    if perceives and media is None:
        raise UserError(f"{where}: a modality token, but the record names no media file")
    if media is not None and not perceives:  # the media stands before the first question, as where a token leads it
        natural: Modality = "audio" if media.kind == "audio" else "visual"
        turns[0] = Turn(turns[0].instruction, natural, turns[0].response)
    return tuple(turns)


def split_tokens(text: str) -> tuple[str, Modality]:
    """Take the modality tokens, in any case, out of an instruction: the clean text, and what they ask for together."""
    perceives = frozenset().union(*(_PERCEIVES[token.lower()] for token in _TOKEN.findall(text)))
    clean = "\n".join(" ".join(line.split()) for line in _TOKEN.sub(" ", text).splitlines()).strip()
    if perceives == {"visual", "audio"}:
        return clean, "audio_visual"
    return clean, "visual" if "visual" in perceives else "audio" if perceives else "text"


def _message(message: Any, fields: tuple[str, str], speakers: tuple[str, str], where: str) -> str:
    who, says = fields
    text = message.get(says) if isinstance(message, dict) else None
    if not isinstance(text, str) or message.get(who) not in speakers:
        raise UserError(f"{where}: expected {{{who!r}: {' or '.join(map(repr, speakers))}, {says!r}: text}}")
    return text


def _turn(human: str, answer: str) -> Turn:
    instruction, modality = split_tokens(human)
    return Turn(instruction, modality, answer.strip())
