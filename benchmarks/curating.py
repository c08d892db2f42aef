"""A whole curation by a server that takes 20 ms, against a bare loop of aiohttp that asks the same; and its rerun.

python -m benchmarks.curating --count 10000
"""

import json
import re
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks.llm_server import ask_bare, cpu, serving
from curate.curation import CELLS, TASKS, CurationSettings
from curate.judging import JUDGED
from curate.ledger import Ledger, Request
from curate.run import Curation, ledger_of
from store import Candidate, ColumnSpec, Corpus, Feature, Storage, create_column, parse_settings
from store.console import console, make_app, run

CAPTIONS = re.compile(rb"<captions-\w+>\\n(\[.*?\])\\n</captions")
NOUNS = ("man", "woman", "dog", "cat", "bus", "train", "boat", "child", "bird", "horse")
PLACES = ("on a bridge", "near a river", "in a garden", "on a beach", "in a kitchen", "under a tree", "at a station")
GOOD = json.dumps({criterion: {"quotes": [], "score": 5} for criterion in JUDGED})
app = make_app("Overhead of a curation.")


def _reply(body: bytes) -> str:
    """What a model that copies says."""
    if b'\\"relevance\\"' in body:
        return GOOD
    found = CAPTIONS.search(body)
    assert found
    lines: list[str] = json.loads(json.loads(b'"' + found[1] + b'"'))
    fused = [line.partition("in short: ")[2] for line in lines if "in short: " in line]
    plain = list(dict.fromkeys(line.partition(": ")[2] for line in lines if "in short: " not in line))
    if b'{\\"turns\\"' in body:
        return json.dumps({"turns": [{"question": f"What about {t.split()[1]}?", "answer": t} for t in plain[:2]]})
    if b'{\\"question\\"' in body:
        return json.dumps({"question": "How can one tell?", "answer": f"It follows, because {fused[-1]}"})
    return json.dumps({"description": fused[-1]}) if b'{\\"description\\"' in body else f"{', and '.join(plain)}."


def _store(folder: Path, clips: int) -> Storage:
    """A store of clips with captions of four frames and three segments, all different."""
    storage, corpus, draw = Storage(folder), Corpus(), np.random.default_rng(0)
    corpus.append(Candidate(f"clip-{n}", f"/media/clip-{n}.mp4", "video", 1) for n in range(clips))
    corpus.save(storage)
    for name, count in (("frames", 4), ("sounds", 3)):
        modality = "visual" if name == "frames" else "audio"
        feature = {"caption": Feature(shape=(None,), dtype="text")}
        column = create_column(storage, ColumnSpec.model_validate(
            {"name": name, "modality": modality, "numerics": {}, "features": feature}), {})  # fmt: skip
        for shard, items in corpus.shards.items():
            with column.write_shard(shard) as writer:
                for item in items:
                    chosen = draw.integers(0, (len(NOUNS), len(PLACES)), (count, 2))
                    texts = [f"a {NOUNS[n]} {PLACES[p]} {item.key[5:]}" for n, p in chosen]
                    writer.add(item.key, {"caption": np.array(texts, np.str_)}, {"seconds": 8.0})
    return storage


def _memory() -> float:
    """Resident MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError


@app.command()
def clips(
    count: Annotated[int, typer.Option(help="Clips; each is used in nine cells.")] = 10_000,
    concurrency: Annotated[int, typer.Option(help="Requests at once.")] = 64,
    bare: Annotated[int, typer.Option(help="Requests of the bare loop.")] = 4_000,
) -> None:
    """Requests/s and CPU of a whole curation and of the bare loop; memory; the rerun, which asks nothing."""
    with tempfile.TemporaryDirectory() as folder, serving(_reply) as url:
        storage = _store(Path(folder) / "store", count)
        mix = {task: dict.fromkeys(("audio", "visual", "audio_visual"), count) for task in TASKS}
        client = {"urls": [url], "model": "m", "concurrency": concurrency}
        settings = parse_settings(CurationSettings, {
            "name": "bench", "captions": {"frames": "frames", "segments": "sounds"}, "mix": mix, "generator": client,
            "judge": client, "turns": [2, 2], "same_instruction": 1.0, "thresholds": {"diversity_elsewhere": 0.0},
        }, "benchmark")  # fmt: skip
        rates = []
        for name in ("first", "rerun"):
            with Ledger(ledger_of(storage, settings)) as ledger:
                began, used, memory = time.perf_counter(), cpu(), _memory()
                curation = Curation(storage, settings, ledger)
                chosen = curation.ask_all()
                seconds, used = time.perf_counter() - began, cpu() - used
                kept = sum(len(one.kept) for one in chosen.values())
                asked = curation.asked
                console.print(
                    f"{name}: {asked:,} requests in {seconds:.1f} s, {asked / seconds:,.0f}/s, "
                    f"{1000 * used / max(asked, 1):.2f} ms CPU a request ({used:.1f} s), {kept:,} kept of "
                    f"{len(CELLS) * count:,}; memory {memory:.0f} -> {_memory():.0f} MB"
                )
                rates.append(asked / seconds)
                if name == "first":
                    samples = _sample(curation, bare)
        began, used = time.perf_counter(), cpu()
        ask_bare(url, samples, concurrency)
        rate, used = bare / (time.perf_counter() - began), cpu() - used
        console.print(f"bare loop: {rate:,.0f}/s, {1000 * used / bare:.2f} ms CPU; ours {rates[0] / rate:.2f} of it")


def _sample(curation: Curation, count: int) -> list[Request]:
    """So many of the requests that were asked, as the ledger has them."""
    lines = curation.ledger.path.read_bytes().splitlines()
    kept = [json.loads(line) for line in lines[: 4 * count] if line.startswith(b'{"kept"')]
    return [Request(kept[n % len(kept)]["request"]) for n in range(count)]


if __name__ == "__main__":
    run(app)
