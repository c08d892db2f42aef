"""LLaVA-style JSON: media items, and conversations about them.

A record: `id`; `image`, `video` or `audio` (a path; what it is taken for follows from its extension); `conversations`,
a list of `{from: human | gpt, value}`. Source: LLaVA `llava/train/train.py`; tokens of the paper's Figure 4.
"""

import re
from dataclasses import dataclass
from typing import Any

from featurize.sources.kinds import kind_of
from featurize.sources.locate import candidate
from store import Candidate, Modality, Turn, UserError

TOKENS: dict[str, frozenset[str]] = {
    "<image>": frozenset({"visual"}),
    "<video>": frozenset({"visual"}),
    "<audio>": frozenset({"audio"}),
    "<VIS>": frozenset({"visual"}),
    "<AUD>": frozenset({"audio"}),
    "<AUD_VIS>": frozenset({"visual", "audio"}),
}
MEDIA_FIELDS = ("image", "video", "audio")
SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_TOKEN = re.compile("|".join(re.escape(token) for token in TOKENS), re.IGNORECASE)
_PERCEIVES = {token.lower(): senses for token, senses in TOKENS.items()}


@dataclass(frozen=True)
class Record:
    """One conversation of a source; `media` is None for text only."""

    id: str
    media: Candidate | None
    turns: tuple[Turn, ...]
    meta: dict[str, object]


def is_llava(values: Any) -> bool:
    """Whether parsed JSON looks like LLaVA records."""
    return isinstance(values, list) and bool(values) and isinstance(values[0], dict) and "conversations" in values[0]


def read_llava(values: list[Any], where: str, root: str) -> list[Record]:
    """Read records; media paths are taken from `root`.

    Raises:
        UserError: a record has no such form; names file, record and field.
    """
    return [_record(value, number, f"{where}, record {number}", root) for number, value in enumerate(values)]


def _record(value: Any, number: int, where: str, root: str) -> Record:
    if not isinstance(value, dict) or not isinstance(value.get("conversations"), list):
        raise UserError(f"{where}: expected an object with a list 'conversations' of {{from, value}}")
    named = [field for field in MEDIA_FIELDS if value.get(field)]
    if len(named) > 1 or any(not isinstance(value[field], str) for field in named):
        raise UserError(f"{where}: expected one media path in one of the fields {', '.join(MEDIA_FIELDS)}")
    media = None
    if named:
        path = value[named[0]]
        media = candidate(path, root, kind_of(path, f"{where}, field {named[0]!r}"))
    meta = {k: v for k, v in value.items() if k not in (*MEDIA_FIELDS, "id", "conversations")}
    return Record(str(value.get("id", number)), media, _turns(value["conversations"], media, where), meta)


def _turns(messages: list[Any], media: Candidate | None, where: str) -> tuple[Turn, ...]:
    texts = [_message(m, "gpt" if i % 2 else "human", f"{where}, message {i}") for i, m in enumerate(messages)]
    if not texts or len(texts) % 2:
        raise UserError(f"{where}: 'conversations' holds {len(texts)} messages; expected human and gpt in turn")
    turns = [_turn(human, answer) for human, answer in zip(texts[::2], texts[1::2], strict=True)]
    perceives = {turn.modality for turn in turns} - {"text"}
    if perceives and media is None:
        raise UserError(f"{where}: a modality token, but none of the fields {', '.join(MEDIA_FIELDS)}")
    if media is not None and not perceives:  # the media stands before the first question, as where a token leads it
        natural: Modality = "audio" if media.kind == "audio" else "visual"
        turns[0] = Turn(turns[0].instruction, natural, turns[0].response)
    return tuple(turns)


def _message(message: Any, speaker: str, where: str) -> str:
    text = message.get("value") if isinstance(message, dict) else None
    if not isinstance(text, str) or SPEAKERS.get(message.get("from")) != speaker:
        raise UserError(f"{where}: expected {{'from': '{speaker}', 'value': text}}")
    return text


def _turn(human: str, answer: str) -> Turn:
    instruction, modality = split_tokens(human)
    return Turn(instruction, modality, answer.strip())


def split_tokens(text: str) -> tuple[str, Modality]:
    """Take the modality tokens, in any case, out of an instruction: the clean text, and what they ask for together."""
    perceives = frozenset().union(*(_PERCEIVES[token.lower()] for token in _TOKEN.findall(text)))
    clean = "\n".join(" ".join(line.split()) for line in _TOKEN.sub(" ", text).splitlines()).strip()
    if perceives == {"visual", "audio"}:
        return clean, "audio_visual"
    return clean, "visual" if "visual" in perceives else "audio" if perceives else "text"
