"""What the contenders share: the LLM, a store of the paper's sizes, the settings of a stage."""

import os
import platform
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from benchmarks.conversations import (
    MAX_TOKENS,
    K,
    N,
    T,
    draw,
    random_arrays,
)
from store import Candidate, ColumnSpec, Corpus, Failure, Feature, Storage, create_column, save_conversations
from store.console import console
from trainer.settings import Source, TrainConfig

BUDGET = 4096  # on two cores a pass of 8192 rows outgrows the cache and is slower
CONVERSATIONS = "mixed"
VISUAL, AUDIO = "clip-vit-l-14", "clap-htsat-tiny"  # columns
Stage = Annotated[int, typer.Option(min=1, max=2, help="1 trains the projectors, 2 the LLM too.")]
Model = Annotated[Path, typer.Option(help="SmolLM2's folder; made if it is not there.")]
SMOLLM = Path("build/smollm2")


def write_store(folder: Path, count: int) -> None:
    """Write a store of the paper's sizes: conversations of all three sources, each with an item of random features."""
    storage, drawn, rng = Storage(folder), draw(count, ("LLaVA", "Valley", "paper")), np.random.default_rng(1)
    corpus = Corpus()
    corpus.append([Candidate(f"{n}-clip", f"/nowhere/{n}-clip", "video") for n in range(count)], 64)
    corpus.save(storage)
    stored = {
        "visual": {"temporal": Feature(shape=(None, 1024), dtype="float16")}
        | {f"spatial.t{T}": Feature(shape=(N, 1024), dtype="float16")},
        "audio": {f"audio.k{K}": Feature(shape=(K, 768), dtype="float16")},
    }
    for (modality, features), name in zip(stored.items(), (VISUAL, AUDIO), strict=True):
        spec = ColumnSpec(name=name, modality=modality, numerics={"random": 1}, features=features)  # type: ignore[arg-type]
        column = create_column(storage, spec, {})
        for shard, items in corpus.shards.items():
            with column.write_shard(shard) as writer:
                for item in items:
                    arrays = random_arrays(drawn[64 * shard + item.position].medium, rng)
                    kept = {f: arrays[f.split(".")[0]] for f in features if f.split(".")[0] in arrays}
                    if kept:
                        writer.add(item.key, kept, {})
                    else:
                        writer.fail(Failure(key=item.key, code="absent", reason="no such stream"))
    save_conversations(storage, CONVERSATIONS, [conversation for _, conversation in drawn])


def configuration(stage: int, model: Path, store: str, output: str, batch: int, steps: int) -> TrainConfig:
    """The paper's settings of a stage."""
    return TrainConfig(
        stage=1 if stage == 1 else 2,
        model=str(model),
        sources=(Source(store=store, conversations=CONVERSATIONS),),
        visual=VISUAL,
        audio=AUDIO,
        output=output,
        overwrite=True,
        global_batch=batch,
        batch_tokens=BUDGET,
        max_tokens=MAX_TOKENS,
        steps=steps,
        lr=2e-3 if stage == 1 else 2e-5,
    )


def make_llm(folder: Path) -> None:
    """Make SmolLM2's folder, if it does not exist."""
    if not (folder / "model.safetensors").is_file():
        from demo.llm import make_llm

        make_llm(folder)


def show_machine(what: str) -> None:
    """Print what this machine is and what was run."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    console.print(f"{name}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}: {what}")
