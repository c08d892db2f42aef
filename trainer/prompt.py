"""Conversations as the LLM reads them, in the form of the paper's Figure 4.

    System: A chat between a curious human and a video assistant.
     Human: <instruction> <MOD>
     Assistant: <response>

The modality token is not a word: the projected rows of the item's features take its place.
"""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from store import Modality, Settings, Turn, UserError, longest_text

ROW = -1  # marks the place of a feature row in `ids`
LEAD_SHOWN = 64  # characters of a response, enough to decide where its first token stands
BEGINNINGS = [*string.ascii_letters, *string.digits, *"(['\"-#<{*`$"]  # of responses


class PromptFormat(Settings):
    """The texts around instructions and responses. The paper prints no end mark; ours is the tokenizer's.

    Attributes:
        system: the system message.
    """

    system: str = "A chat between a curious human and a video assistant."


@dataclass
class Tokens:
    """A conversation in tokens.

    Attributes:
        ids: token ids [S]; `ROW` where a feature row goes.
        answers: whether each token belongs to a response, its end mark included [S]; only those count in the loss.
        media: for each turn that perceives, its modality and the position of its first feature row.
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
    """`tokenize_all` for one conversation."""
    return tokenize_all([(turns, rows)], tokenizer, prompt, open_ended=open_ended)[0]


def tokenize_all(
    conversations: Sequence[tuple[Sequence[Turn], Mapping[Modality, int]]],
    tokenizer: Any,
    prompt: PromptFormat,
    *,
    open_ended: bool = False,
) -> list[Tokens]:
    """Tokenize conversations, all in one call of the tokenizer, which releases the GIL.

    Control tokens in a text, such as `</s>`, are tokenized like any other text.

    Args:
        conversations: the turns of each, and how many feature rows each modality takes for its item.
        tokenizer: a fast Hugging Face tokenizer.
        prompt: the texts around the turns.
        open_ended: stop where the last response begins, for the model to write it.
    """
    if not conversations:
        return []
    parts = [list(_parts(turns, rows, prompt, open_ended)) for turns, rows in conversations]
    texts = [part.text for conversation in parts for part in conversation]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True)
    encodings = iter(zip(encoded.input_ids, encoded.offset_mapping, strict=True))
    start = beginning(tokenizer)
    tokenized = []
    for conversation in parts:
        tokens = Tokens(start.copy(), [False] * len(start), [])
        for part in conversation:
            ids, offsets = next(encodings)
            tokens.ids += ids
            tokens.answers += [at >= part.response_at for at, _ in offsets]
            if part.modality:
                tokens.media.append((part.modality, len(tokens.ids)))
                _add(tokens, [ROW] * part.rows, False)
            if part.ends:
                _add(tokens, [tokenizer.eos_token_id], part.response_at < len(part.text))
        tokenized.append(tokens)
    return tokenized


def has_response(turn: Turn) -> bool:
    """Whether a turn teaches anything; an empty answer is not learnt, nor is its end mark."""
    return bool(turn.response.strip())


def lead_of(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns up to the first response, which is cut short: its start does not depend on the rest of it."""
    number = next((n for n, turn in enumerate(turns) if has_response(turn)), len(turns) - 1)
    first = turns[number]
    return (*turns[:number], replace(first, response=first.response[:LEAD_SHOWN]))


def lead_room(
    lead: NDArray[np.uint32], media: NDArray[np.uint16], rows: int, prompt: PromptFormat
) -> NDArray[np.int64]:
    """A bound on the positions before the first response of N conversations, without a tokenizer, int64 [N].

    Args:
        lead: of the texts (`store.Facts`).
        media: how many of their turns perceive.
        rows: most that a turn perceives.
        prompt: the texts around the turns.
    """
    system = longest_text(f"System: {prompt.system}\n")
    return lead.astype(np.int64) + media.astype(np.int64) * rows + system


def check_prompt(tokenizer: Any, prompt: PromptFormat) -> None:
    """Refuse a tokenizer that merges the prompt with the response: generation would see other tokens than training did.

    Raises:
        UserError: names such a token.
    """
    taught: list[tuple[tuple[Turn], dict[Modality, int]]] = [
        ((Turn("What?", "text", f"{first}es"),), {}) for first in BEGINNINGS
    ]
    whole = tokenize_all(taught, tokenizer, prompt)
    prompt_ids = tokenize_all(taught[:1], tokenizer, prompt, open_ended=True)[0].ids
    for tokens in whole:
        if tokens.ids[: len(prompt_ids)] != prompt_ids:
            token = next(t for n, t in enumerate(tokens.ids) if n == len(prompt_ids) or t != prompt_ids[n])
            raise UserError(
                "field 'model': its tokenizer merges 'Assistant:' with the response, into "
                f"{tokenizer.decode([token])!r}; accepted: tokenizers that split texts at spaces"
            )


def beginning(tokenizer: Any) -> list[int]:
    """The tokens that a tokenizer puts before a text, without the end mark that some add after it."""
    text, whole = (list(tokenizer("a", add_special_tokens=added).input_ids) for added in (False, True))
    at = next((n for n in range(len(whole)) if whole[n : n + len(text)] == text), 0)
    return whole[:at]


class _Part(NamedTuple):
    """A text, whose tokens from the character `response_at` on belong to a response, and what follows the text."""

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
