"""Modality tokens such as `<VIS>`: remove them from an instruction, and tell which modality it refers to.

A token must match exactly, at the start or end of the text or alone on a line. Any lookalike elsewhere is plain text.
A token whose every occurrence has a closing tag, as in `<video>...</video>`, is HTML (docs/corpora.md).
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
OURS = ("<VIS>", "<AUD>", "<AUD_VIS>")  # no markup language has these tags, so they are unambiguous
FENCES = ("```", "~~~")
_ANY = "|".join(map(re.escape, TOKENS))
_FRONT = re.compile(rf"\s*({_ANY})((?:[ \t]*\r?\n)+|[ \t]*)")  # also takes the blank rest of its line and blank lines
_BACK = re.compile(rf"({_ANY})\Z")
_TOKEN = re.compile(_ANY)
_ALONE = re.compile(rf"\s*(?:(?:{_ANY})\s*)+")
_EDGES = (re.compile(rf"\A\s*({_ANY})[ \t]*(?:[\r\n]|\Z)"), re.compile(rf"[\r\n][ \t]*({_ANY})\s*\Z"))


def split_tokens(text: str, tokens: Collection[str] = tuple(TOKENS)) -> tuple[str, Modality]:
    """Remove the modality tokens from an instruction; return the remaining text and the tokens' combined modality.

    Args:
        text: the instruction.
        tokens: the tokens to recognize; any others are plain text.
    """
    if not _TOKEN.search(text):
        return text, "text"
    removed: list[str] = []
    while (match := _FRONT.match(text)) and _is_no_html(match[1], text, tokens):
        removed.append(match[1])
        text = text[match.end() :]
    while (match := _BACK.search(text.rstrip())) and _is_no_html(match[1], text, tokens):
        removed.append(match[1])
        text = text[: match.start()].rstrip()
    text, alone = _take_lines(text, tokens) if _TOKEN.search(text) else (text, [])
    senses = frozenset().union(*(TOKENS[token] for token in [*removed, *alone]))
    if senses == {"visual", "audio"}:
        return text, "audio_visual"
    return text, "visual" if "visual" in senses else "audio" if senses else "text"


def _is_no_html(token: str, text: str, tokens: Collection[str]) -> bool:
    """Whether a token occurs more often than its closing tag; else it is HTML, not a reference to media."""
    return token in tokens and text.count(token) > text.count(f"</{token[1:]}")


def _take_lines(text: str, tokens: Collection[str]) -> tuple[str, list[str]]:
    """Remove the lines that hold only tokens, except in code blocks; return the text and the removed tokens."""
    kept, removed, in_code = [], [], False
    for line in text.splitlines(keepends=True):
        in_code ^= line.lstrip().startswith(FENCES)
        line_tokens = _TOKEN.findall(line) if not in_code and _ALONE.fullmatch(line) else []
        if line_tokens and all(_is_no_html(token, text, tokens) for token in line_tokens):
            removed += line_tokens
        else:
            kept.append(line)
    return "".join(kept), removed


def stray_token(text: str) -> str | None:
    """A token left at the edge of an instruction after `split_tokens`, or None: its record lacks that medium."""
    if not _TOKEN.search(text):
        return None
    candidates = [match[1] for pattern in _EDGES if (match := pattern.search(text))]
    ends = (_FRONT.match(text), _BACK.search(text.rstrip()))
    candidates += [match[1] for match in ends if match and match[1] in OURS]
    return next((token for token in candidates if _is_no_html(token, text, TOKENS)), None)
