"""The contenders: `featurize run`, the peers' scripts and the encoder alone, each a command and what it keeps."""

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
SPINNING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # how threads wait: contenders do not inherit our setting


@dataclass(frozen=True)
class Case:
    """One encoding task.

    Attributes:
        what: its description.
        column: its column's settings for `featurize run`.
        peers: names of the peers' scripts that do the same.
        few: clips of the short run; the long run's excess over it is free of the start.
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
    """How every contender is run.

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
    """A contender's work on a folder of clips; it alone writes under `out`."""

    name: str
    case: Case
    clips: Path
    out: Path
    settings: Settings

    def plan(self) -> Spent | None:
        """Do the one-time work before the first run, if there is any."""
        return None

    @abstractmethod
    def run(self, until: Until = never) -> Spent:
        """Run it as a process of its own; a second call is a second run of the same command."""

    @property
    @abstractmethod
    def kept(self) -> set[str]:
        """The stems of the clips whose features exist."""

    @abstractmethod
    def encoded(self, since: float) -> int:
        """How many clips the last run, which began at `since`, has encoded."""

    def record(self, stem: str) -> str | None:
        """The reason recorded for an unusable clip, if any."""
        return None

    @property
    def log(self) -> Path:
        """The output of its last command."""
        return self.out / "log"

    def _module(self, python: str, *words: str, until: Until = never, **more: str) -> Spent:
        env = {name: value for name, value in os.environ.items() if name not in SPINNING}
        return run_process([python, "-m", *words], self.log, env | more, until)


class Ours(Job):
    """`featurize run`; what it records of a clip is in its shard's sidecar."""

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
        """When each clip's shard was written, by the clip's stem."""
        times = {}
        for column, sidecar in self._sidecars():
            path = self.out / "store" / column.path(shard_name(sidecar.shard, "json"))
            times.update({self._stems[item.key]: path.stat().st_mtime for item in sidecar.items})
        return times

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
    """A peer's script, in the peers' environment; it prints a line for each encoded clip."""

    @override
    def run(self, until: Until = never) -> Spent:
        python = self.settings.python
        words = ("benchmarks.featurizers.scripts", self.name, str(self.clips), str(self.out), self.case.architecture)
        return self._module(python, *words, until=until, **_ffmpeg(Path(python).absolute(), self.out / "ffmpeg"))

    @property
    @override
    def kept(self) -> set[str]:
        if (self.out / "features" / "state.json").exists():  # one dataset of all clips, written at the end
            return {clip.stem for clip in self.clips.iterdir()}
        return {path.stem for path in self.out.glob("*.npz")}

    @override
    def encoded(self, since: float) -> int:
        return self.log.read_text(errors="replace").count("encoded")


class Alone(Job):
    """The encoder alone: it writes nothing; all clips count as kept if it succeeds."""

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
    """The job of the contender of that name."""
    kinds: dict[str, type[Job]] = {OURS: Ours, CEILING: Alone}
    return kinds.get(name, Script)(name, case, clips, out, settings)


def write_config(case: Case, folder: Path) -> str:
    """Write the configuration of `featurize run`. Returns its path."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"columns": [dict(case.column)]}))
    return str(path)


def versions(python: str) -> str:
    """The versions of the peers' packages."""
    names = ("torch", "transformers", "open_clip_torch", *FILMS, "librosa")
    code = f"from importlib.metadata import version; print(*(f'{{n}} {{version(n)}}' for n in {names}), sep=', ')"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _ffmpeg(python: Path, folder: Path) -> dict[str, str]:
    """Variables by which peers find FFmpeg: the command for librosa, PyAV's libraries for torchcodec."""
    (libraries,) = python.parent.parent.glob("lib/python*/site-packages/av.libs")
    names = {"ffmpeg": Path(imageio_ffmpeg.get_ffmpeg_exe())}
    for path in libraries.glob("lib*.so.*"):  # libavcodec-5e6b81c2.so.62.28.102 as libavcodec.so.62
        stem, _, version = path.name.partition(".so.")
        names[f"{stem.partition('-')[0]}.so.{version.partition('.')[0]}"] = path
    folder.mkdir(exist_ok=True)
    for name, path in names.items():
        if not (folder / name).exists():
            (folder / name).symlink_to(path)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "LD_LIBRARY_PATH": f"{folder}:{libraries}"}
