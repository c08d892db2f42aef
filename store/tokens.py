"""Modality tokens in a text: which senses an instruction asks by.

A token is one by its exact letters, at the beginning or the end of a text or alone on a line; anything else that looks
like one is text, HTML's `<video>...</video>` for example (docs/corpora.md).
"""

import re
from collections.abc import Collection

from store.conversation import Modality

TOKENS: dict[str, frozenset[str]] = {
    "<image>": frozenset({"visual"}),
    "<video>": frozenset({"visual"}),
    "<audio>": frozenset({"audio"}),
    "<VIS>": frozenset({"visual"}),
    "<AUD>": frozenset({"audio"}),
    "<AUD_VIS>": frozenset({"visual", "audio"}),
}
OURS = ("<VIS>", "<AUD>", "<AUD_VIS>")  # tags of no other language, so that there is no doubt what they mean
FENCES = ("```", "~~~")
_ANY = "|".join(map(re.escape, TOKENS))
_FRONT = re.compile(rf"\s*({_ANY})((?:[ \t]*\r?\n)+|[ \t]*)")  # the blank rest of its line, and blank lines, go with it
_BACK = re.compile(rf"({_ANY})\Z")
_TOKEN = re.compile(_ANY)
_ALONE = re.compile(rf"\s*(?:(?:{_ANY})\s*)+")
_EDGES = (re.compile(rf"\A\s*({_ANY})[ \t]*(?:[\r\n]|\Z)"), re.compile(rf"[\r\n][ \t]*({_ANY})\s*\Z"))


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


def stray_token(text: str) -> str | None:
    """A token that still stands in a text where only one does, once those that may stand for media were taken out."""
    if not _TOKEN.search(text):
        return None
    found = [match[1] for pattern in _EDGES if (match := pattern.search(text))]
    ends = (_FRONT.match(text), _BACK.search(text.rstrip()))
    found += [match[1] for match in ends if match and match[1] in OURS]
    return next((token for token in found if _stands(token, text, TOKENS)), None)
