"""Read messages into turns; the tokens in a question tell its modality."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from featurize.sources.kinds import EXTENSIONS
from store import Candidate, Modality, Turn, UserError
from store.settings import guess
from store.tokens import TOKENS, split_tokens, stray_token

ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant")
# Tags that sound like media, at either end of a text or alone on a line, where tokens stand.
TAG = r"<\|?(?:(?:av|va|vis|visual|vision|videos?|vid|images?|img|aud|audios?|sounds?|speech)[_ -]?)+\|?>"
MAY_BE_TOKEN = rf"(?i)(?:\A|\n)\s*{TAG}|{TAG}\s*(?:\n|\z)"  # of RE2, for pyarrow
_TAG = re.compile(rf"(?:\A|(?<=\n))\s*({TAG})|({TAG})\s*(?=\n|\Z)", re.IGNORECASE)


def read_turns(
    messages: Sequence[Any],
    fields: tuple[str, str],
    media: Candidate | None,
    tokens: Collection[str],
    where: str,
    unread: Sequence[str] = (),
) -> tuple[Turn, ...]:
    """Turns from messages, each an object whose two `fields` hold the speaker and the text.

    Args:
        messages: the messages, in order.
        fields: the names of their two fields.
        media: the file that the conversation is about, or None for text only.
        tokens: the tokens that may stand for it.
        where: file and record, for messages.
        unread: fields of the record that are not read; if it names no file, one of them may be meant to.

    Raises:
        UserError: a message has another form, the speakers do not take turns, or a token asks for what is not there.
    """
    texts = [_message(m, fields, (ASKS, ANSWERS)[i % 2], f"{where}, message {i + 1}") for i, m in enumerate(messages)]
    if not texts or len(texts) % 2:
        raise UserError(f"{where}: {len(texts)} messages; expected a question and an answer in turn")
    turns = []
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        instruction, modality = split_tokens(question, tokens)
        _check_rest(instruction, media, where, unread)
        turns.append(Turn(instruction, modality, answer.strip()))
    if media is not None and all(turn.modality == "text" for turn in turns):
        natural: Modality = "audio" if media.kind == "audio" else "visual"
        turns[0] = Turn(turns[0].instruction, natural, turns[0].response)  # as if a token led the first question
    return tuple(turns)


def lookalike(text: str) -> str | None:
    """A tag of `text` that stands where tokens stand and sounds like media, but is neither a token nor HTML."""
    tags = (first or last for first, last in _TAG.findall(text))
    return next((tag for tag in tags if tag not in TOKENS and f"</{tag[1:]}" not in text), None)


def meant_by(tag: str) -> str:
    """The token that was meant by a lookalike."""
    sees, hears = re.search("vi|im|av|va", tag.lower()), re.search("aud|so|sp|av|va", tag.lower())
    return "<AUD_VIS>" if sees and hears else "<AUD>" if hears else "<VIS>"


def _check_rest(text: str, media: Candidate | None, where: str, unread: Sequence[str]) -> None:
    """Refuse a text with a token that asks for what its record lacks."""
    token = stray_token(text)
    if token and media is None:
        fields = f"; not read: {', '.join(map(repr, unread))}" if unread else ""
        fields += "".join(guess(name, EXTENSIONS) for name in unread)
        raise UserError(f"{where}: {token} is a modality token, but the record names no media file{fields}")
    if token and media:
        raise UserError(f"{where}: {token} is a modality token, but {media.name} is of kind {media.kind}")


def _message(message: Any, fields: tuple[str, str], speakers: tuple[str, str], where: str) -> str:
    who, says = fields
    text = message.get(says) if isinstance(message, dict) else None
    if not isinstance(text, str) or message.get(who) not in speakers:
        raise UserError(f"{where}: expected {{{who!r}: {' or '.join(map(repr, speakers))}, {says!r}: text}}")
    return text
