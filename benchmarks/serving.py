"""How fast questions are answered: the engine, `generate` one at a time and in padded batches, and a vLLM server.

    python -m benchmarks.serving engines runs/demo/stage2/checkpoint runs/demo/store heldout
    python -m benchmarks.serving outside runs/demo/stage2/checkpoint

`engines` asks the same questions of each contender in turns, compares their texts, and prints medians. `outside` asks
1,000 questions about a store of 20,000 items, and prints the share of time that is not the LLM's.
"""

import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

from serve.assistant import Assistant, Question
from serve.engine import Limits, Piece
from serve.evals.answers import Answer, AnswerFile, Key
from serve.evals.ask import all_asked, ask
from serve.evals.tasks import Query, Task
from serve.vllm import VLLM
from store import Candidate, Corpus, Modality, Storage, Turn, create_column, load_conversations
from store.console import Meter, console, make_app, run
from trainer.checkpoint.info import read_info

LENGTHS = (2, 4, 8, 16, 32, 64)  # of answers of mixed length
BATCH = 16
app = make_app("How fast questions are answered.")
Contender = Callable[[Sequence[torch.Tensor], Sequence[int]], list[str]]


def generated(assistant: Assistant, batch: int) -> Contender:
    """`generate` of transformers, in batches that are padded on the left; a batch ends with its longest answer."""
    llm: Any = assistant.engine._llm  # type: ignore[attr-defined]
    tokenizer = assistant.prompts.tokenizer

    def answer(rows: Sequence[torch.Tensor], limits: Sequence[int]) -> list[str]:
        texts = []
        for start in range(0, len(rows), batch):
            some, most = rows[start : start + batch], limits[start : start + batch]
            longest = max(map(len, some))
            embeds = some[0].new_zeros(len(some), longest, some[0].shape[1])
            mask = torch.zeros(len(some), longest, dtype=torch.long, device=embeds.device)
            for row, prompt in enumerate(some):
                embeds[row, longest - len(prompt) :] = prompt
                mask[row, longest - len(prompt) :] = 1
            with torch.inference_mode():
                output = llm.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=max(most),
                                      do_sample=False, pad_token_id=tokenizer.eos_token_id)  # fmt: skip
            texts += [tokenizer.decode(ids[:n], skip_special_tokens=True) for ids, n in zip(output, most, strict=True)]
        return texts

    return answer


def engine_of(engine: Any) -> Contender:
    """All questions at once; an engine takes as many as it likes."""

    def answer(rows: Sequence[torch.Tensor], limits: Sequence[int]) -> list[str]:
        said: list[list[Piece]] = [[] for _ in rows]
        for row, most, pieces in zip(rows, limits, said, strict=True):
            engine.submit(row, Limits(most), pieces.append)
        while not all(pieces and (pieces[-1].reason or pieces[-1].error) for pieces in said):
            time.sleep(0.002)
        assert not any(pieces[-1].error for pieces in said), next(p[-1].error for p in said if p[-1].error)
        return ["".join(piece.text for piece in pieces) for pieces in said]

    return answer


@app.command()
def engines(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint.")],
    store: Annotated[str, typer.Argument(help="A store with its features.")],
    conversations: Annotated[str, typer.Argument(help="Their first turns are asked.")],
    questions: Annotated[int, typer.Option(help="Asked; conversations repeat by each modality.")] = 200,
    rounds: Annotated[int, typer.Option(help="Of all contenders in turns.")] = 3,
    vllm: Annotated[str | None, typer.Option(help="URL of a vLLM server of the checkpoint.")] = None,
    threads: Annotated[int, typer.Option(help="Of torch, here.")] = 1,
) -> None:
    """Answers a second, and whose texts are equal."""
    torch.set_num_threads(threads)
    assistant = Assistant.load(checkpoint)
    assistant.engine.at_once = BATCH
    rows = _prompts(assistant, store, conversations, questions)
    mixed = [LENGTHS[int(n)] for n in np.random.default_rng(0).integers(len(LENGTHS), size=len(rows))]
    contenders: dict[str, Contender] = {
        "avllm": engine_of(assistant.engine),
        f"generate, padded batches of {BATCH}": generated(assistant, BATCH),
        "generate, one at a time": generated(assistant, 1),
    }
    remote = {"vLLM": engine_of(VLLM(vllm))} if vllm else {}
    _race(f"{len(rows)} questions, answers as they end", contenders | remote, rows, [32] * len(rows), rounds)
    engine: Any = assistant.engine
    engine._ends = frozenset()
    engine._llm.generation_config.eos_token_id = None
    _race(f"{len(rows)} questions, answers of 2 to 64 tokens", contenders, rows, mixed, rounds)
    console.print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    assistant.close()


