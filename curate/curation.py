"""What a curation makes, of which captions, asking whom: the settings of one YAML file."""

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from curate.settings import ClientSettings
from store import Settings

Perceived = Literal["audio", "visual", "audio_visual"]
TaskName = Literal["description", "conversation", "reasoning"]
Criterion = Literal["relevance", "completeness", "soundness", "fluency", "diversity"]
MODALITIES: tuple[Perceived, ...] = ("audio", "visual", "audio_visual")
TASKS: tuple[TaskName, ...] = ("description", "conversation", "reasoning")
CRITERIA: tuple[Criterion, ...] = ("relevance", "completeness", "soundness", "fluency", "diversity")


class Cell(NamedTuple):
    """A cell of Table 1: a kind of instruction, and what it is about."""

    task: TaskName
    modality: Perceived

    def __str__(self) -> str:
        return f"{self.task}-{self.modality}"


CELLS = tuple(Cell(task, modality) for task in TASKS for modality in MODALITIES)


class Counts(Settings):
    """How many instructions of one kind are wanted.

    Attributes:
        audio: about the sound alone.
        visual: about the picture alone.
        audio_visual: about both.
    """

    audio: int = Field(default=0, ge=0)
    visual: int = Field(default=0, ge=0)
    audio_visual: int = Field(default=0, ge=0)


class Mix(Settings):
    """How many instructions are wanted, by kind. Source: paper, Table 1.

    Attributes:
        description: questions for a description, each with its answer.
        conversation: several questions and answers about one clip, counted as one.
        reasoning: questions that need an inference.
    """

    description: Counts = Counts()
    conversation: Counts = Counts()
    reasoning: Counts = Counts()

    def of(self, cell: Cell) -> int:
        """How many a cell wants."""
        count: int = getattr(getattr(self, cell.task), cell.modality)
        return count

    @property
    def cells(self) -> list[Cell]:
        """The cells that want any."""
        return [cell for cell in CELLS if self.of(cell)]


class CaptionSettings(Settings):
    """Which text columns hold the captions.

    Attributes:
        frames: column of captions of frames; None if there are none.
        segments: column of captions of segments of the sound; None if there are none.
        longest: characters of a caption that are read.
    """

    frames: str | None = None
    segments: str | None = None
    longest: int = Field(default=400, ge=20)

    @field_validator("segments")
    @classmethod
    def _check_any(cls, segments: str | None, info: ValidationInfo) -> str | None:
        if segments is None and info.data.get("frames") is None:
            raise ValueError("name a column of captions here, or in 'frames'")
        return segments


class Sampling(Settings):
    """How a model writes.

    Attributes:
        temperature: of sampling; None leaves it to the server.
        max_tokens: of a reply.
        seed: of sampling; None sends none.
    """

    temperature: float | None = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    seed: int | None = None


class Thresholds(Settings):
    """From which score on a rule lets an instruction pass; all scores are better if higher, up to 1.

    Attributes:
        relevance: share of the content words that the captions hold, weighted.
        completeness: share of the captions' content words in a description, in each part of the clip; of reasoning, the
            words of the answer as a share of 10.
        soundness: share of the answers that fit their questions; a single strange one of several counts half.
        fluency: share of the text that is clean.
        diversity: 1 minus the similarity (Jaccard, word triples) to another instruction of the same cell and clip; also
            of any two turns of one conversation (Jaccard, content words).
        diversity_elsewhere: the same, to one of another clip or cell.
        judge: the judge's score of each criterion, 1 to 5.
    """

    relevance: float = Field(default=0.5, ge=0, le=1)
    completeness: float = Field(default=0.5, ge=0, le=1)
    soundness: float = Field(default=0.5, ge=0, le=1)
    fluency: float = Field(default=0.5, ge=0, le=1)
    diversity: float = Field(default=0.5, ge=0, le=1)
    diversity_elsewhere: float = Field(default=0.2, ge=0, le=1)
    judge: int = Field(default=4, ge=1, le=5)


