"""The plan of an ablation: the points around a base, their training runs, and the columns they read."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.settings import AXES, AblateConfig, Value, base_stages
from serve.evals.tasks import Task
from store import (
    Column,
    Corpus,
    Sense,
    Storage,
    UserError,
    canonical_json,
    check_conversations,
    list_columns,
    load_conversations,
)
from trainer.features import Grid
from trainer.settings import FREE_ON_RESUME, TrainConfig

SAVE_EVERY = 100  # steps between saved states, for a stage that sets none


# Settings that may change without making another run; `model` is hashed apart. `evaluation` counts, since early
# stopping may depend on it.
NOT_IN_DIGEST = (FREE_ON_RESUME - {"evaluation"}) | {"output", "model"}


@dataclass(frozen=True)
class Point:
    """The base point, or one that differs from it on one axis."""

    axis: str | None = None
    value: Value | None = None

    def __str__(self) -> str:
        return f"{self.axis}={self.value}" if self.axis else "base"


@dataclass(frozen=True)
class RequiredArray:
    """An array that a run reads, and its column as the settings name it."""

    column: str
    array: str

    def __str__(self) -> str:
        return f"{self.array} of column {self.column}"


@dataclass(frozen=True)
class Run:
    """The training of one stage for one point and seed. Points whose digests of it are equal share it.

    Attributes:
        config: the settings it is started with.
        digest: hash of all that its weights depend on: settings, columns, conversations, the run before it.
    """

    config: TrainConfig
    digest: str

    @property
    def folder(self) -> Path:
        """The folder of its saved states and its checkpoint."""
        return Path(self.config.output)

    @property
    def checkpoint(self) -> Path:
        """The folder of its checkpoint, which appears whole when the run has finished."""
        return self.folder / "checkpoint"


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a point's model on a benchmark.

    Attributes:
        run: the point's last run.
        sense: if set, only audio-visual questions are asked, and get this modality only; None asks all as they are.
        task: the task that is asked; None for held-out conversations.
        file: the report that `serve heldout` or `serve evaluate` writes.
    """

    point: Point
    seed: int
    benchmark: str
    run: Run
    sense: Sense | None
    task: Task | None
    file: Path

    @property
    def log(self) -> Path:
        """What the command that writes the report says."""
        return self.file.with_suffix(".log")


