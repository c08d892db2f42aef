"""The engine that generates here: a loop that answers join and leave at any step."""

import inspect
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from serve.engine import EngineError, Limits, Piece, check_rows
from serve.sampling import Sampler, choose_tokens
from serve.slots import SlotCache
from serve.text import TextStream
from store import UserError

AT_ONCE = 32
PROMPTS_POSITIONS = 8192  # of prompts that are read in one pass, padding included
SHARE = 0.7  # of free memory that keys and values may take


@dataclass
class _Answer:
    """An answer, waiting or under way."""

    rows: torch.Tensor
    limits: Limits
    most: int
    deliver: Callable[[Piece], None]
    sampler: Sampler
    text: TextStream
    is_cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def longest(self) -> int:
        """Positions that it may come to take."""
        return len(self.rows) + self.most


class Local:
    """Generates with an LLM in this process. A thread owns the LLM; questions of all threads share its steps.

    Args:
        llm: a causal LM of `transformers`, on its device, with a clean generation configuration.
        tokenizer: the LLM's.
        at_once: the most answers under way; others wait in turn.
        memory: bytes for keys and values; None takes most of what is free.
    """

    def __init__(self, llm: Any, tokenizer: Any, at_once: int = AT_ONCE, memory: int | None = None) -> None:
        self.context = int(getattr(llm.config, "max_position_embeddings", None) or 1 << 20)
        self.at_once = at_once
        self._llm, self._tokenizer = llm, tokenizer
        ends = llm.generation_config.eos_token_id
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        self._cache_name = _cache_name(llm)
        self._memory = memory or _free_memory(llm.device)
        self._layers, self._position_bytes = _shape_of_cache(llm)
        self._waiting: deque[_Answer] = deque()
        self._running: list[_Answer] = []
        self._next: list[int | None] = []
        self._cache = SlotCache(self._layers)
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="avllm engine", daemon=True)
        self._thread.start()

    def submit(self, rows: torch.Tensor, limits: Limits, deliver: Callable[[Piece], None]) -> Callable[[], None]:
        """See `Engine.submit`."""
        most = check_rows(rows, limits, self.context)
        answer = _Answer(
            rows, limits, most, deliver, Sampler(limits, self._llm.device), TextStream(self._tokenizer, limits.stop)
        )
        if self._bytes(1, answer.longest) > self._memory:
            raise UserError(
                f"the question and its answer may take {answer.longest} positions, "
                f"{self._bytes(1, answer.longest) >> 20} MiB; accepted: {self._memory >> 20} MiB, what memory is free"
            )
        with self._changed:
            if self._is_closed:
                raise RuntimeError("the engine is closed")
            self._waiting.append(answer)
            self._changed.notify()
        return answer.is_cancelled.set

    def check(self) -> None:
        """See `Engine.check`."""
        if not self._thread.is_alive():
            raise EngineError("the engine has ended")

    def close(self) -> None:
        """Cancel all answers and end the thread."""
        with self._changed:
            self._is_closed = True
            for answer in (*self._waiting, *self._running):
                answer.is_cancelled.set()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._changed:
                    while not (self._waiting or self._running or self._is_closed):
                        self._changed.wait()
                    if self._is_closed and not (self._waiting or self._running):
                        return
                self._drop_cancelled()
                self._admit()
                try:
                    self._step()
                except Exception as error:
                    self._fail(error)

    def _fail(self, error: Exception) -> None:
        """End the answers under way with an error; later ones are served."""
        failed, self._running, self._next = self._running, [], []
        self._cache = SlotCache(self._layers)
        for answer in failed:
            answer.deliver(Piece("", answer.text.tokens, error=error))

    def _drop_cancelled(self) -> None:
        with self._changed:
            waiting = [answer for answer in self._waiting if answer.is_cancelled.is_set()]
            self._waiting = deque(answer for answer in self._waiting if not answer.is_cancelled.is_set())
        for answer in waiting:
            answer.deliver(Piece("", 0, "cancelled"))
        for row in reversed(range(len(self._running))):
            if self._running[row].is_cancelled.is_set():
                self._end(row, Piece("", self._running[row].text.tokens, "cancelled"))

    def _admit(self) -> None:
        """Read the prompts of those next in turn that there is room for, and choose their first tokens."""
        admitted: list[_Answer] = []
        while self._waiting and self._fits([*admitted, self._waiting[0]]):
            with self._changed:
                admitted.append(self._waiting.popleft())
        if not admitted:
            return
        try:
            logits = self._read_prompts(admitted)
            self._next += choose_tokens(logits, [answer.sampler for answer in admitted])
        except Exception as error:
            for answer in admitted:
                answer.deliver(Piece("", 0, error=error))
            if len(self._cache.window.lengths) > len(self._running):  # they had joined it
                self._fail(error)
            return
        self._running += admitted
        self._deliver_and_end(len(self._running) - len(admitted))

    def _read_prompts(self, admitted: list[_Answer]) -> torch.Tensor:
        """Join the cache; returns the logits [n, V] of the first tokens."""
        lengths = [len(answer.rows) for answer in admitted]
        longest = max(lengths)
        embeds = admitted[0].rows.new_zeros(len(admitted), longest, admitted[0].rows.shape[1])
        places = torch.arange(longest, device=embeds.device)
        starts = longest - torch.tensor(lengths, device=embeds.device)[:, None]
        for row, answer in enumerate(admitted):
            embeds[row, longest - lengths[row] :] = answer.rows
        prompts = DynamicCache()
        logits = self._logits(
            inputs_embeds=embeds,
            attention_mask=places >= starts,
            position_ids=(places - starts).clamp(min=0),
            cache=prompts,
        )
        self._cache.join(prompts, lengths)
        return logits

    def _fits(self, joining: list[_Answer]) -> bool:
        answers = [*self._running, *joining]
        longest = max(answer.longest for answer in answers)
        prompts = len(joining) * max(len(answer.rows) for answer in joining)
        return (
            len(answers) <= self.at_once
            and self._bytes(len(answers), longest) <= self._memory
            and (len(joining) == 1 or prompts <= PROMPTS_POSITIONS)
        )

    def _step(self) -> None:
        """Give every answer under way one more token."""
        if not self._running:
            return
        self._cache.begin_step()
        window, device = self._cache.window, self._llm.device
        lengths = torch.tensor(window.lengths, device=device)[:, None]
        logits = self._logits(
            input_ids=torch.tensor(self._next, device=device)[:, None],
            attention_mask=torch.arange(window.longest + 1, device=device) >= window.longest - lengths,
            position_ids=lengths,
            cache=self._cache,
        )
        self._cache.end_step()
        self._next = choose_tokens(logits, [answer.sampler for answer in self._running])
        self._deliver_and_end(0)

    def _logits(self, *, cache: Any, **inputs: torch.Tensor) -> torch.Tensor:
        """The logits of the last position of each row, [n, V]."""
        output = self._llm(**inputs, **{self._cache_name: cache}, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _deliver_and_end(self, first: int) -> None:
        """Deliver the tokens just chosen, of the rows from `first` on; answers that end with them leave."""
        for row in reversed(range(first, len(self._running))):
            answer, token = self._running[row], self._next[row]
            if token is None:
                self._end(row, Piece("", answer.text.tokens, error=ArithmeticError("the LLM's logits are not finite")))
                continue
            if token in self._ends:
                answer.text.tokens += 1
                self._end(row, Piece(answer.text.finish(), answer.text.tokens, "stop"))
                continue
            text = answer.text.add(token)
            if answer.text.is_stopped:
                self._end(row, Piece(text, answer.text.tokens, "stop"))
            elif answer.text.tokens >= answer.most:
                text += answer.text.finish()
                self._end(row, Piece(text, answer.text.tokens, "stop" if answer.text.is_stopped else "length"))
            elif text:
                answer.deliver(Piece(text, answer.text.tokens))

    def _end(self, row: int, piece: Piece) -> None:
        """Deliver an answer's last piece; the last row takes its place, as in the cache."""
        answer = self._running[row]
        self._running[row], self._next[row] = self._running[-1], self._next[-1]
        self._running.pop()
        self._next.pop()
        self._cache.leave(row)
        answer.deliver(piece)

    def _bytes(self, rows: int, positions: int) -> int:
        return rows * positions * self._position_bytes


def _cache_name(llm: Any) -> str:
    """The name of a model's cache argument, which `transformers` changed in 5.24."""
    words = inspect.signature(inspect.unwrap(type(llm).forward)).parameters
    return "cache" if "cache" in words else "past_key_values"


def _shape_of_cache(llm: Any) -> tuple[int, int]:
    """How many layers keep keys and values, and bytes of one position in all of them: tried on one position."""
    cache = DynamicCache()
    with torch.inference_mode():
        ids = torch.zeros(1, 1, dtype=torch.long, device=llm.device)
        llm(input_ids=ids, **{_cache_name(llm): cache}, use_cache=True, logits_to_keep=1)
    layers: list[Any] = cache.layers
    return len(layers), sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(SHARE * torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(SHARE * psutil.virtual_memory().available)
