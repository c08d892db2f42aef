"""Words of texts, so far as rules compare them: stems of English, without what says nothing about a clip."""

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import snowballstemmer

from store import Settings, load_settings

WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+")
RECENT = 1024  # texts whose words are remembered: each rule asks for them again
SENTENCE = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\s*;\s*|\n+")


class WordFile(Settings):
    """The file of words; see its comments."""

    plain: str
    concrete: str
    places: str
    counts: str
    countable: str
    determiners: str
    classes: dict[str, str]
    same: list[str]
    irregular: str


class Lexicon(NamedTuple):
    """Words by what they tell, as stems.

    Attributes:
        plain: that say nothing about a clip.
        concrete: for what can be seen or heard.
        places: words that tell where.
        counts: words that tell how many, numerals aside.
        countable: nouns that need an article in the singular, as words.
        determiners: what stands for an article, as words.
        classes: of words that exclude each other before one noun, by stem.
        same: the stems that mean the same, by stem.
    """

    plain: frozenset[str]
    concrete: frozenset[str]
    places: frozenset[str]
    counts: frozenset[str]
    countable: frozenset[str]
    determiners: frozenset[str]
    classes: dict[str, str]
    same: dict[str, frozenset[str]]


@cache
def lexicon() -> Lexicon:
    """Our words."""
    file = _file()
    same: dict[str, set[str]] = {}
    for group in file.same:
        stems = set(stems_of(group))
        for each in stems:
            same.setdefault(each, set()).update(stems)
    classes = {stem_: name for name, words in file.classes.items() for stem_ in stems_of(words)}
    return Lexicon(
        plain=frozenset(stems_of(file.plain)),
        concrete=frozenset(stems_of(file.concrete)),
        places=frozenset(file.places.split()),
        counts=frozenset(file.counts.split()),
        countable=frozenset(file.countable.split()),
        determiners=frozenset(file.determiners.split()),
        classes=classes,
        same={stem_: frozenset(group) for stem_, group in same.items()},
    )


@cache
def _file() -> WordFile:
    return load_settings(WordFile, Path(__file__).with_name("words.yaml"))


@cache
def _irregular() -> dict[str, str]:
    pairs = ((form, word) for form, _, word in (pair.partition(":") for pair in _file().irregular.split()))
    return dict(pairs)


_STEMMER = snowballstemmer.stemmer("english")


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """What forms of a word share."""
    word = word.removesuffix("'s")
    stemmed: str = _STEMMER.stemWord(_irregular().get(word, word))
    return stemmed


@lru_cache(maxsize=RECENT)
def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, in small letters."""
    return tuple(WORD.findall(text.casefold().replace("’", "'")))


@lru_cache(maxsize=RECENT)
def stems_of(text: str) -> tuple[str, ...]:
    """The stems of all words of a text."""
    return tuple(map(stem, words_of(text)))


@lru_cache(maxsize=RECENT)
def content_of(text: str) -> tuple[tuple[str, str], ...]:
    """The words of a text that say something about a clip, each with its stem."""
    plain = lexicon().plain
    return tuple(pair for pair in zip(words_of(text), stems_of(text), strict=True) if pair[1] not in plain)


@lru_cache(maxsize=RECENT)
def subjects_of(text: str) -> frozenset[str]:
    """The stems of the words of a text that say something about a clip."""
    return frozenset(stemmed for _, stemmed in content_of(text))


def meanings(stems: Iterable[str]) -> set[str]:
    """Stems, and those that mean the same."""
    same, found = lexicon().same, set(stems)
    return found.union(*(same[each] for each in found if each in same))


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, and the parts between semicolons."""
    return [part for part in SENTENCE.split(text) if part.strip()]
