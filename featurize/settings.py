"""The configuration of `featurize run`: the columns to make, and the resources to use."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator

from featurize.grid import check_nested
from store import Settings, UserError

MAX_SECONDS = 14400.0
ENCODER = re.compile(r"(?P<family>[a-z]+):(?P<architecture>[^/]+)/(?P<weights>.+)")
FUSED_CLAP = ("630k-fusion-best", "630k-audioset-fusion-best")  # published weights with feature fusion
Counts = tuple[Annotated[int, Field(gt=0)], ...]


class EncoderSettings(Settings):
    """Settings common to all encoders.

    Attributes:
        numerics: version, raised whenever the same settings give different numbers or captions.
        encoder: `family:architecture/weights`; weights are a published name, or the path of a file or folder.
        weights_sha256: of the weights' file or folder; a run stores it in the column's `build`.
        dtype: of the encoder's arithmetic.
        batch: frames or segments per forward pass; it affects rounding, so it is part of the column's spec.
    """

    numerics: ClassVar[int] = 2
    encoder: str
    weights_sha256: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: Annotated[int, Field(gt=0)] = 32

    @field_validator("encoder")
    @classmethod
    def _three_parts(cls, value: str) -> str:
        if not ENCODER.fullmatch(value):
            raise ValueError(f"{value!r}: expected family:architecture/weights, such as clip:ViT-L-14/openai")
        return value

    @property
    def family(self) -> str:
        """The part before the colon."""
        return self._part("family")

    @property
    def architecture(self) -> str:
        """The part between the colon and the first slash."""
        return self._part("architecture")

    @property
    def weights(self) -> str:
        """The part after the first slash."""
        return self._part("weights")

    @property
    def column(self) -> str:
        """The name of its column, without the digest."""
        return f"{self.family}-{self.architecture.lower().replace('.', '-')}"

    @property
    def arrays(self) -> tuple[str, ...]:
        """The arrays of its column, one per grid size, such as `spatial.t8`; without `temporal`."""
        raise NotImplementedError

    def pinned(self) -> Self:
        """A copy of these settings with the digest of the current weights, if they are a file or folder.

        Raises:
            UserError: `weights_sha256` is set and the weights differ from it.
        """
        digest = _digest(Path(self.weights)) if is_path(self.weights) else None
        if digest and self.weights_sha256 not in (None, digest):
            raise UserError(f"{self.weights}: field 'weights_sha256': {self.weights_sha256}; the weights have {digest}")
        return self.model_copy(update={"weights_sha256": digest or self.weights_sha256})

    def _part(self, name: str) -> str:
        match = ENCODER.fullmatch(self.encoder)
        assert match
        return match[name]


def is_path(weights: str) -> bool:
    """Whether weights name a file or folder (or a hub id, which also has a slash) rather than a published tag."""
    return "/" in weights or weights.endswith((".pt", ".pth", ".bin", ".safetensors"))


def _digest(path: Path) -> str | None:
    """SHA-256 of a file, or of the names and digests of a folder's files; None if the path does not exist."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return None
    files = sorted(entry for entry in path.iterdir() if entry.is_file())
    return hashlib.sha256("".join(f"{entry.name} {_digest(entry)}\n" for entry in files).encode()).hexdigest()


class TokenSettings(EncoderSettings):
    """Settings common to encoders whose columns hold numbers; weights may also be `random`.

    Attributes:
        seed: of `random` weights.
        stored: dtype of the features on disk.
    """

    seed: int = 0
    stored: Literal["float16", "float32"] = "float16"


