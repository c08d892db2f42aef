"""Protocols: what a judge is asked, and what its replies count. The wordings are in `protocols.yaml`."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from curate.ledger import Request
from serve.evals.judge_replies import (
    Judgement,
    Unusable,
    parse_score,
    parse_verdict,
    published_score,
    published_verdict,
)
from store import Settings, load_settings

ProtocolName = Literal["video-chatgpt", "avllm"]
Kind = Literal["judged", "correctness", "detail", "context", "temporal", "consistency"]
PLACE = re.compile(r"\{(question2?|answer|prediction2?)\}")
NOTHING = Judgement(None, None)


class Wording(Settings):
    """The two messages to a judge.

    Attributes:
        system: its task.
        user: the answer to judge, with places for its texts.
    """

    system: str
    user: str


class Protocol(Settings):
    """How a judge is asked, and its replies are read.

    Attributes:
        name: what commands and reports call it.
        tries: how often a judge is asked for a reply that can be used, the first time included. (`ClientSettings.tries`
            are of one request: how often it is sent until a server replies.)
        max_tokens: of a reply.
        temperature: of its sampling; None leaves it to the server.
        published: whether replies are read as Video-ChatGPT's evaluator reads them, else by our rules.
        wordings: by the kind of judgement.
    """

    name: ProtocolName
    tries: int = Field(ge=1)
    max_tokens: int = Field(ge=1)
    temperature: float | None
    published: bool
    wordings: dict[Kind, Wording]

    @property
    def digest(self) -> str:
        """Of all that it asks and how, the names of the fields too; reports hold it."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()[:16]

    def request(self, kind: Kind, texts: Mapping[str, str], model: str, schema: bool, ask: int = 0) -> Request:
        """The request for a judgement.

        Args:
            kind: of judgement.
            texts: by the names of their places.
            model: the judge.
            schema: whether the server is told the form of the reply; for our own protocol only.
            ask: how many replies to the same were of no use.
        """
        wording = self.wordings[kind]
        body: dict[str, Any] = {
            "model": model,
            "messages": [
                {"role": "system", "content": wording.system},
                {"role": "user", "content": PLACE.sub(lambda place: self._filled(texts[place[1]]), wording.user)},
            ],
            "max_tokens": self.max_tokens,
        }
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if schema and not self.published:
            body["response_format"] = _schema(kind)
        return Request(body, ask)

    def read(self, kind: Kind, reply: str) -> Judgement:
        """What a reply says; without verdict and score if it cannot be used."""
        if kind != "judged":
            score = published_score(reply) if self.published else parse_score(reply)
            return NOTHING if isinstance(score, Unusable) else Judgement(None, score)
        judgement = published_verdict(reply) if self.published else parse_verdict(reply)
        return NOTHING if isinstance(judgement, Unusable) else judgement

    def _filled(self, text: str) -> str:
        return text if self.published else json.dumps(text, ensure_ascii=False)


class ProtocolFile(Settings):
    """The file of protocols.

    Attributes:
        protocols: in order.
    """

    protocols: tuple[Protocol, ...]


def _schema(kind: Kind) -> dict[str, Any]:
    """The form of a reply, as structured output asks for it."""
    properties: dict[str, Any] = {"pred": {"type": "string", "enum": ["yes", "no"]}} if kind == "judged" else {}
    properties["score"] = {"type": "integer", "enum": [0, 1, 2, 3, 4, 5]}
    whole = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "judgement", "strict": True, "schema": whole}}


PROTOCOLS: dict[ProtocolName, Protocol] = {
    protocol.name: protocol
    for protocol in load_settings(ProtocolFile, Path(__file__).with_name("protocols.yaml")).protocols
}
