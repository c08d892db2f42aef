"""Settings of an ablation: a base, and the axes along which one thing at a time is varied."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from store import (
    Sense,
    Settings,
    load_settings,
    parse_settings,
)
from trainer.settings import Positive, TrainConfig

Value = str | int


@dataclass(frozen=True)
class Axis:
    """One thing that is varied.

    Attributes:
        title: of its table.
        field: of `TrainConfig`; None is not trained, but asked otherwise.
        stages: those that it changes.
    """

    title: str
    field: str | None
    stages: Literal["all", "first", "last"] = "all"

    def changes(self, number: int, stages: int) -> bool:
        """Whether it changes the stage of a number, of so many."""
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


class Axes(Settings):
    """The values that are tried, one axis at a time: all else stays as the stages say (the base point).

    Attributes:
        frames: T, in all stages.
        segments: K, in all stages.
        visual: visual columns, in all stages.
        audio: audio columns, in all stages.
        llm: LLMs that the first stage begins with.
        strategy: schedules of the last stage; the ones before it are shared.
        ask: senses by which alone the base point's model is asked what it is asked by both; nothing is trained.
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
        found: tuple[Value, ...] = getattr(self, axis)
        return found


class Benchmark(Settings):
    """Held-out conversations.

    Attributes:
        conversations: their name in the store.
        limit: conversations asked, the first of a fixed shuffled order; None asks all.
    """

    conversations: str
    limit: Positive | None = None


class AblateConfig(Settings):
    """Settings of `python -m ablate`.

    Attributes:
        store: of the columns, of the benchmarks, and of every stage's conversations (in place of what stages name).
        stages: of every variant, in order: fields of TrainConfig; `base` may name a YAML file that gives the others.
            Each begins with the checkpoint of the one before it.
        benchmarks: what every checkpoint is asked, by name; the paper's numbers are shown for the paper's names.
        axes: what is varied.
        seeds: each point is trained once with each.
        output: folder of runs and results.
        featurize: for columns that may be missing, the YAML of `featurize run` that makes them.
        launcher: what starts a stage's processes in place of `python -m`, such as [torchrun, --nproc-per-node, 8, -m].
    """

    store: str
    stages: Annotated[tuple[dict[str, JsonValue], ...], Field(min_length=1)]
    benchmarks: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Benchmark], Field(min_length=1)
    ]
    axes: Axes = Axes()
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    output: str
    featurize: dict[str, str] = Field(default_factory=dict)
    launcher: tuple[Annotated[str, Field(coerce_numbers_to_str=True)], ...] = ()


def base_stages(config: AblateConfig) -> list[TrainConfig]:
    """The stages at the base point; where they are written, and what the later ones begin with, comes later.

    Raises:
        UserError: a setting is refused, or the file of a `base` cannot be read.
    """
    stages = []
    for number, fields in enumerate(config.stages):
        given: dict[str, Any] = {"output": "", **({"model": ""} if number else {})}
        if base := fields.get("base"):
            given |= load_settings(TrainConfig, str(base)).model_dump(mode="json", exclude_unset=True)
        given |= {name: value for name, value in fields.items() if name != "base"}
        stages.append(parse_settings(TrainConfig, given, f"field 'stages.{number}'"))
    return stages
