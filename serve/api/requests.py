"""Bodies of /v1/chat/completions. What is not supported is refused, never ignored."""

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from serve.api.errors import ApiError, invalid
from serve.api.settings import ApiSettings
from store import Sense

STOP_CHARACTERS = 200  # longest stop text
StopText = Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]
Zero = Annotated[float, Field(ge=0, le=0)]
MOST_FIELDS = 64  # of one object


def _as_parts(content: JsonValue) -> JsonValue:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _as_list(stop: JsonValue) -> JsonValue:
    return [stop] if isinstance(stop, str) else stop


def _no(value: bool) -> bool:
    if value:
        raise ValueError("is not supported")
    return value


Never = Annotated[bool, AfterValidator(_no)]  # a Literal would take 0 for False


class Body(BaseModel):
    """Base of all models: strict types, no unknown fields, finite numbers. A field that is null counts as not given."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: JsonValue) -> JsonValue:
        if not isinstance(data, dict):
            return data
        if len(data) > MOST_FIELDS:  # each unknown one would be an error of its own, in memory
            raise ValueError(f"an object has {len(data)} fields; accepted: at most {MOST_FIELDS}")
        return {name: value for name, value in data.items() if value is not None}


Empty = Annotated[list[JsonValue] | None, Field(max_length=0)]


class Text(Body):
    """A part of text."""

    type: Literal["text"]
    text: str


class Url(Body):
    """Where a medium is: `data:` with the file itself, `store://LABEL/KEY`, or a URL that the server reads.

    The setting `fetch_schemes` names `https:` (the default) and `http:`; `media_folders` allows `file:`.
    """

    url: str


class ImageUrl(Url):
    """OpenAI's field `detail` changes nothing here, so only its neutral value is taken."""

    detail: Literal["auto"] = "auto"


class Image(Body):
    """A still."""

    type: Literal["image_url"]
    image_url: ImageUrl

    @property
    def url(self) -> str:
        """Its URL."""
        return self.image_url.url


class Video(Body):
    """A clip, with its sound."""

    type: Literal["video_url"]
    video_url: Url

    @property
    def url(self) -> str:
        """Its URL."""
        return self.video_url.url


class Audio(Body):
    """A sound."""

    type: Literal["audio_url"]
    audio_url: Url

    @property
    def url(self) -> str:
        """Its URL."""
        return self.audio_url.url


class AudioData(Body):
    """A sound in base64."""

    data: str
    format: Literal["wav", "mp3"]


class InputAudio(Body):
    """A sound as OpenAI's clients send it."""

    type: Literal["input_audio"]
    input_audio: AudioData


class ItemName(Body):
    """An item of a store; `store` can be left out where the server has one only."""

    key: str
    store: str | None = None


class StoreItem(Body):
    """A cached item."""

    type: Literal["store_item"]
    store_item: ItemName


Link = Image | Video | Audio
Medium = Link | InputAudio | StoreItem
Part = Annotated[Text | Medium, Field(discriminator="type")]
Parts = Annotated[list[Part], FailFast(), Field(min_length=1), BeforeValidator(_as_parts)]
Texts = Annotated[list[Text], FailFast(), Field(min_length=1), BeforeValidator(_as_parts)]


class System(Body):
    """Replaces the checkpoint's system text."""

    role: Literal["system", "developer"]
    content: Texts


class User(Body):
    """A question."""

    role: Literal["user"]
    content: Parts


class Answered(Body):
    """An earlier answer. Programs send back the whole message that they got, with lists that are empty."""

    role: Literal["assistant"]
    content: Texts
    annotations: Empty = None
    tool_calls: Empty = None


Message = Annotated[System | User | Answered, Field(discriminator="role")]


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class ResponseFormat(Body):
    """The form of an answer: text."""

    type: Literal["text"]


class Neutral(Body):
    """OpenAI's fields that change no answer here: labels, and others at the values that ask for nothing."""

    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: Annotated[dict[str, str] | None, FailFast(), Field(max_length=16)] = None
    store: Never | None = None
    service_tier: Literal["auto", "default"] | None = None
    parallel_tool_calls: bool | None = None
    tool_choice: Literal["none", "auto"] | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    modalities: Annotated[list[Literal["text"]] | None, Field(min_length=1, max_length=1)] = None
    logit_bias: Annotated[dict[str, float] | None, FailFast(), Field(max_length=0)] = None
    logprobs: Never | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None


class ChatRequest(Neutral):
    """A request for an answer."""

    model: str
    messages: Annotated[list[Message], FailFast()] = Field(min_length=1)
    modalities_in: list[Sense] | None = Field(None, min_length=1, max_length=2)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Annotated[list[StopText] | None, Field(max_length=4), BeforeValidator(_as_list)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        return self


def parse_chat(body: bytes | bytearray, settings: ApiSettings) -> ChatRequest:
    """A body that keeps the limits.

    Raises:
        ApiError: it is not JSON, or a field is unknown or not accepted; names the field.
    """
    values = settings.characters + MOST_FIELDS * settings.parts
    if body.count(b",") > values:  # bounds what parsing takes: a list of numbers takes 40 times its bytes
        raise ApiError(400, f"the body has more than {values} values", code="too_long")
    try:
        chat = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None
    if chat.model != settings.model:
        raise ApiError(404, f"there is no such model; this server has {settings.model}", "model", "model_not_found")
    parts = sum(len(message.content) for message in chat.messages)
    if parts > settings.parts:
        raise ApiError(400, f"messages: {parts} parts; accepted: at most {settings.parts}", "messages")
    characters = sum(len(text_of(message)) for message in chat.messages)
    if characters > settings.characters:
        raise ApiError(400, f"messages: {characters} characters; accepted: at most {settings.characters}", "messages")
    _check_order(chat)
    return chat


def text_of(message: Message) -> str:
    """The text of a message; several parts are lines of it."""
    return "\n".join(part.text for part in message.content if isinstance(part, Text))


def most_tokens(chat: ChatRequest, settings: ApiSettings) -> int:
    """Longest answer.

    Raises:
        ApiError: it is above the server's limit, or two fields differ.
    """
    asked = {"max_tokens": chat.max_tokens, "max_completion_tokens": chat.max_completion_tokens}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(set(given.values())) > 1:
        raise ApiError(400, "max_tokens and max_completion_tokens differ; give one", "max_tokens")
    for name, value in given.items():
        if value > settings.max_tokens:
            raise ApiError(400, f"{name}: {value}; accepted: at most {settings.max_tokens}", name)
    return next(iter(given.values()), settings.default_tokens)


def _check_order(chat: ChatRequest) -> None:
    """Refuse messages that are not questions and answers in turn, the last one a question."""
    roles = ["system" if isinstance(message, System) else message.role for message in chat.messages]
    first = int(roles[0] == "system")
    for number, role in enumerate(roles[first:], first):
        expected = "assistant" if (number - first) % 2 else "user"
        if role != expected:
            raise ApiError(400, f"messages.{number}.role: expected {expected}, found {role}", f"messages.{number}.role")
    if roles[-1] != "user":
        raise ApiError(400, "messages: the last one must be the user's", "messages")
