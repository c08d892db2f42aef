"""Settings of an ablation: a base, and the axes along which it is varied, one at a time."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator

from serve.evals.judge_settings import JudgeSettings
from serve.evals.tasks import TASKS, Task, load_tasks
from store import Modality, Sense, Settings, UserError, load_settings, parse_settings
from store.settings import guess
from trainer.settings import Positive, TrainConfig

Value = str | int


@dataclass(frozen=True)
class Axis:
    """One setting that is varied.

    Attributes:
        title: heading of its table.
        field: field of `TrainConfig` it sets; None varies how the base model is asked, without training.
        stages: the stages it changes.
    """

    title: str
    field: str | None
    stages: Literal["all", "first", "last"] = "all"

    def changes(self, number: int, stages: int) -> bool:
        """Whether it changes stage `number`, from 0, of `stages`."""
        return {"all": True, "first": number == 0, "last": number == stages - 1}[self.stages]


AXES = {
    "frames": Axis("Frames T", "frames"),
    "segments": Axis("Sound segments K", "segments"),
    "visual": Axis("Visual encoder", "visual"),
    "audio": Axis("Audio encoder", "audio"),
    "llm": Axis("LLM", "model", "first"),
    "strategy": Axis("Strategy of mixing modalities", "schedule", "last"),
    "ask": Axis("Modalities at inference", None),
}

ASKED: dict[Sense | None, str] = {None: "as asked", "visual": "sight only", "audio": "sound only"}


class Axes(Settings):
    """The values to try, one axis at a time; everything else stays at the base point, as the stages set it.

    Attributes:
        frames: T, in all stages.
        segments: K, in all stages.
        visual: visual columns, in all stages.
        audio: audio columns, in all stages.
        llm: LLMs that the first stage starts from.
        strategy: schedules of the last stage; earlier stages are shared.
        ask: modalities; the base point's model is asked audio-visual conversations by one alone. Nothing is trained.
    """

    frames: tuple[Positive, ...] = ()
    segments: tuple[Positive, ...] = ()
    visual: tuple[str, ...] = ()
    audio: tuple[str, ...] = ()
    llm: tuple[str, ...] = ()
    strategy: tuple[Literal["mat", "pt1", "pt2"], ...] = ()
    ask: tuple[Sense, ...] = ()

    def values(self, axis: str) -> tuple[Value, ...]:
        """The values of an axis."""
        values: tuple[Value, ...] = getattr(self, axis)
        return values


class Benchmark(Settings):
    """What every point's model is asked.

    Attributes:
        task: a task of `serve evaluate`, whose answers are generated and scored; None measures the loss on
            conversations, and how many answers would be given word for word.
        conversations: their name in the store; None takes the task's.
        modality: what the task's questions refer to; None leaves it to the task.
        failed: how a task's questions count whose features cannot be used.
        limit: how many are asked: of conversations from the start of a fixed shuffled order, of a task's questions
            spread evenly. None asks all.
    """

    task: str | None = None
    conversations: str | None = Field(default=None, validate_default=True)
    modality: Modality | None = None
    failed: Literal["wrong", "left-out"] = "wrong"
    limit: Positive | None = None

    @field_validator("conversations")
    @classmethod
    def _check(cls, conversations: str | None, info: ValidationInfo) -> str | None:
        if conversations is None and info.data.get("task") is None:
            raise ValueError("give conversations, or a task")
        return conversations

    @property
    def stored(self) -> str:
        """The name of its conversations in the store."""
        return self.conversations or str(self.task)


class AblateConfig(Settings):
    """Settings of `avllm ablate`.

    Attributes:
        store: holds the columns, the benchmarks and every stage's conversations; stores that stages name are ignored.
        stages: the training stages in order, as fields of TrainConfig; `base` may name a YAML file with the others.
            Each stage starts from the checkpoint of the one before it.
        benchmarks: what every point's model is asked, by name; the paper's numbers are shown for the paper's names.
        tasks: YAML of tasks of your own; None knows the built-in ones.
        judge: scores the tasks that need one; None leaves these out of the results.
        axes: what is varied.
        seeds: each point is trained once per seed.
        output: folder of runs and results.
        featurize: by name of a column that may be missing, the YAML of `featurize run` that makes it.
        launcher: replaces `python -m` to start a stage's processes, such as [torchrun, --nproc-per-node, 8, -m].
    """

    store: str
    stages: Annotated[tuple[dict[str, JsonValue], ...], Field(min_length=1)]
    benchmarks: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Benchmark], Field(min_length=1)
    ]
    tasks: str | None = None
    judge: JudgeSettings | None = None
    axes: Axes = Axes()
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    output: str
    featurize: dict[str, str] = Field(default_factory=dict)
    launcher: tuple[Annotated[str, Field(coerce_numbers_to_str=True)], ...] = ()

    def task_of(self, benchmark: Benchmark, sense: Sense | None = None) -> Task | None:
        """The task of a benchmark, as it is asked; None for conversations.

        Args:
            benchmark: one of the benchmarks.
            sense: asks an audio-visual task by this sense alone; None asks it as the benchmark says.

        Raises:
            UserError: there is no such task.
        """
        if benchmark.task is None:
            return None
        known = load_tasks(self.tasks) if self.tasks else TASKS
        if benchmark.task not in known:
            near = guess(benchmark.task, known)
            raise UserError(f"field 'benchmarks': no task {benchmark.task!r}{near}; there are: {', '.join(known)}")
        task, modality = known[benchmark.task], sense or benchmark.modality
        if modality in (None, task.modality):
            return task
        return task.model_copy(update={"name": f"{task.name}.{modality}", "modality": modality})


def base_stages(config: AblateConfig) -> list[TrainConfig]:
    """The stages' settings at the base point; their outputs, and the models of later stages, are set later.

    Raises:
        UserError: a setting is refused, or the file of a `base` cannot be read.
    """
    stages = []
    for number, fields in enumerate(config.stages):
        settings: dict[str, Any] = {"output": "", **({"model": ""} if number else {})}
        if base := fields.get("base"):
            settings |= load_settings(TrainConfig, str(base)).model_dump(mode="json", exclude_unset=True)
        settings |= {name: value for name, value in fields.items() if name != "base"}
        stages.append(parse_settings(TrainConfig, settings, f"field 'stages.{number}'"))
    return stages
