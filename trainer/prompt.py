"""Conversations as the LLM reads them, in the form of the paper's Figure 4.

    System: A chat between a curious human and a video assistant.
     Human: <instruction> <MOD>
     Assistant: <response>

The modality token is not a word: in its place come the projected rows of the item's features.
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from store import Modality, Settings, Turn, UserError

ROW = -1  # stands in `ids` where a row of features goes
GROWTH = 3  # a text in composed form (NFC) takes three times its bytes at most, and each may be a token
LEAD_SHOWN = 64  # characters of a response that decide where its first token stands
BEGINNINGS = [*string.ascii_letters, *string.digits, *"(['\"-#<{*`$"]  # of responses


class PromptFormat(Settings):
    """The texts around instructions and responses. The paper prints no end mark; ours is the tokenizer's own.

    Attributes:
        system: the system message.
    """

    system: str = "A chat between a curious human and a video assistant."


@dataclass
class Tokens:
    """A conversation in tokens.

    Attributes:
        ids: token ids [S]; `ROW` where a row of features goes.
        answers: whether each token belongs to a response [S]; the loss is taken on these only.
        media: for each turn that perceives: its modality and the first of its rows' positions.
    """

    ids: list[int]
    answers: list[bool]
    media: list[tuple[Modality, int]]


def tokenize(
    turns: Sequence[Turn],
    rows: Mapping[Modality, int],
    tokenizer: Any,
    prompt: PromptFormat,
    *,
    open_ended: bool = False,
) -> Tokens:
    """`tokenize_all` of one conversation."""
    return tokenize_all([(turns, rows)], tokenizer, prompt, open_ended=open_ended)[0]


def tokenize_all(
    conversations: Sequence[tuple[Sequence[Turn], Mapping[Modality, int]]],
    tokenizer: Any,
    prompt: PromptFormat,
    *,
    open_ended: bool = False,
) -> list[Tokens]:
    """Turn conversations into tokens; the tokenizer is called once for all of them, which releases the GIL.

    Control tokens that somebody wrote, such as `</s>`, are text like any other.

    Args:
        conversations: the turns of each, and how many feature rows each modality takes for its item.
        tokenizer: a fast Hugging Face tokenizer.
        prompt: the texts around the turns.
        open_ended: stop where the last response begins, for the model to give it.
    """
    if not conversations:
        return []
    parts = [list(_parts(turns, rows, prompt, open_ended)) for turns, rows in conversations]
    texts = [part.text for each in parts for part in each]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    encodings = iter(zip(encoded.input_ids, encoded.offset_mapping, strict=True))
    start = beginning(tokenizer)
    found = []
    for each in parts:
        tokens = Tokens(start.copy(), [False] * len(start), [])
        for part in each:
            ids, offsets = next(encodings)
            tokens.ids += ids
            tokens.answers += [at >= part.response_at for at, _ in offsets]
            if part.modality:
                tokens.media.append((part.modality, len(tokens.ids)))
                _add(tokens, [ROW] * part.rows, False)
            if part.ends:
                _add(tokens, [tokenizer.eos_token_id], part.response_at < len(part.text))
        found.append(tokens)
    return found


def has_response(turn: Turn) -> bool:
    """Whether a turn teaches anything; an empty answer, and the end mark behind it, are not learnt."""
    return bool(turn.response.strip())


def lead_of(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns up to the first response, which is cut: where it begins does not depend on how it goes on."""
    number = next((n for n, turn in enumerate(turns) if has_response(turn)), len(turns) - 1)
    first = turns[number]
    return (*turns[:number], replace(first, response=first.response[:LEAD_SHOWN]))


def longest_lead(turns: Sequence[Turn], rows: Mapping[Modality, int], prompt: PromptFormat) -> int:
    """Positions before the first response, at most: computed from the texts' bytes, without a tokenizer."""
    positions = 0
    for part in _parts(turns, rows, prompt, open_ended=False):
        size = len(part.text) if part.text.isascii() else GROWTH * len(part.text.encode())
        positions += size + 1 + part.rows + part.ends  # some tokenizers put a space before each text
        if part.response_at < len(part.text):
            return positions - len(part.text) + part.response_at
    return positions


def check_prompt(tokenizer: Any, prompt: PromptFormat) -> None:
    """Refuse a tokenizer that merges the prompt with the response: what is asked would not be what was taught.

    Raises:
        UserError: names such a token.
    """
    taught: list[tuple[tuple[Turn], dict[Modality, int]]] = [
        ((Turn("What?", "text", f"{first}es"),), {}) for first in BEGINNINGS
    ]
    whole = tokenize_all(taught, tokenizer, prompt)
    asked = tokenize_all(taught[:1], tokenizer, prompt, open_ended=True)[0].ids
    for tokens in whole:
        if tokens.ids[: len(asked)] != asked:
            token = next(t for n, t in enumerate(tokens.ids) if n == len(asked) or t != asked[n])
            raise UserError(
                "field 'model': its tokenizer merges 'Assistant:' with the response, into "
                f"{tokenizer.decode([token])!r}; accepted: tokenizers that split texts at spaces"
            )


def beginning(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before a text; not the end mark that some put behind it."""
    text, whole = (list(tokenizer("a", add_special_tokens=added).input_ids) for added in (False, True))
    at = next((n for n in range(len(whole)) if whole[n : n + len(text)] == text), 0)
    return whole[:at]


class _Part(NamedTuple):
    """A text whose tokens belong to a response from the character `response_at` on, and what follows it."""

    text: str
    response_at: int
    modality: Modality | None = None
    rows: int = 0
    ends: bool = False


def _parts(
    turns: Sequence[Turn], rows: Mapping[Modality, int], prompt: PromptFormat, open_ended: bool
) -> Iterator[_Part]:
    lead = f"System: {prompt.system}\n"
    for number, turn in enumerate(turns):
        text = f"{lead} Human: {turn.instruction}"
        if turn.modality != "text":
            yield _Part(text, len(text), turn.modality, rows[turn.modality])
            text = ""
        text += "\n Assistant:"
        if open_ended and number == len(turns) - 1:
            yield _Part(text, len(text))
        elif not has_response(turn):
            yield _Part(text, len(text), ends=True)
        else:
            yield _Part(f"{text} {turn.response}", len(text), ends=True)
        lead = "\n"


def _add(tokens: Tokens, ids: list[int], answers: bool) -> None:
    tokens.ids += ids
    tokens.answers += [answers] * len(ids)
