"""What a server did, in Prometheus' format."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)  # bounds of the histograms' buckets


class Metrics:
    """Counts of one server.

    Args:
        running: how many requests have a place.
    """

    def __init__(self, running: Callable[[], float]) -> None:
        self._registry = own = CollectorRegistry()
        Gauge("avllm_requests_running", "Requests under way or waiting", registry=own).set_function(running)
        self.answered = Counter("avllm_answers", "Answers that ended", ["reason"], registry=own)
        self.refused = Counter("avllm_refused", "Requests refused because the queue was full", registry=own)
        self.prompt_tokens = Counter("avllm_prompt_tokens", "Positions of prompts", registry=own)
        self.generated_tokens = Counter("avllm_generated_tokens", "Tokens of answers", registry=own)
        self.encoded = Counter("avllm_files_encoded", "Sent files that were decoded and encoded", registry=own)
        self.remembered = Counter("avllm_files_remembered", "Sent files whose features were known", registry=own)
        self.encode_seconds = Histogram("avllm_encode_seconds", "Of one sent file", buckets=SECONDS, registry=own)
        self.first_seconds = Histogram(
            "avllm_first_text_seconds", "To an answer's first text", buckets=SECONDS, registry=own
        )

    def text(self) -> bytes:
        """The page of /metrics."""
        return generate_latest(self._registry)
