"""What conversations have in common: messages in turn, with tokens that say by which sense they ask.

A token is one by its exact letters, at the beginning or the end of a turn or alone on a line, if the record's file has
that sense; anything else that looks like one is text, HTML's `<video>...</video>` for example (docs/corpora.md).
"""

import re
from collections.abc import Collection, Sequence
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
OURS = ("<VIS>", "<AUD>", "<AUD_VIS>")  # tags of no other language, so that there is no doubt what they mean
ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant")
FENCES = ("```", "~~~")
_ANY = "|".join(map(re.escape, TOKENS))
_FRONT = re.compile(rf"\s*({_ANY})((?:[ \t]*\r?\n)+|[ \t]*)")  # the blank rest of its line, and blank lines, go with it
_BACK = re.compile(rf"({_ANY})\Z")
_TOKEN = re.compile(_ANY)
_ALONE = re.compile(rf"\s*(?:(?:{_ANY})\s*)+")
_EDGES = (re.compile(rf"\A\s*({_ANY})[ \t]*(?:[\r\n]|\Z)"), re.compile(rf"[\r\n][ \t]*({_ANY})\s*\Z"))


def read_turns(
    messages: Sequence[Any], fields: tuple[str, str], media: Candidate | None, tokens: Collection[str], where: str
) -> tuple[Turn, ...]:
    """Turns out of messages, each an object whose two `fields` hold the speaker and the text.

    Args:
        messages: the messages, in order.
        fields: the names of their two fields.
        media: the file that the conversation is about, or None for text only.
        tokens: the tokens that may stand for it.
        where: file and record, for messages.

    Raises:
        UserError: a message has no such form, the speakers do not take turns, or a token asks for what is not there.
    """
    texts = [_message(m, fields, (ASKS, ANSWERS)[i % 2], f"{where}, message {i}") for i, m in enumerate(messages)]
    if not texts or len(texts) % 2:
        raise UserError(f"{where}: {len(texts)} messages; expected a question and an answer in turn")
    turns = []
    for question, answer in zip(texts[::2], texts[1::2], strict=True):
        instruction, modality = split_tokens(question, tokens)
        _check_rest(instruction, media, where)
        turns.append(Turn(instruction, modality, answer.strip()))
    if media is not None and all(turn.modality == "text" for turn in turns):
        natural: Modality = "audio" if media.kind == "audio" else "visual"
        turns[0] = Turn(turns[0].instruction, natural, turns[0].response)  # as where a token leads the first question
    return tuple(turns)


def split_tokens(text: str, tokens: Collection[str] = tuple(TOKENS)) -> tuple[str, Modality]:
    """Take the modality tokens out of an instruction: its text, else as it stands, and what they ask for together.

    Args:
        text: the instruction.
        tokens: the tokens that may stand in it; others are text.
    """
    if not _TOKEN.search(text):
        return text, "text"
    found: list[str] = []
    while (match := _FRONT.match(text)) and _stands(match[1], text, tokens):
        found.append(match[1])
        text = text[match.end() :]
    while (match := _BACK.search(text.rstrip())) and _stands(match[1], text, tokens):
        found.append(match[1])
        text = text[: match.start()].rstrip()
    text, alone = _take_lines(text, tokens) if _TOKEN.search(text) else (text, [])
    senses = frozenset().union(*(TOKENS[token] for token in [*found, *alone]))
    if senses == {"visual", "audio"}:
        return text, "audio_visual"
    return text, "visual" if "visual" in senses else "audio" if senses else "text"


def _stands(token: str, text: str, tokens: Collection[str]) -> bool:
    """Whether a token may stand for media in a text; one that is closed again there is a tag of HTML."""
    return token in tokens and text.count(token) > text.count(f"</{token[1:]}")


def _take_lines(text: str, tokens: Collection[str]) -> tuple[str, list[str]]:
    """The text without the lines that hold nothing but tokens, and these tokens; a block of code keeps its lines."""
    kept, found, in_code = [], [], False
    for line in text.splitlines(keepends=True):
        in_code ^= line.lstrip().startswith(FENCES)
        here = _TOKEN.findall(line) if not in_code and _ALONE.fullmatch(line) else []
        if here and all(_stands(token, text, tokens) for token in here):
            found += here
        else:
            kept.append(line)
    return "".join(kept), found


def _check_rest(text: str, media: Candidate | None, where: str) -> None:
    """Refuse a text in which a token still stands where only a token does: its record lacks what it asks for."""
    if not _TOKEN.search(text):
        return
    found = [match[1] for pattern in _EDGES if (match := pattern.search(text))]
    ends = (_FRONT.match(text), _BACK.search(text.rstrip()))
    found += [match[1] for match in ends if match and match[1] in OURS]
    token = next((token for token in found if _stands(token, text, TOKENS)), None)
    if token and media is None:
        raise UserError(f"{where}: {token} is a modality token, but the record names no media file")
    if token and media:
        raise UserError(f"{where}: {token} is a modality token, but {media.name} is of kind {media.kind}")


def _message(message: Any, fields: tuple[str, str], speakers: tuple[str, str], where: str) -> str:
    who, says = fields
    text = message.get(says) if isinstance(message, dict) else None
    if not isinstance(text, str) or message.get(who) not in speakers:
        raise UserError(f"{where}: expected {{{who!r}: {' or '.join(map(repr, speakers))}, {says!r}: text}}")
    return text
