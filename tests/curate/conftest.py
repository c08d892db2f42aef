"""What several tests of curate share."""

import json
import random
import re

import numpy as np
import pytest

from curate.client import Client
from curate.curation import CurationSettings
from curate.judging import JUDGED
from curate.ledger import Ledger, Request
from curate.output import save_all
from curate.run import Curation, ledger_of
from curate.settings import ClientSettings
from store import Candidate, ColumnSpec, Corpus, Failure, Feature, Storage, create_column, parse_settings


@pytest.fixture(scope="session")
def request_of():
    """A request that asks a text."""

    def make(text: str, ask: int = 0, **more) -> Request:
        return Request({"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 20, **more}, ask)

    return make


@pytest.fixture
def ask(tmp_path):
    """Ask a server requests with a ledger, and return the outcome and the replies' texts by digest."""

    def run(server, requests, path=None, **more):
        settings = {"urls": (server.url,), "model": "m", "longest_pause": 0.02, **more}
        settings = ClientSettings.model_validate(settings)
        texts = {}
        with Ledger(path or tmp_path / "ledger.jsonl", settings.limit) as ledger:
            outcome = Client(settings).ask_all(
                requests, ledger, lambda r, reply: texts.__setitem__(r.digest, reply.text)
            )
        return outcome, texts

    return run


FRAMES = ("a man", "a woman", "a dog", "a red bus", "two children", "a white boat", "a black cat", "an old train")
ACTS = ("on a bridge", "near a river", "in a garden", "on a beach", "in a kitchen", "under a tree", "at a station")
SOUNDS = ("A bell rings", "Rain falls", "A dog barks", "An engine starts", "People laugh", "A bird sings", "Wind blows")


def captions_of(number: int) -> tuple[list[str], list[str]]:
    """The captions of clip `number`: four of frames, the first two equal, and three of sounds."""
    draw = random.Random(number)
    frames = [f"{draw.choice(FRAMES)} {draw.choice(ACTS)} number {number}" for _ in range(3)]
    return [frames[0], *frames], [f"{draw.choice(SOUNDS)} {draw.choice(ACTS)} {number}" for _ in range(3)]


def text_column(storage: Storage, name: str, texts: dict[str, list[str]], facts: dict) -> str:
    """A column of texts; other clips of the plan lack them."""
    modality = "visual" if name == "frames" else "audio"
    feature = {"caption": Feature(shape=(None,), dtype="text")}
    spec = ColumnSpec(name=name, modality=modality, numerics={"made": "by a test"}, features=feature)
    column = create_column(storage, spec, {})
    for shard, items in Corpus.load(storage).shards.items():
        with column.write_shard(shard) as writer:
            for item in items:
                if item.key in texts:
                    writer.add(item.key, {"caption": np.array(texts[item.key], np.str_)}, facts)
                else:
                    writer.fail(Failure(key=item.key, code="absent", reason="no such stream"))
    return column.name


@pytest.fixture(scope="session")
def captioned():
    """Make a store of clips with captions of frames and sounds."""

    def make(folder, clips: int = 12, silent: int = 0, captions=captions_of) -> Storage:
        storage, corpus = Storage(folder), Corpus()
        corpus.append(Candidate(f"clip-{n}", f"/media/clip-{n}.mp4", "video", 1) for n in range(clips))
        corpus.save(storage)
        frames, sounds = zip(*map(captions, range(clips)), strict=True)
        text_column(storage, "frames", {f"clip-{n}": texts for n, texts in enumerate(frames)},
                    {"kind": "video", "times": [0.0, 1.0, 2.0, 3.0]})  # fmt: skip
        heard = {f"clip-{n}": texts for n, texts in enumerate(sounds) if n >= silent}
        text_column(storage, "sounds", heard, {"kind": "video", "seconds": 4.0})
        return storage

    return make


def task_of(body: dict) -> str:
    """What a request asks for."""
    system = body["messages"][0]["content"]
    if '"relevance"' in system:
        return "judge"
    return next((task for task in ("turns", "question", "description") if f'{{"{task}"' in system), "fusion")


def lines_of(body: dict, name: str = "captions") -> list:
    """The captions, or the turns, that a request shows."""
    return json.loads(re.search(rf"<{name}-\w+>\n(.*)\n</{name}-", body["messages"][-1]["content"])[1])


def write(body: dict) -> str:
    """What a good model writes, known beforehand."""
    shown = lines_of(body)
    lines = [line.partition(": ")[2] or line for line in shown if "in short: " not in line]
    fused = [line.partition("in short: ")[2] for line in shown if "in short: " in line]
    match task_of(body):
        case "judge":
            return json.dumps({c: {"quotes": [], "score": 5} for c in JUDGED})
        case "fusion":
            return f"{'. '.join(dict.fromkeys(lines))}."
        case "description":
            return json.dumps({"description": fused[-1]})
        case "turns":
            turns = [{"question": f"What about {line.split()[-1]}?", "answer": line} for line in dict.fromkeys(lines)]
            return json.dumps({"turns": turns[-3:]})
        case _:
            return json.dumps({"question": "How can one tell?", "answer": f"It follows because of {fused[-1]}"})


@pytest.fixture(scope="session")
def writer():
    """A good model."""
    return write


@pytest.fixture(scope="session", name="task_of")
def asked_task():
    """What a request asks for."""
    return task_of


@pytest.fixture(scope="session")
def settings_of():
    """Settings of a curation that asks a server."""

    def make(server, mix: dict, **more) -> CurationSettings:
        client = {"urls": [server.url], "model": "m", "longest_pause": 0.02}
        data = {
            "name": "test", "captions": {"frames": "frames", "segments": "sounds"}, "mix": mix,
            "same_instruction": 1.0, "generator": client | more.pop("generator", {}), "judge": client,
        }  # fmt: skip
        return parse_settings(CurationSettings, data | more, "settings")

    return make


@pytest.fixture(scope="session")
def curate():
    """Run a curation in this process; return what is chosen, and the curation."""

    def run(storage: Storage, settings: CurationSettings, write_it: bool = True):
        with Ledger(ledger_of(storage, settings), settings.generator.limit) as ledger:
            curation = Curation(storage, settings, ledger)
            chosen = curation.ask_all()
            if write_it:
                save_all(curation, chosen)
        return chosen, curation

    return run
