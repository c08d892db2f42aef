"""What takes part: `featurize run`, its peers' scripts, and the encoder alone; each a command, and what it has kept."""

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import yaml
from typing_extensions import override

from benchmarks.featurizers.process import Spent, Until, never, run_process
from store import Column, Corpus, Sidecar, Storage, list_columns
from store.shard import shard_name

OURS, CEILING = "avllm", "encoder alone"
SPINNING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # what this process or `make` has set is none of theirs


@dataclass(frozen=True)
class Case:
    """What is encoded.

    Attributes:
        what: in words.
        column: the settings of `featurize run`.
        peers: the scripts that do the same.
        few: clips of the short run; what the long one takes more is free of the start.
        many: clips of the long run.
    """

    what: str
    column: Mapping[str, Any]
    peers: tuple[str, ...]
    few: int
    many: int

    @property
    def architecture(self) -> str:
        """The encoder's name without its family and weights."""
        return str(self.column["encoder"]).partition(":")[2].partition("/")[0]


FILMS = ("torchcodec", "datasets", "decord")
LIGHT = {"encoder": "clip:ViT-S-32/random", "layer": -1, "frames": [8]}
CASES = {
    "light": Case("ViT-S/32, 8 frames", LIGHT, FILMS, 28, 280),
    "heavy": Case("ViT-B/16, 8 frames", {**LIGHT, "encoder": "clip:ViT-B-16/random"}, FILMS, 32, 64),
    "sound": Case("HTS-AT, 4 segments", {"encoder": "clap:HTSAT-tiny/random", "segments": [4]}, ("librosa",), 28, 56),
}


@dataclass(frozen=True)
class Settings:
    """How all are run.

    Attributes:
        python: the peers' interpreter.
        shard_size: clips in a shard of ours; None for what the plan chooses.
        words: further settings of `featurize run`, such as cpus=2.
    """

    python: str
    shard_size: int | None
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job(ABC):
    """A contender's work on a folder of clips; what it writes is under `out`, which is its own."""

    name: str
    case: Case
    clips: Path
    out: Path
    settings: Settings

    def plan(self) -> Spent | None:
        """Do what has to be done once before the first run."""
        return None

    @abstractmethod
    def run(self, until: Until = never) -> Spent:
        """Run it as a process of its own; a second call is a second run of the same command."""

    @property
    @abstractmethod
    def kept(self) -> set[str]:
        """The stems of the clips whose features are there."""

    @abstractmethod
    def encoded(self, since: float) -> int:
        """How many clips the last run has encoded, which began at `since`."""

    def record(self, stem: str) -> str | None:
        """What is recorded of a clip that cannot be used."""
        return None

    @property
    def log(self) -> Path:
        """What its last command has said."""
        return self.out / "log"

    def _module(self, python: str, *words: str, until: Until = never, **more: str) -> Spent:
        env = {name: value for name, value in os.environ.items() if name not in SPINNING}
        return run_process([python, "-m", *words], self.log, env | more, until)


class Ours(Job):
    """`featurize run`; what it has said of a clip stands in a shard's sidecar."""

    @override
    def plan(self) -> Spent:
        size = self.settings.shard_size
        return self._featurize("plan", str(self.clips), *(["--shard-size", str(size)] if size else []))

    @override
    def run(self, until: Until = never) -> Spent:
        config = write_config(self.case, self.out)
        return self._featurize("run", "--config", config, *self.settings.words, until=until)

    @property
    @override
    def kept(self) -> set[str]:
        return set(self._written())

    @override
    def encoded(self, since: float) -> int:
        return sum(written >= since for written in self._written().values())

    @override
    def record(self, stem: str) -> str | None:
        records = {
            self._stems[f.key]: f"{f.code}: {f.reason}" for _, sidecar in self._sidecars() for f in sidecar.failed
        }
        return records.get(stem)

    def _written(self) -> dict[str, float]:
        """When the shard was written that holds a clip's features."""
        found = {}
        for column, sidecar in self._sidecars():
            path = self.out / "store" / column.path(shard_name(sidecar.shard, "json"))
            found.update({self._stems[item.key]: path.stat().st_mtime for item in sidecar.items})
        return found

    def _sidecars(self) -> Iterator[tuple[Column, Sidecar]]:
        for column in list_columns(Storage(str(self.out / "store"))):
            yield from ((column, sidecar) for _, sidecar in column.sidecars())

    @property
    def _stems(self) -> dict[str, str]:
        return {item.key: Path(item.uri).stem for item in Corpus.load(Storage(str(self.out / "store"))).items}

    def _featurize(self, command: str, *words: str, until: Until = never) -> Spent:
        store = str(self.out / "store")
        return self._module(sys.executable, "featurize", command, "--store", store, *words, until=until)


class Script(Job):
    """A peer's script, in the peers' environment; it says a line for each clip that it has encoded."""

    @override
    def run(self, until: Until = never) -> Spent:
        python = self.settings.python
        words = ("benchmarks.featurizers.scripts", self.name, str(self.clips), str(self.out), self.case.architecture)
        return self._module(python, *words, until=until, **_ffmpeg(Path(python).absolute(), self.out / "ffmpeg"))

    @property
    @override
    def kept(self) -> set[str]:
        if (self.out / "features" / "state.json").exists():  # one data set of all, written at the end
            return {clip.stem for clip in self.clips.iterdir()}
        return {path.stem for path in self.out.glob("*.npz")}

    @override
    def encoded(self, since: float) -> int:
        return self.log.read_text(errors="replace").count("encoded")


class Alone(Job):
    """The encoder alone: it writes nothing, and is done with all if it ends well."""

    @override
    def run(self, until: Until = never) -> Spent:
        count = str(len(list(self.clips.iterdir())))
        config = write_config(self.case, self.out)
        return self._module(sys.executable, "benchmarks.featurizers.ceiling", config, count, until=until)

    @property
    @override
    def kept(self) -> set[str]:
        return {clip.stem for clip in self.clips.iterdir()}

    @override
    def encoded(self, since: float) -> int:
        return len(self.kept)


def job(name: str, case: Case, clips: Path, out: Path, settings: Settings) -> Job:
    """The work of the contender of that name."""
    kinds: dict[str, type[Job]] = {OURS: Ours, CEILING: Alone}
    return kinds.get(name, Script)(name, case, clips, out, settings)


def write_config(case: Case, folder: Path) -> str:
    """The configuration of `featurize run`."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"columns": [dict(case.column)]}))
    return str(path)


def versions(python: str) -> str:
    """The peers' packages."""
    names = ("torch", "transformers", "open_clip_torch", *FILMS, "librosa")
    code = f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {names}), sep=', ')"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _ffmpeg(python: Path, folder: Path) -> dict[str, str]:
    """Where peers find FFmpeg: librosa takes its command, torchcodec its libraries, which are those PyAV carries."""
    (carried,) = python.parent.parent.glob("lib/python*/site-packages/av.libs")
    names = {"ffmpeg": Path(imageio_ffmpeg.get_ffmpeg_exe())}
    for path in carried.glob("lib*.so.*"):  # libavcodec-5e6b81c2.so.62.28.102 as libavcodec.so.62
        stem, _, version = path.name.partition(".so.")
        names[f"{stem.partition('-')[0]}.so.{version.partition('.')[0]}"] = path
    folder.mkdir(exist_ok=True)
    for name, path in names.items():
        if not (folder / name).exists():
            (folder / name).symlink_to(path)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "LD_LIBRARY_PATH": f"{folder}:{carried}"}