class Ablation:
    """The points, runs and evaluations of a configuration, given what its store holds now.

    Raises:
        UserError: a stage's settings are refused, or the store lacks conversations.
    """

    def __init__(self, config: AblateConfig) -> None:
        self.config = config
        self._storage = Storage(config.store)
        self._columns = list_columns(self._storage)
        self._shards = len(Corpus.load(self._storage).shards)
        self._conversations: dict[str, str] = {}
        self._senses: dict[str, list[Sense]] = {}
        self._stages = base_stages(config)
        for benchmark in config.benchmarks.values():
            self._conversations_digest(benchmark.stored)
            config.task_of(benchmark)

    def base_value(self, axis: str) -> Value:
        """The base point's value on a trained axis."""
        field = AXES[axis].field
        assert field
        value = getattr(self._stages[-1 if AXES[axis].stages == "last" else 0], field)
        return value if isinstance(value, int | str) else "none" if value is None else "phases"

    def points(self) -> list[Point]:
        """The base point and the points around it."""
        return [Point(), *dict.fromkeys(p for axis in AXES for _, p in self.rows(axis) if p.axis)]

    def rows(self, axis: str) -> list[tuple[Value, Point]]:
        """The rows of a trained axis's table: each value with its point; empty if the axis is not varied."""
        if AXES[axis].field is None or not self.config.axes.values(axis):
            return []
        base = self.base_value(axis)
        values = dict.fromkeys(self.config.axes.values(axis))
        rows = [(value, Point() if value == base else Point(axis, value)) for value in values]
        return rows if base in values else [(base, Point()), *rows]

    def needs(self, point: Point) -> list[RequiredArray]:
        """The arrays that a point's runs read."""
        arrays: list[RequiredArray] = []
        for stage in self._at(point):
            stored = Grid(stage.frames, stage.segments).stored
            if stage.visual:
                arrays.append(RequiredArray(stage.visual, stored["spatial"]))
            if stage.audio:
                arrays.append(RequiredArray(stage.audio, stored["audio"]))
        return list(dict.fromkeys(arrays))

    def find(self, need: RequiredArray) -> Column | None:
        """The column that holds an array, or None.

        Raises:
            UserError: several hold it.
        """
        named = [c for c in self._columns if need.column in (c.name, c.spec.name) and need.array in c.spec.features]
        if len(named) > 1:
            names = ", ".join(column.name for column in named)
            raise UserError(f"{self.config.store}: several columns hold {need.array}: {names}; name one of these")
        return named[0] if named else None

    def shards(self, column: Column) -> tuple[int, int]:
        """How many shards a column has, and how many are planned."""
        return len(column.shards()), self._shards

    def all_needs(self) -> list[RequiredArray]:
        """The arrays that the runs of all points read, each once."""
        return list(dict.fromkeys(need for point in self.points() for need in self.needs(point)))

    def missing(self) -> list[RequiredArray]:
        """The required arrays that no column holds in full."""
        return [need for need in self.all_needs() if not self._holds(need)]

    def _holds(self, need: RequiredArray) -> bool:
        column = self.find(need)
        if column is None:
            return False
        written, planned = self.shards(column)
        return written == planned

    def runs(self, point: Point, seed: int) -> list[Run]:
        """The runs of a point, one for each stage in order; points share runs of equal digest."""
        runs: list[Run] = []
        for stage in self._at(point):
            columns = self._column_names(stage)
            model = {"model": runs[-1].digest if runs else stage.model}
            settings = stage.model_copy(update={"seed": seed, **columns})
            dumped = settings.model_dump(mode="json", exclude=NOT_IN_DIGEST)
            sources = [*stage.sources, *(stage.evaluation.sources if stage.evaluation else ())]
            conversations = [(s.conversations, s.weight, self._conversations_digest(s.conversations)) for s in sources]
            digest = _digest(dumped, model, conversations)
            llm = Path(runs[0].config.model if runs else stage.model).name
            name = [f"stage{stage.stage}", llm, stage.visual, stage.audio, f"t{stage.frames}", f"k{stage.segments}"]
            name += [stage.schedule if isinstance(stage.schedule, str) else "phases", f"seed{seed}"]
            placed = {
                "output": str(Path(self.config.output) / "runs" / f"{'-'.join(filter(None, name))}.{digest}"),
                "model": str(runs[-1].checkpoint) if runs else stage.model,
            }
            runs.append(Run(settings.model_copy(update=placed), digest))
        return runs

    def evaluations(self, point: Point, seed: int) -> list[Evaluation]:
        """The evaluations of a point's model."""
        run = self.runs(point, seed)[-1]
        return [
            self._evaluation(point, seed, name, run, sense)
            for name in self.config.benchmarks
            for sense in (None, *(() if point.axis else self.senses(name)))
        ]

    def senses(self, benchmark: str) -> list[Sense]:
        """The senses of the `ask` axis by which some question of a benchmark can be asked."""
        senses, asked = list(dict.fromkeys(self.config.axes.ask)), self.config.benchmarks[benchmark]
        if task := self.config.task_of(asked):
            return senses if task.modality == "audio_visual" else []
        if benchmark not in self._senses:
            conversations = load_conversations(self._storage, asked.stored) if senses else []
            self._senses[benchmark] = [sense for sense in senses if any(c.asked_by(sense) for c in conversations)]
        return self._senses[benchmark]

    def _evaluation(self, point: Point, seed: int, name: str, run: Run, sense: Sense | None) -> Evaluation:
        """An evaluation. One of a task has its own folder, where judges can change."""
        benchmark = self.config.benchmarks[name]
        task, asked = self.config.task_of(benchmark, sense), [self._conversations_digest(benchmark.stored)]
        digest = _digest(*asked, benchmark.limit, *([task.model_dump(mode="json"), benchmark.failed] if task else []))
        place = f"{name}.{sense or 'as-asked'}.{digest}"
        file = run.folder / "answers" / (f"{place}/report.json" if task else f"{place}.json")
        return Evaluation(point, seed, name, run, sense, task, file)

    def _at(self, point: Point) -> Iterator[TrainConfig]:
        """The stages' settings at a point, on the ablation's store."""
        axis = AXES[point.axis] if point.axis else None
        for number, stage in enumerate(self._stages):
            moved = {"store": self.config.store}
            changes: dict[str, Any] = {
                "sources": tuple(source.model_copy(update=moved) for source in stage.sources),
                "overwrite": False,
                "save_every": stage.save_every or SAVE_EVERY,
            }
            if stage.evaluation:
                sources = tuple(source.model_copy(update=moved) for source in stage.evaluation.sources)
                changes["evaluation"] = stage.evaluation.model_copy(update={"sources": sources})
            if axis and axis.field and axis.changes(number, len(self._stages)):
                changes[axis.field] = point.value
            yield stage.model_copy(update=changes)

    def _column_names(self, stage: TrainConfig) -> dict[str, str | None]:
        """The full names of a stage's columns, so that a run's settings record their digests."""
        stored = Grid(stage.frames, stage.segments).stored
        names = {}
        for field, name, array in (("visual", stage.visual, "spatial"), ("audio", stage.audio, "audio")):
            column = self.find(RequiredArray(name, stored[array])) if name else None
            names[field] = column.name if column else name
        return names

    def _conversations_digest(self, name: str) -> str:
        if name not in self._conversations:
            check_conversations(self._storage, name)
            content = self._storage.read(f"conversations/{name}.parquet")
            self._conversations[name] = hashlib.sha256(content).hexdigest()
        return self._conversations[name]


def _digest(*values: Any) -> str:
    return hashlib.sha256(canonical_json(values)).hexdigest()[:8]