def _race(
    title: str, contenders: dict[str, Contender], rows: Sequence[torch.Tensor], limits: Sequence[int], rounds: int
) -> None:
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    texts: dict[str, list[str]] = {}
    with Meter(title, rounds * len(contenders), "turns") as meter:
        for _ in range(rounds):
            for name, answer in contenders.items():
                start = time.perf_counter()
                texts[name] = answer(rows, limits)
                taken[name].append(time.perf_counter() - start)
                meter.advance(1)
    alone = texts["generate, one at a time"]
    table = Table("contender", "answers/s (median)", "of padded batches", "texts equal to one at a time", title=title)
    padded = taken[f"generate, padded batches of {BATCH}"]
    for name, seconds in taken.items():
        ratio = statistics.median(b / s for b, s in zip(padded, seconds, strict=True))
        equal = sum(a == b for a, b in zip(texts[name], alone, strict=True))
        table.add_row(name, f"{len(rows) / statistics.median(seconds):.2f}", f"{ratio:.2f}", f"{equal} of {len(rows)}")
    console.print(table)


def _prompts(assistant: Assistant, store: str, conversations: str, count: int) -> list[torch.Tensor]:
    """Embedded prompts: each conversation's first question by sight, by sound and by both."""
    rows: list[torch.Tensor] = []
    modalities: tuple[Modality, ...] = ("audio_visual", "visual", "audio")
    for modality in modalities:
        for conversation in load_conversations(Storage(store), conversations):
            features = assistant.features.load(store, str(conversation.key), ["visual", "audio"])
            if len(rows) < count and not features.failures:
                turn = Turn(conversation.turns[0].instruction, modality, "")
                rows.append(assistant.prompts.embed(Question((turn,), features.arrays)))
    return rows


@app.command()
def outside(
    checkpoint: Annotated[str, typer.Argument(help="Folder of a checkpoint.")],
    items: Annotated[int, typer.Option(help="Of the store, with random features.")] = 20_000,
    questions: Annotated[int, typer.Option(help="Asked, each about another item.")] = 1_000,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 1,
) -> None:
    """The share of an evaluation's time that is spent outside the LLM: reading, embedding, writing."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        _fill(Storage(Path(folder) / "store"), checkpoint, items)
        assistant = Assistant.load(checkpoint)
        llm: Any = assistant.engine._llm  # type: ignore[attr-defined]
        forward, inside = llm.forward, 0.0

        def timed(*words: Any, **named: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            output = forward(*words, **named)
            inside += time.perf_counter() - start
            return output

        llm.forward = timed
        task = Task(name="t", title="t", form="question", prompt="{question}", modality="audio_visual",
                    max_new_tokens=16, scorer="exact")  # fmt: skip
        chosen = np.random.default_rng(0).permutation(items)[:questions]
        made = [_query(int(number)) for number in chosen]
        asked = all_asked([(task, "t", made)])
        tokens: list[int] = []
        start = time.perf_counter()
        with AnswerFile(Path(folder) / "answers", 0, 1) as file, Meter("asking", questions, "questions") as meter:

            def keep(key: Key, answer: Answer) -> None:
                file.write(key, answer)
                tokens.append(answer.tokens)
                meter.advance(1)

            ask(assistant, str(Path(folder) / "store"), asked, keep)
        taken = time.perf_counter() - start
        assistant.close()
    console.print(
        f"{questions} questions about {items} items: {taken:.1f} s, {questions / taken:.2f} answers/s, "
        f"{sum(tokens) / len(tokens):.1f} tokens each; outside the LLM {1 - inside / taken:.1%}"
    )


def _query(number: int) -> Query:
    text = f"Is the shape red, yellow, green or blue? ({number})"
    return Query(f"q{number}", f"{number}-mp4", (Turn(text, "audio_visual", ""),), text, ("red",), str(number))


def _fill(storage: Storage, checkpoint: str, items: int) -> None:
    """A store of random features, with the columns of a checkpoint."""
    corpus, info, rng = Corpus(), read_info(checkpoint), np.random.default_rng(0)
    corpus.append((Candidate(f"{number}.mp4", f"/{number}.mp4", "video") for number in range(items)), 1000)
    corpus.save(storage)
    for sense, spec in info.columns.items():
        column = create_column(storage, spec, info.builds[sense])
        shapes = {name: tuple(n or info.frames for n in feature.shape) for name, feature in spec.features.items()}
        arrays = {name: rng.standard_normal(s).astype(spec.features[name].dtype) for name, s in shapes.items()}
        for shard, members in corpus.shards.items():
            with column.write_shard(shard) as writer:
                for item in members:
                    writer.add(item.key, arrays, {})


if __name__ == "__main__":
    run(app)
