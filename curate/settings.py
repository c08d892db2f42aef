"""How outside LLMs are asked: servers, key, limits of time, price and budget."""

import math
import os
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from curate.ledger import Amount, Limit
from store import Settings, UserError

NANO = 1000  # billionths of a dollar a token, for each dollar a million tokens
BILLION = 1_000_000_000


class Price(Settings):
    """What tokens cost, in dollars a million.

    Attributes:
        prompt: of what is sent.
        completion: of what is generated.
    """

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)

    @property
    def half(self) -> "Price":
        """What providers take in batch files."""
        return Price(prompt=self.prompt / 2, completion=self.completion / 2)

    def of(self, prompt_tokens: int, completion_tokens: int) -> Amount:
        """What a request costs; a part of a billionth of a dollar for a token counts whole."""
        prompt, completion = (math.ceil(round(NANO * price, 6)) for price in (self.prompt, self.completion))
        return Amount(prompt_tokens * prompt + completion_tokens * completion, prompt_tokens + completion_tokens)


class ClientSettings(Settings):
    """How servers are asked.

    Attributes:
        urls: of OpenAI-style servers that serve the same model; `/v1` is added to a URL without a path.
        model: as the servers call it.
        key_env: environment variable that holds the API key.
        key_file: file that holds it; with neither, none is sent.
        concurrency: the most requests under way at each server. Fewer while it cannot keep up.
        connect_seconds: the longest wait for a connection.
        silent_seconds: the longest wait for the first byte of a reply, and for each after it.
        whole_seconds: the longest that a reply may take.
        tries: how often a request is sent before it is left undecided.
        longest_pause: seconds between two tries at most, unless the server asks for more.
        stop_after: requests in a row without a reply after all their tries, after which the run stops.
        price: what tokens cost; None if nothing.
        budget_dollars: the most that all replies of the ledger may cost; needs a price.
        budget_tokens: the same in tokens.
    """

    urls: tuple[str, ...] = Field(min_length=1)
    model: str
    key_env: str | None = None
    key_file: Path | None = None
    concurrency: int = Field(default=32, ge=1)
    connect_seconds: float = Field(default=10.0, gt=0)
    silent_seconds: float = Field(default=120.0, gt=0)
    whole_seconds: float = Field(default=600.0, gt=0)
    tries: int = Field(default=8, ge=1)
    longest_pause: float = Field(default=60.0, ge=0)
    stop_after: int = Field(default=10, ge=1)
    price: Price | None = None
    budget_dollars: float | None = Field(default=None, ge=0)
    budget_tokens: int | None = Field(default=None, ge=0)

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} is no URL of a server, for example http://127.0.0.1:8000")
            if parts.username or parts.password:
                raise ValueError("a URL holds no password; name a key by key_env or key_file")
        return urls

    @field_validator("budget_dollars")
    @classmethod
    def _check_budget(cls, dollars: float | None, info: ValidationInfo) -> float | None:
        if dollars is not None and info.data.get("price") is None:
            raise ValueError("needs price.prompt and price.completion, in dollars a million tokens")
        return dollars

    @property
    def limit(self) -> Limit:
        """The budget as a ledger counts it."""
        dollars = self.budget_dollars
        return Limit(None if dollars is None else int(dollars * BILLION), self.budget_tokens)

    def key(self) -> str | None:
        """The API key, or None.

        Raises:
            UserError: the variable is not set, or the file cannot be read.
        """
        if self.key_env is not None:
            if not (key := os.environ.get(self.key_env, "").strip()):
                raise UserError(f"field 'key_env': the environment variable {self.key_env} is not set")
            return key
        try:
            return self.key_file.read_text().strip() if self.key_file else None
        except (OSError, UnicodeDecodeError):
            raise UserError(f"field 'key_file': {self.key_file} cannot be read") from None


def endpoint(url: str) -> str:
    """Where chat completions of a server are."""
    base = url.rstrip("/")
    return f"{base}{'' if urlsplit(base).path else '/v1'}/chat/completions"
