"""Questions to LLMs, and what their stored replies say. Pure: the same replies always say the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from curate.curation import CurationSettings, Sampling
from curate.ledger import Ledger, Reply, Request
from curate.replies import UnusableError
from curate.settings import ClientSettings

T = TypeVar("T")
Role = Literal["generator", "judge"]
ROLES: tuple[Role, ...] = ("generator", "judge")
CUT = "length"  # why a reply ended that is not whole
CHARACTERS_A_TOKEN = 4  # of English, where a server does not count
LIVELIER = 0.3  # added to the temperature at each asking: a model at 0 would say the same again


def client_of(settings: CurationSettings, role: Role) -> ClientSettings:
    """How a model is asked."""
    return settings.judge if role == "judge" and settings.judge else settings.generator


@dataclass(frozen=True)
class Question(Generic[T]):
    """What an LLM is asked, and how its reply is read.

    Attributes:
        role: who is asked.
        template: name and digest of the template.
        body: of the request: model and messages, and the form of the reply.
        sampling: how the model writes.
        read: reads a reply; raises `UnusableError`.
    """

    role: Role
    template: str
    body: Mapping[str, Any]
    sampling: Sampling
    read: Callable[[str], T]

    @cached_property
    def first(self) -> Request:
        """The request, asked for the first time."""
        return self.request(0, 0)

    def request(self, ask: int, cut: int) -> Request:
        """The request, for the `ask`-th time from 0, after replies of which `cut` ended too early."""
        body = {**self.body, "max_tokens": self.sampling.max_tokens * 2**cut}
        if self.sampling.temperature is not None:
            body["temperature"] = round(self.sampling.temperature + LIVELIER * ask, 3)
        if self.sampling.seed is not None:
            body["seed"] = self.sampling.seed + ask
        return Request(body, ask)


class Usage(NamedTuple):
    """What replies took.

    Attributes:
        replies: how many.
        prompt: tokens that were sent.
        completion: tokens that were generated.
    """

    replies: int = 0
    prompt: int = 0
    completion: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """The sum of both."""
        return Usage(*map(sum, zip(self, other, strict=True)))


NONE = Usage()


@dataclass(frozen=True)
class Receipt:
    """Where a value comes from.

    Attributes:
        template: name and digest of the template.
        digest: of the last request.
        served: the model that the server says it is.
        usage: of all askings.
    """

    template: str
    digest: str = ""
    served: str = ""
    usage: Usage = NONE


@dataclass(frozen=True)
class Answered(Generic[T]):
    """A question whose reply could be read, and what it says."""

    value: T
    receipt: Receipt


@dataclass(frozen=True)
class Failed:
    """A question to which no reply could be read, and why not."""

    reason: str
    receipt: Receipt


@dataclass(frozen=True)
class Pending:
    """What has to be asked before more is known.

    Attributes:
        role: who is asked.
        requests: what; they depend on no other's reply.
    """

    role: Role
    requests: tuple[Request, ...]


def settle(question: Question[T], ledger: Ledger, asks: int) -> Answered[T] | Failed | Pending:
    """What the stored replies to a question say, or the request that is to be sent next.

    Args:
        question: the question.
        ledger: the replies.
        asks: how often it may be asked.
    """
    cut, reason, receipt = 0, "", Receipt(question.template)
    for ask in range(asks):
        request = question.request(ask, cut) if ask else question.first
        reply = ledger.get(request)
        if reply is None:
            return Pending(question.role, (request,))
        usage = receipt.usage.plus(_usage(request, reply))
        receipt = Receipt(question.template, request.digest, reply.served, usage)
        try:
            return Answered(_read(question, reply), receipt)
        except UnusableError as error:
            reason = str(error)
            cut += reply.finish == CUT
    return Failed(reason, receipt)


def _usage(request: Request, reply: Reply) -> Usage:
    sent = sum(len(message["content"]) for message in request.body["messages"])
    prompt, completion = reply.prompt_tokens, reply.completion_tokens
    return Usage(
        1,
        sent // CHARACTERS_A_TOKEN if prompt is None else prompt,
        len(reply.text) // CHARACTERS_A_TOKEN if completion is None else completion,
    )


def _read(question: Question[T], reply: Reply) -> T:
    if reply.refused:
        raise UnusableError("the model refused")
    if reply.finish == CUT:
        raise UnusableError("the reply was cut at max_tokens")
    return question.read(reply.text)
