"""Soundness: answers speak as one who perceives the clip, and give the colour, place or number that is asked for."""

import re
from collections.abc import Callable, Sequence

from curate.filters.verdict import Verdict, measured
from curate.filters.words import lexicon, meanings, stems_of, subjects_of, words_of
from store import Turn

REFUSED = re.compile(
    r"\b(?:as an? (?:\w+[- ])*(?:ai|language model|assistant)\b"
    r"|(?:i am|i'm) (?:sorry|unable|not able|just an?|only an?)\b"
    r"|i (?:cannot|can't|can not|could not|couldn't|am not able to|do not have|don't have) (?:\w+ )?"
    r"(?:view|see|hear|watch|listen|access|process|help|assist|provide|determine|the ability)\b"
    r"|i apologi[sz]e\b|unable to (?:view|watch|hear|listen|access)|no (?:access|information) (?:to|about) the"
    r"|if you (?:give|provide|share) (?:me )?(?:more|further|additional))",
    re.I,
)
LEAKED = re.compile(
    r"\b(?:captions?|transcripts?|metadata|annotations?|(?:frame|segment|caption|image) ?#?\d+"
    r"|(?:audio|sound|video|image|frame|segment|given|provided) labels?|(?:the|this|your|given|provided) prompts?"
    r"|(?:the|these|provided|given) (?:frames|segments|descriptions)|based on the (?:text|description|given|provided)"
    r"|according to the (?:text|description|given|provided|input|data|labels?)"
    r"|the (?:text|description) (?:says|states|mentions))\b",
    re.I,
)
OBEYED = re.compile(
    r"\b(?:as (?:you )?(?:asked|requested|instructed|ordered)|you asked for|new (?:orders|instructions)"
    r"|(?:ignor\w+|disregard\w*|forget\w*) (?:\w+ ){0,3}(?:instructions?|orders?|prompts?)"
    r"|here(?: i|')s (?:the|a|your) (?:poem|story|song|joke|recipe|code|essay|list|translation)|system prompt)\b",
    re.I,
)
EMPTY = re.compile(
    r"\A\W*(?:\[[^\]]*\]|<[^>]*>|\{[^}]*\}|answer|question|n/?a|none given|todo|tbd|null|undefined"
    r"|your (?:answer|question)(?: here)?|insert .*|\.\.\.|…|)\W*\Z",
    re.I,
)
ECHO = 0.9  # share of a long answer's words that its question holds
ECHOED_WORDS = 5


def soundness(turns: Sequence[Turn], threshold: float) -> Verdict:
    """0 if a turn says what no assistant should; else the share of the answers that fit their questions, see `_fits`.

    A single answer of several that does not fit counts half.
    """
    for turn in turns:
        for reason, fault in FAULTS:
            if found := fault(turn):
                return measured("soundness", 0.0, threshold, reason, (found,))
    strange = [turn for turn in turns if not _fits(turn)]
    score = 1 - len(strange) / len(turns) if len(strange) != 1 or len(turns) == 1 else 1 - 1 / (2 * len(turns))
    return measured(
        "soundness", score, threshold, "an answer to another question", tuple(turn.response[:80] for turn in strange)
    )


def _matched(pattern: re.Pattern[str]) -> Callable[[Turn], str]:
    def find(turn: Turn) -> str:
        match = pattern.search(turn.response) or pattern.search(turn.instruction)
        return match[0] if match else ""

    return find


def _empty(turn: Turn) -> str:
    texts = (turn.instruction, turn.response)
    return next((text.strip() or "(nothing)" for text in texts if EMPTY.match(text)), "")


def _echoed(turn: Turn) -> str:
    """A long answer that says its question again."""
    asked, said = set(words_of(turn.instruction)), words_of(turn.response)
    long_enough = len(said) >= ECHOED_WORDS
    return turn.response[:80] if long_enough and sum(w in asked for w in said) >= ECHO * len(said) else ""


FAULTS: tuple[tuple[str, Callable[[Turn], str]], ...] = (
    ("an empty question or answer, or a placeholder", _empty),
    ("a refusal", _matched(REFUSED)),
    ("speaks of captions", _matched(LEAKED)),
    ("follows an order of a caption", _matched(OBEYED)),
    ("an answer that repeats its question", _echoed),
)


def _fits(turn: Turn) -> bool:
    """Whether an answer can be one to its question.

    Only an answer to a question for a colour, a place or a number can fail, and a content word of the question passes
    even that.
    """
    question, answer = words_of(turn.instruction), set(words_of(turn.response))
    if meanings(subjects_of(turn.instruction)).intersection(stems_of(turn.response)):
        return True
    start = " ".join(question[:2])
    if {"colour", "color"} & set(question[:4]):
        return any(lexicon().classes.get(each) == "colour" for each in stems_of(turn.response))
    if question[:1] == ("where",):
        return bool(answer & lexicon().places)
    if start in ("how many", "how often"):
        return bool(answer & lexicon().counts) or any(
            word.isdigit() or lexicon().classes.get(stemmed) == "count"
            for word, stemmed in zip(words_of(turn.response), stems_of(turn.response), strict=True)
        )
    return True
