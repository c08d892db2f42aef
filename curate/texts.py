"""Texts that cannot be trusted, since programs read them off pictures or wrote them.

Replies become one `visible` line, and keep brackets, which the rules look for; captions become `clean`.
"""

import unicodedata

HIDDEN = frozenset(("Cc", "Cf", "Co", "Cn", "Cs"))  # Unicode categories: control and format characters, and none at all
BRACKETS = str.maketrans("<>[]{}`", "()()()'")  # what markup, control tokens and templates are made of


def visible(text: str) -> str:
    """One line of visible characters."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(c) in HIDDEN else c for c in text)
    return " ".join(text.split())


def clean(text: str, longest: int) -> str:
    """A caption as it is shown to a model: one line, without brackets, cut at `longest` characters."""
    return visible(text).translate(BRACKETS)[:longest].rstrip()