class ClipSettings(TokenSettings):
    """An open_clip visual tower.

    Attributes:
        layer: which block's output to take, as Hugging Face counts hidden states: -2 is the second to last block.
        pooling: a frame's temporal token: its class token, or the mean of its patches for towers without one.
        frames: the time grid sizes T; each must divide the largest.
    """

    layer: int = -2
    pooling: Literal["cls", "mean"] = "cls"
    frames: tuple[int, ...] = (32,)

    @field_validator("frames")
    @classmethod
    def _nested(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return check_nested(value)

    @property
    def arrays(self) -> tuple[str, ...]:
        """See `EncoderSettings`."""
        return tuple(f"spatial.t{count}" for count in self.frames)


class ClapSettings(TokenSettings):
    """laion-clap's HTS-AT audio tower.

    Attributes:
        fusion: whether a long segment is taken as a shrunk whole plus three stretches; published weights tell.
        segments: the numbers K of equal segments.
        max_seconds: longer sounds are recorded as `too_large`; decoding an hour takes 0.7 GB of TMPDIR. It affects no
            numbers, so it is not part of the column's spec.
    """

    fusion: bool | None = None
    segments: Counts = (4,)
    max_seconds: float = MAX_SECONDS
    batch: Annotated[int, Field(gt=0)] = 2

    @property
    def fuses(self) -> bool:
        """Whether the tower is the one with feature fusion."""
        return self.weights in FUSED_CLAP if self.fusion is None else self.fusion

    @property
    def column(self) -> str:
        """See `EncoderSettings`."""
        return super().column + ("-fusion" if self.fuses else "")

    @property
    def arrays(self) -> tuple[str, ...]:
        """See `EncoderSettings`."""
        return tuple(f"audio.k{count}" for count in self.segments)


class WhisperSettings(TokenSettings):
    """Whisper's encoder.

    Attributes:
        layer: which hidden state to take, as Hugging Face counts them: -1 is the last, after the final norm.
        segments: the numbers K of equal segments.
        max_seconds: longer sounds are recorded as `too_large`; decoding an hour takes 0.7 GB of TMPDIR. It affects no
            numbers, so it is not part of the column's spec.
    """

    layer: int = -1
    segments: Counts = (4,)
    max_seconds: float = MAX_SECONDS
    batch: Annotated[int, Field(gt=0)] = 8

    @property
    def arrays(self) -> tuple[str, ...]:
        """See `EncoderSettings`."""
        return tuple(f"audio.k{count}" for count in self.segments)


class BlipSettings(EncoderSettings):
    """BLIP captions of frames.

    Attributes:
        frames: captioned frames per video.
        max_tokens: maximum tokens per caption.
    """

    frames: Annotated[int, Field(gt=0)] = 8
    max_tokens: Annotated[int, Field(gt=0)] = 30
    batch: Annotated[int, Field(gt=0)] = 8

    @property
    def arrays(self) -> tuple[str, ...]:
        """See `EncoderSettings`."""
        return ("caption",)


class AudioCaptionSettings(EncoderSettings):
    """Captions of segments by a Whisper trained to describe sounds.

    Attributes:
        style: text prefix of the decoder; the published weights know three styles, one per training data set.
        segments: the numbers K of equal segments.
        max_seconds: longer sounds are recorded as `too_large`; decoding an hour takes 0.7 GB of TMPDIR. It affects no
            numbers, so it is not part of the column's spec.
        max_tokens: maximum tokens per caption.
    """

    style: str = "clotho > caption: "
    segments: Counts = (4,)
    max_seconds: float = MAX_SECONDS
    max_tokens: Annotated[int, Field(gt=0)] = 60
    batch: Annotated[int, Field(gt=0)] = 8

    @property
    def arrays(self) -> tuple[str, ...]:
        """See `EncoderSettings`."""
        return tuple(f"caption.k{count}" for count in self.segments)


FAMILIES: dict[str, type[EncoderSettings]] = {
    "clip": ClipSettings,
    "clap": ClapSettings,
    "whisper": WhisperSettings,
    "blip": BlipSettings,
    "audiocaption": AudioCaptionSettings,
}


def _family(value: Any) -> str:
    encoder = value.get("encoder", "") if isinstance(value, dict) else getattr(value, "encoder", "")
    return str(encoder).partition(":")[0]


AnyEncoder = Annotated[
    Annotated[ClipSettings, Tag("clip")]
    | Annotated[ClapSettings, Tag("clap")]
    | Annotated[WhisperSettings, Tag("whisper")]
    | Annotated[BlipSettings, Tag("blip")]
    | Annotated[AudioCaptionSettings, Tag("audiocaption")],
    Discriminator(
        _family,
        custom_error_type="encoder_family",
        custom_error_message=f"field 'encoder' must begin with one of: {', '.join(f'{name}:' for name in FAMILIES)}",
    ),
]


class RunSettings(Settings):
    """Resources and limits of a `featurize` run; none of them affects a column's numbers.

    Attributes:
        workers: processes, or actors of a Ray cluster; by default as many as the CPUs and GPUs allow.
        cpus: CPU cores per worker: the number of its decoding threads. An encoder on a CPU computes in one thread.
        gpus: GPUs per worker; a fraction shares one.
        max_failed: stop once more than this share of the processed items has failed (absent streams do not count).
    """

    workers: Annotated[int, Field(gt=0)] | None = None
    cpus: Annotated[int, Field(gt=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0.0
    max_failed: Annotated[float, Field(ge=0, le=1)] = 1.0


class FeaturizeConfig(RunSettings):
    """Settings of `featurize run`.

    Attributes:
        columns: one encoder per column.
    """

    columns: Annotated[tuple[AnyEncoder, ...], Field(min_length=1)]
