"""Which option a multiple-choice reply names, or none: never a default, and never a random one."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

AROUND = " \t\r\n\v\f\xa0\"'`*_“”‘’«»"  # blanks, quotes and emphasis
GAP = r"[\s\"'`*_“”‘’]{0,9}"  # bounded: patterns hold several, and no reply may take long
BRACKETED = r"(?<!\w)[(\[{]\s{0,3}([A-Za-z])\s{0,3}[)\]}]"
# A letter alone. "a" and "I" before a word are words, unless that word gives a reason.
BARE = r"((?:[B-HJ-Zb-hj-z]|[AaIi](?!\s+(?!because\b|since\b|as\b|or\b|and\b)\w))(?![\w'’]))"
LETTER = f"(?:{BRACKETED}|{BARE})"
JOINED = rf"(?:{GAP}(?:,|/|&|\bor\b|\band\b){GAP}{LETTER})?"
CUED = re.compile(rf"\b(?i:answer|option|choice)\b{GAP}(?:(?i:is)\b)?{GAP}:?{GAP}{LETTER}{JOINED}")
LEADING = re.compile(rf"(?:{BRACKETED}|([A-Za-z])(?=\s*$|[).:,]|{GAP}(?:[/&]|(?:or|and)\b){GAP}{LETTER})){JOINED}")
ANYWHERE = re.compile(BRACKETED + JOINED)
PAIR = re.compile(r"\b[A-Z]\s{0,3}(?:,|/|&|\bor\b|\band\b)\s{0,3}[A-Z]\b(?!['’])")


def _letters(match: re.Match[str]) -> set[str]:
    return {letter.upper() for letter in match.groups() if letter}


def _named(reply: str) -> set[str]:
    """The letters that the first rule to find any finds: after a cue, at the start, or in brackets."""
    if cued := set().union(*map(_letters, CUED.finditer(reply))):
        return cued
    bracketed = set().union(*map(_letters, ANYWHERE.finditer(reply)))
    if leading := LEADING.match(reply):
        return _letters(leading) | (bracketed if reply[0] in "([{" else set())
    return bracketed


def _worded(reply: str, options: Sequence[str]) -> int | None:
    """The one option whose text stands in the reply as whole words; inside a longer option's text it does not count."""
    texts = [" ".join(option.lower().strip(AROUND + ".").split()) for option in options]
    longest_first = "|".join(re.escape(text) for text in sorted(set(texts) - {""}, key=len, reverse=True))
    if not longest_first:
        return None
    found, end = set(), 0
    for match in re.finditer(rf"(?<!\w)(?=({longest_first})(?!\w))", " ".join(reply.lower().split())):
        if match.end(1) > end:
            found.add(match[1])
            end = match.end(1)
    chosen = [index for index, text in enumerate(texts) if text in found]
    return chosen[0] if len(chosen) == 1 else None


def choose(reply: str, options: Sequence[str]) -> int | None:
    """The index of the option that a reply names, by its letter or else by its text.

    Args:
        reply: what the model said.
        options: the options' texts, in the order of their letters.

    Returns:
        An index into `options`. None if the reply names none, several, or a letter beyond them: it counts as wrong.
    """
    reply = reply.strip(AROUND)
    if letters := _named(reply):
        index = ascii_uppercase.index(min(letters))
        return index if len(letters) == 1 and index < len(options) else None
    return None if PAIR.search(reply) else _worded(reply, options)