class CurationSettings(Settings):
    """A curation.

    Attributes:
        name: of what is written: conversations `<name>-descriptions` and `<name>-instructions`.
        captions: where captions are.
        mix: how many instructions are wanted in each cell.
        generator: who fuses captions and writes instructions; its budget is that of the whole curation.
        judge: who judges what the rules let pass; None leaves it to the rules. It shares the generator's budget, which
            needs the judge's price too if it is in dollars.
        clips_of: names of conversations whose clips are used; none uses all that have captions.
        evaluation: names of conversations for evaluation besides those that are so by their split; no clip of them is
            used.
        clips: how many clips are used, drawn by `seed`; None uses all.
        uses: how often a clip may be used in one cell.
        seed: of the draw of clips, and of the style of each instruction.
        fusion: how captions are fused.
        generation: how instructions are written.
        judging: how they are judged.
        form: of replies; `lines` (Q: and A:) suits models that write no JSON.
        structured: whether a server is told the form of a reply, where it is JSON.
        asks: how often the same is asked of a model whose replies cannot be used.
        turns: the fewest and the most questions of a conversation.
        token_in_all_turns: whether every question of a conversation carries the modality token, not the first alone.
        longest: characters of an instruction or answer.
        same_instruction: the largest share of a cell that one question may have, descriptions aside.
        thresholds: of the rules and the judge.
        language: of the instructions, ISO 639-1.
        templates: folder whose files take the place of those in `curate/templates`.
        ledger: file of replies; None keeps it beside the verdicts. A store that is not local needs it.
        first_yield: share of instructions that is expected to pass before any was verified.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    captions: CaptionSettings
    mix: Mix
    generator: ClientSettings
    judge: ClientSettings | None = None
    clips_of: tuple[str, ...] = ()
    evaluation: tuple[str, ...] = ()
    clips: int | None = Field(default=None, ge=1)
    uses: int = Field(default=1, ge=1)
    seed: int = 0
    fusion: Sampling = Sampling(max_tokens=300)
    generation: Sampling = Sampling(temperature=0.7, max_tokens=800)
    judging: Sampling = Sampling(max_tokens=400)
    form: Literal["json", "lines"] = "json"
    structured: bool = True
    asks: int = Field(default=3, ge=1)
    turns: tuple[int, int] = (2, 6)
    token_in_all_turns: bool = False
    longest: int = Field(default=2000, ge=20)
    same_instruction: float = Field(default=0.05, gt=0, le=1)
    thresholds: Thresholds = Thresholds()
    language: str = Field(default="en", pattern="^[a-z]{2}$")
    templates: Path | None = None
    ledger: Path | None = None
    first_yield: float = Field(default=0.7, gt=0, le=1)

    @field_validator("mix")
    @classmethod
    def _check_mix(cls, mix: Mix, info: ValidationInfo) -> Mix:
        captions: CaptionSettings | None = info.data.get("captions")
        if not mix.cells:
            raise ValueError("all counts are 0; for example {description: {visual: 100}}")
        for cell in mix.cells if captions else ():
            for field, perceived in (("frames", "audio"), ("segments", "visual")):
                if getattr(captions, field) is None and cell.modality != perceived:
                    raise ValueError(f"{cell} wants {mix.of(cell)}, which needs captions.{field}")
        return mix

    @field_validator("judge")
    @classmethod
    def _check_judge(cls, judge: ClientSettings | None, info: ValidationInfo) -> ClientSettings | None:
        if judge and (judge.budget_dollars is not None or judge.budget_tokens is not None):
            raise ValueError("the budget of generator counts the judge too; name it there")
        generator: ClientSettings | None = info.data.get("generator")  # none if it was refused
        if judge and judge.price is None and generator and generator.budget_dollars is not None:
            raise ValueError(
                "budget_dollars of generator counts the judge too: give judge.price (0 for both if it costs nothing)"
            )
        return judge

    @field_validator("turns")
    @classmethod
    def _check_turns(cls, turns: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= turns[0] <= turns[1]:
            raise ValueError("expected the fewest and the most, for example [2, 6]")
        return turns
