"""Which judges there are, and what each is asked."""

from pydantic import Field, field_validator

from curate.ledger import Request
from curate.settings import ClientSettings
from serve.evals.judgements import Item
from serve.evals.protocols import PROTOCOLS, Protocol, ProtocolName
from store import Settings


class JudgeSettings(ClientSettings):
    """A judge.

    Attributes:
        protocol: what it is asked, and how it is read.
        response_schema: whether its server is told the form of a reply.
    """

    protocol: ProtocolName = "avllm"
    response_schema: bool = True

    def request(self, item: Item, ask: int = 0) -> Request:
        """The request for a judgement; `ask` replies to it were of no use."""
        return self.asked_by.request(item.kind, item.texts, self.model, self.response_schema, ask)

    @property
    def asked_by(self) -> Protocol:
        """The protocol, by which it is asked. Elsewhere `asked_by` is a sense."""
        return PROTOCOLS[self.protocol]


class JudgeFile(Settings):
    """A file of judges.

    Attributes:
        judges: the first gives the scores of a report; those of the others are reported too.
    """

    judges: tuple[JudgeSettings, ...] = Field(min_length=1)

    @field_validator("judges")
    @classmethod
    def _check(cls, judges: tuple[JudgeSettings, ...]) -> tuple[JudgeSettings, ...]:
        if len({judge.protocol for judge in judges}) > 1:
            raise ValueError("judges of two protocols cannot be compared; name a file for each")
        if len({judge.model for judge in judges}) < len(judges):
            raise ValueError("a model stands twice; one judge may have several urls")
        return judges
