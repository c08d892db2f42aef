"""Conversations as the LLM reads them, in the form of the paper's Figure 4.

    System: A chat between a curious human and a video assistant.
     Human: <instruction> <MOD>
     Assistant: <response>

The modality token is not a word: in its place come the projected rows of the item's features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from store import Modality, Settings, Turn

ROW = -1  # stands in `ids` where a row of features goes


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
    """Turn a conversation into tokens.

    Args:
        turns: the exchanges.
        rows: how many feature rows each modality takes for this item.
        tokenizer: a fast Hugging Face tokenizer.
        prompt: the texts around the turns.
        open_ended: stop where the last response begins, for the model to give it.
    """
    tokens = Tokens(list(tokenizer("").input_ids), [], [])
    tokens.answers += [False] * len(tokens.ids)
    lead = f"System: {prompt.system}\n"
    for number, turn in enumerate(turns):
        text = f"{lead} Human: {turn.instruction}"
        if turn.modality != "text":
            _add_text(tokens, tokenizer, text, len(text))
            tokens.media.append((turn.modality, len(tokens.ids)))
            _add(tokens, [ROW] * rows[turn.modality], False)
            text = ""
        text += "\n Assistant:"
        if open_ended and number == len(turns) - 1:
            _add_text(tokens, tokenizer, text, len(text))
        else:
            _add_text(tokens, tokenizer, f"{text} {turn.response}", len(text))
            _add(tokens, [tokenizer.eos_token_id], True)
        lead = "\n"
    return tokens


def _add_text(tokens: Tokens, tokenizer: Any, text: str, response_at: int) -> None:
    """Add a text whose tokens belong to a response from the character `response_at` on."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    tokens.ids += encoded.input_ids
    tokens.answers += [start >= response_at for start, _ in encoded.offset_mapping]


def _add(tokens: Tokens, ids: list[int], answers: bool) -> None:
    tokens.ids += ids
    tokens.answers += [answers] * len(ids)
