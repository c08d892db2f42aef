"""Read a judge's reply: a verdict, yes or no, and a score from 0 to 5.

`parse_verdict` and `parse_score` follow this project's rules: what is not clearly said is None, never a guess. They
take time in proportion to the reply. `published_verdict` and `published_score` do what Video-ChatGPT's evaluator does,
for scores to compare with published ones.
"""

import ast
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeVar, cast, get_args

T = TypeVar("T")
Verdict = Literal["yes", "no"]
QUOTES = "'\"`‘’“”„"
BLANKS = " \t\r\n\v\f\xa0"
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+)")
PIECE = re.compile(r"([^{},]*+)([{},]|\Z)")  # text, and the mark that ends it
SLOTS = {"pred": "pred", "binary_pred": "pred", "score": "score"}
HIGHEST = 5  # score
DEEPEST = 100  # dicts inside dicts
UNREADABLE = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
LONGEST = 20_000  # characters; Python's parser takes too long over longer replies, which no judge gives
THINK, THOUGHT = "<think>", "</think>"


@dataclass(frozen=True)
class Judgement:
    """What a judge said of an answer; None where it said nothing usable.

    An answer without a verdict counts as wrong; one without a score is left out of the mean.
    """

    verdict: Verdict | None
    score: float | None


class Unusable(StrEnum):
    """Why the published evaluator has no score of a reply."""

    NOT_PARSED = "not parsed"  # it asks again
    FAILS = "evaluator ends with an error"


def _without_thoughts(reply: str) -> str:
    """The reply without its <think> blocks; one that lacks its start or its end reaches as far as the reply."""
    parts = reply.split(THOUGHT)
    spoken = [part.partition(THINK)[0] for part in parts]
    if len(parts) > 1 and THINK not in parts[0]:
        spoken[0] = ""
    return "".join(spoken)


def _opens(value: str) -> bool:
    """Whether a string starts here and does not end here: it holds the mark that ends this piece."""
    value = value.strip(BLANKS)
    return value != "" and value[0] in QUOTES and (len(value) == 1 or value[-1] not in QUOTES)


def _closes(text: str) -> bool:
    return text.rstrip(BLANKS)[-1:] in tuple(QUOTES)


def _dicts(reply: str) -> Iterator[dict[str, set[str]]]:
    """The values of the known keys in each {...} of a reply; in one that is cut, of those that a mark follows."""
    stack: list[dict[str, set[str]]] = []
    in_string = False
    for text, mark in PIECE.findall(reply):
        key, _, value = text.partition(":")
        in_string = not _closes(text) if in_string else bool(stack) and _opens(value)
        if in_string:
            continue
        slot = SLOTS.get(key.strip(QUOTES + BLANKS))
        if stack and slot and mark in (",", "}"):
            stack[-1].setdefault(slot, set()).add(value.strip(QUOTES + BLANKS))
        if mark == "{" and len(stack) < DEEPEST:
            stack.append({})
        elif mark == "}" and stack:
            yield stack.pop()
    yield from stack


def _verdict(text: str) -> Verdict | None:
    word = text.strip(BLANKS).removesuffix(".").rstrip(BLANKS).lower()
    return cast(Verdict, word) if word in get_args(Verdict) else None


def _score(text: str) -> float | None:
    number = NUMBER.fullmatch(text.strip(BLANKS))
    return float(number[0]) if number and 0 <= float(number[0]) <= HIGHEST else None


def _only(values: Iterable[T | None]) -> T | None:
    """The value, if there is one alone."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def _judgement(found: dict[str, set[str]]) -> Judgement:
    verdicts: list[Verdict | None] = [_verdict(text) for text in found.get("pred", ())]
    scores: list[float | None] = [_score(text) for text in found.get("score", ())]
    return Judgement(_only(verdicts), _only(scores))


def parse_verdict(reply: str) -> Judgement:
    """What a reply to a yes-or-no judgement says.

    Every {...} outside <think> blocks is read, with quotes of any kind or none; if several differ, none counts. A reply
    without any counts if it is nothing but yes or no.
    """
    reply = _without_thoughts(reply)
    if "{" not in reply:
        return Judgement(_verdict(reply), None)
    judgements = [_judgement(found) for found in _dicts(reply) if found]
    return _only(judgements) or Judgement(None, None)


def parse_score(reply: str) -> float | None:
    """The score that a reply gives, or None: as `parse_verdict`, but a reply may be nothing but a number."""
    reply = _without_thoughts(reply)
    if "{" not in reply:
        return _score(reply)
    return _only(_only(map(_score, found["score"])) for found in _dicts(reply) if "score" in found)


def _literal(reply: str) -> Any:
    """The reply as the Python value it spells. Raises one of `UNREADABLE` if it spells none."""
    if len(reply) > LONGEST:
        raise ValueError("longer than any judge's reply")
    with warnings.catch_warnings():  # the parser warns of odd escapes
        warnings.simplefilter("ignore")
        return ast.literal_eval(reply)


def published_verdict(reply: str) -> Judgement | Unusable:
    """What Video-ChatGPT's evaluator makes of a reply: "yes" and "no" anywhere in the verdict, the score's whole part.

    Returns:
        A judgement with any score; its verdict is None if it holds neither word. The published evaluator leaves such a
        reply out of the accuracy; here it counts as wrong, as under our rules.
    """
    score = published_score(reply)
    if isinstance(score, Unusable):
        return score
    said = _literal(reply).get("pred")
    if not isinstance(said, str):
        return Unusable.FAILS
    said = said.lower()
    return Judgement("yes" if "yes" in said else "no" if "no" in said else None, score)


def published_score(reply: str) -> int | Unusable:
    """What Video-ChatGPT's evaluator makes of a reply that has a score only: its whole part, of any size."""
    try:
        read = _literal(reply)
    except UNREADABLE:
        return Unusable.NOT_PARSED
    try:
        return int(read["score"])
    except (LookupError, TypeError, ValueError, OverflowError):
        return Unusable.FAILS
