"""The configuration of a training stage."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from store import Modality, Settings
from trainer.prompt import PromptFormat

Positive = Annotated[int, Field(gt=0)]


class Source(Settings):
    """Conversations of one store.

    Attributes:
        store: folder or fsspec URL.
        conversations: their name in the store.
        weight: how often they are drawn, beside their number.
    """

    store: str
    conversations: str
    weight: Annotated[float, Field(gt=0)] = 1.0


class Zero(Settings):
    """DeepSpeed ZeRO: its stage, and whether the optimizer's state lies in CPU memory."""

    stage: Literal[1, 2, 3] = 2
    offload: bool = False


class TrainConfig(Settings):
    """One stage of the paper's training.

    Attributes:
        stage: 1 trains the projectors, 2 the projectors and the LLM.
        model: a Hugging Face causal LM (folder or hub name), or a checkpoint of this trainer.
        sources: the conversations, each with the store that holds its columns.
        visual: the visual column, by encoder name or `name.digest`; None trains without sight.
        audio: the audio column; None trains without sound.
        frames: T; the column's grid holds it.
        segments: K; the column holds it.
        mixture: integer weights of the modalities in every batch; None takes the shares of the data.
        output: folder of checkpoints and logs.
        overwrite: replace what an earlier run left in `output`; without it such a folder is refused.
        global_batch: conversations in one optimizer step, over all ranks.
        accumulation: passes in one step on each rank.
        epochs: passes over the conversations; or give `steps`.
        lr: peak learning rate.
        projector_lr: that of the projectors; None for `lr`.
        warmup_ratio: share of the steps in which the rate rises; then it falls as a cosine to zero.
        clip: largest norm of the gradient; None for no bound.
        precision: of the arithmetic. Trained parameters are always kept in float32.
        max_tokens: a conversation is cut after so many rows of LLM input.
        gradient_checkpointing: recompute activations to save memory.
        zero: DeepSpeed's settings; None for one process of plain torch.
        tolerate: damaged items, found while reading, that are each replaced by its neighbour before a run stops.
        log_every: steps between lines of the log.
        save_every: steps between checkpoints; None keeps the last one only.
    """

    stage: Literal[1, 2]
    model: str
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    visual: str | None
    audio: str | None
    frames: Positive = 32
    segments: Positive = 4
    mixture: dict[Modality, Positive] | None = None
    output: str
    overwrite: bool = False
    global_batch: Positive
    accumulation: Positive = 1
    epochs: Annotated[float, Field(gt=0)] | None = None
    steps: Positive | None = None
    lr: Annotated[float, Field(gt=0)]
    projector_lr: Annotated[float, Field(gt=0)] | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    max_tokens: Positive = 2048
    gradient_checkpointing: bool = False
    zero: Zero | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    tolerate: Annotated[int, Field(ge=0)] = 0
    log_every: Positive = 1
    save_every: Positive | None = None
    prompt: PromptFormat = PromptFormat()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either 'epochs' or 'steps'")
        if self.visual is None and self.audio is None:
            raise ValueError("fields 'visual' and 'audio': at least one names a column")
        return self
