"""From the messages of a request to the turns of a question, and by which senses each asks."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import get_args

from serve.api.errors import ApiError
from serve.api.requests import ChatRequest, Medium, System, Text, text_of
from serve.features import Features, available_modality
from serve.prompts import Question
from store import Modality, Sense, Turn
from store.tokens import split_tokens

BY_SENSES: Mapping[frozenset[Sense], Modality] = {
    frozenset[Sense](): "text",
    frozenset[Sense]({"visual"}): "visual",
    frozenset[Sense]({"audio"}): "audio",
    frozenset[Sense]({"visual", "audio"}): "audio_visual",
}
SENSES_OF: Mapping[Modality, frozenset[Sense]] = {modality: senses for senses, modality in BY_SENSES.items()}


@dataclass(frozen=True)
class Found:
    """The medium of a conversation.

    Attributes:
        message: number of its message.
        place: of its part in the message.
        part: that holds it.
    """

    message: int
    place: int
    part: Medium

    @property
    def where(self) -> str:
        """The path of its part in the request."""
        return f"messages.{self.message}.content.{self.place}"


def take_medium(chat: ChatRequest) -> Found | None:
    """Take the one medium out of a conversation, whose data need not be held longer; None if there is none.

    Raises:
        ApiError: there are several, or a field says how to ask about none.
    """
    media = [
        Found(number, place, part)
        for number, message in enumerate(chat.messages)
        for place, part in enumerate(message.content)
        if not isinstance(part, Text)
    ]
    if len(media) > 1:
        raise ApiError(400, f"{media[1].where}: a conversation is about one medium", media[1].where, "several_media")
    if chat.modalities_in and not media:
        raise ApiError(400, "modalities_in: there is no medium to ask about", "modalities_in")
    for found in media:
        chat.messages[found.message].content.pop(found.place)
    return media[0] if media else None


def question_of(chat: ChatRequest, place: int, features: Features | None) -> Question:
    """The question that a request asks about a medium's features.

    Args:
        chat: the request, without its medium.
        place: number of the message that the medium came with.
        features: of the medium; None without one.

    Raises:
        ApiError: it asks by a sense that the medium lacks or that failed.
    """
    first = int(isinstance(chat.messages[0], System))
    turns = []
    for number in range(first, len(chat.messages), 2):
        text, modality = split_tokens(text_of(chat.messages[number]))
        if features and number == place:
            modality = _modality(chat, modality, features)
        if features:
            _check_senses(SENSES_OF[modality], features)
        answer = text_of(chat.messages[number + 1]).strip() if number + 1 < len(chat.messages) else ""
        turns.append(Turn(text, modality, answer))
    system = text_of(chat.messages[0]) if first else None
    return Question(tuple(turns), features.arrays if features else {}, system)


def _modality(chat: ChatRequest, by_tokens: Modality, features: Features) -> Modality:
    """By which senses the medium's own turn asks: those of its tokens, or of the field, or all that the medium has."""
    if chat.modalities_in and by_tokens != "text":
        raise ApiError(400, "modalities_in: the text has tokens that say the same; give one of them", "modalities_in")
    if chat.modalities_in:
        return BY_SENSES[frozenset(chat.modalities_in)]
    if by_tokens != "text":
        return by_tokens
    _check_senses([sense for sense in get_args(Sense) if _is_fault(sense, features)], features)
    if not features.arrays:
        _check_senses(features.failures, features)
    return available_modality(features.arrays)


def _is_fault(sense: Sense, features: Features) -> bool:
    """Whether a sense failed that the medium should have."""
    return sense in features.failures and features.failures[sense].code != "absent"


def _check_senses(senses: Collection[Sense], features: Features) -> None:
    """Refuse a question by senses that failed."""
    for sense in senses:
        if error := features.failures.get(sense):
            raise ApiError(422, f"{sense}: {error.reason}", "messages", error.code)
