"""The configuration of a training stage."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from store import Modality, Sense, Settings
from trainer.prompt import PromptFormat

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]


class Source(Settings):
    """Conversations of one store.

    Attributes:
        store: folder or fsspec URL.
        conversations: their name in the store.
        weight: sampling weight; 1 draws in proportion to the number of conversations.
    """

    store: str
    conversations: str
    weight: Rate = 1.0


class PhaseConfig(Settings):
    """A part of a run with its own mixture.

    Attributes:
        share: of the run's steps, relative to the other phases' shares.
        mixture: integer weights of the modalities in every batch of the phase.
    """

    share: Rate
    mixture: Annotated[dict[Modality, Positive], Field(min_length=1)]


class Zero(Settings):
    """DeepSpeed ZeRO.

    Attributes:
        stage: 1 shares out the optimizer's state, 2 the gradients too, 3 the weights too.
        offload: whether the optimizer's state lies in CPU memory.
    """

    stage: Literal[1, 2, 3] = 2
    offload: bool = False


class Lora(Settings):
    """Low-rank adapters (peft), which stage 2 trains in place of the LLM's weights.

    Attributes:
        rank: of each adapter.
        alpha: an adapter's output is scaled by alpha / rank.
        dropout: on an adapter's input.
        targets: names of the linear layers that get one; `all-linear` for all but the head.
    """

    rank: Positive = 128
    alpha: Positive = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: str | tuple[str, ...] = "all-linear"


class Evaluation(Settings):
    """Held-out conversations that are evaluated on during training.

    Attributes:
        sources: the conversations.
        every: steps between evaluations; the last step is always followed by one.
        limit: most conversations asked, the first of a fixed shuffled order; None asks all.
        patience: evaluations without a lower loss after which training stops; None never stops early.
    """

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    every: Positive
    limit: Positive | None = 512
    patience: Positive | None = None

    @property
    def asked(self) -> tuple[list[str], int | None]:
        """What is evaluated on, wherever it lies; losses on anything else are not comparable."""
        return [source.conversations for source in self.sources], self.limit


class TrainConfig(Settings):
    """One stage of the paper's training.

    Attributes:
        stage: 1 trains the projectors, 2 the projectors and the LLM.
        model: a Hugging Face causal LM (folder or hub name), or a checkpoint of this trainer.
        sources: the conversations, each with the store that holds its columns.
        visual: the visual column, by encoder name or `name.digest`; None trains without sight.
        audio: the audio column; None trains without sound.
        frames: T, which the column's grid must hold.
        segments: K, which the column must hold.
        mixture: integer weights of the modalities in every batch; None takes the data's proportions.
        schedule: `mat` mixes all modalities in every batch (paper, section 3.3); `pt1` trains on audio-visual
            conversations first, then on visual-only and audio-only ones; `pt2` the other way round; or phases.
        augment: asks audio-visual conversations by one sense alone too: by sense, how often for each time by both; with
            `mixture` or phases, which fix a sense's share, how often beside each other conversation of that sense.
        output: folder of checkpoints and logs.
        overwrite: replace what an earlier run left in `output`; without it, a stopped run is resumed, and a finished
            run or other settings are refused.
        global_batch: conversations in one optimizer step, over all ranks.
        batch_tokens: most positions in one pass of a rank; a step has as many passes as its conversations need.
        epochs: times that the conversations are trained on; or give `steps`.
        steps: optimizer steps; or give `epochs`.
        lr: peak learning rate.
        projector_lr: peak learning rate of the projectors; None for `lr`.
        betas: of AdamW.
        weight_decay: of AdamW.
        warmup_ratio: share of the steps in which the rate rises linearly; then it falls as a cosine to zero.
        clip: bound on the norm of the gradient; None for no bound.
        precision: of the arithmetic. Trained parameters are always kept in float32.
        max_tokens: a conversation is cut after this many positions.
        lora: adapters that stage 2 trains in place of the LLM's own weights.
        freeze: patterns (`*`, `?`) of names of parameters that are not trained, such as `llm.model.embed_tokens.*`.
        gradient_checkpointing: recompute activations to save memory.
        compile: torch.compile for the LLM's layers: faster, less memory, a slower first step; losses equal to rounding.
        deterministic: on GPUs, use kernels that give the same bits in every run; CPUs always do.
        zero: DeepSpeed's settings; None for one process of plain torch.
        seed: of the order of conversations, new projectors, adapters, and dropout.
        tolerate: how many damaged items are replaced by their neighbours; one more stops the run.
        log_every: steps between lines of the log.
        track: a service that also gets the log, under the name of `output`; a resumed run continues its tracked run.
        save_every: steps between saved states, from which the same command resumes; None saves none.
        keep: how many of the newest states are kept.
        evaluation: held-out conversations; the state with the lowest loss on them is kept too.
        prompt: the texts around instructions and responses.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {  # most are Hugging Face's
        "learning_rate": "lr", "batch_size": "global_batch", "train_batch_size": "global_batch",
        "per_device_train_batch_size": "batch_tokens", "num_train_epochs": "epochs", "max_steps": "steps",
        "output_dir": "output", "model_name_or_path": "model", "max_grad_norm": "clip", "bf16": "precision",
        "warmup_steps": "warmup_ratio", "deepspeed": "zero", "report_to": "track", "save_steps": "save_every",
        "logging_steps": "log_every", "max_length": "max_tokens", "model_max_length": "max_tokens",
        "data_path": "sources", "num_frames": "frames",
    }  # fmt: skip
    stage: Literal[1, 2]
    model: str
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    visual: str | None
    audio: str | None
    frames: Positive = 32
    segments: Positive = 4
    mixture: dict[Modality, Positive] | None = None
    schedule: Literal["mat", "pt1", "pt2"] | Annotated[tuple[PhaseConfig, ...], Field(min_length=1)] = "mat"
    augment: dict[Sense, Rate] = Field(default_factory=dict)
    output: str
    overwrite: bool = False
    global_batch: Positive
    batch_tokens: Positive = 8192
    epochs: Rate | None = None
    steps: Positive | None = None
    lr: Rate
    projector_lr: Rate | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    clip: Rate | None = 1.0
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    max_tokens: Positive = 2048
    lora: Lora | None = None
    freeze: tuple[str, ...] = ()
    gradient_checkpointing: bool = False
    compile: bool = False
    deterministic: bool = True
    zero: Zero | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    tolerate: Annotated[int, Field(ge=0)] = 0
    log_every: Positive = 1
    track: Literal["wandb", "trackio"] | None = None
    save_every: Positive | None = None
    keep: Positive = 2
    evaluation: Evaluation | None = None
    prompt: PromptFormat = PromptFormat()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either 'epochs' or 'steps', and set the other to null, such as epochs=null steps=4")
        if self.visual is None and self.audio is None:
            raise ValueError("fields 'visual' and 'audio': at least one names a column")
        if self.mixture and not isinstance(self.schedule, str):
            raise ValueError("fields 'mixture' and 'schedule': phases have mixtures of their own")
        if self.lora and self.stage == 1:
            raise ValueError("field 'lora': stage 1 trains the projectors alone")
        if self.batch_tokens < self.max_tokens:
            raise ValueError(f"field 'batch_tokens': {self.batch_tokens} is less than max_tokens, {self.max_tokens}")
        return self


# Settings that may differ when a run is resumed: none changes the data or the arithmetic beyond rounding. (Sources may
# have moved; `TrainingData.identity` checks that they hold the same data.)
FREE_ON_RESUME = {
    *("output", "overwrite", "batch_tokens", "gradient_checkpointing", "compile", "deterministic", "zero"),
    *("tolerate", "log_every", "track", "save_every", "keep", "evaluation", "sources"),
}
