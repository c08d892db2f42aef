"""The configuration of `featurize run`: which columns to make, and with what of the machines."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator

from featurize.grid import check_nested
from store import Settings, UserError

MAX_SECONDS = 14400.0
ENCODER = re.compile(r"(?P<family>[a-z]+):(?P<architecture>[^/]+)/(?P<weights>.+)")
Counts = tuple[Annotated[int, Field(gt=0)], ...]


class EncoderSettings(Settings):
    """What the settings of all encoders share.

    Attributes:
        numerics: raised whenever the same settings give other numbers or captions.
        encoder: `family:architecture/weights`; weights are a published name, or the path of a file or folder.
        weights_sha256: of the file or folder that weights name; a run adds it to what a column says of its making.
        dtype: of the encoder's arithmetic.
        batch: frames or segments in one pass; it changes rounding, so it belongs to the column's spec.
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

    def pinned(self) -> Self:
        """These settings with the digest of the weights that are there now, where they are a file or a folder.

        Raises:
            UserError: `weights_sha256` is set and these are others.
        """
        digest = _digest(Path(self.weights)) if is_path(self.weights) else None
        if digest and self.weights_sha256 not in (None, digest):
            raise UserError(f"{self.weights}: field 'weights_sha256': {self.weights_sha256}; the weights have {digest}")
        return self.model_copy(update={"weights_sha256": digest or self.weights_sha256})

    def _part(self, name: str) -> str:
        found = ENCODER.fullmatch(self.encoder)
        assert found
        return found[name]


def is_path(weights: str) -> bool:
    """Whether weights name a file or a folder rather than something published, an id on a hub apart."""
    return "/" in weights or weights.endswith((".pt", ".pth", ".bin", ".safetensors"))


def _digest(path: Path) -> str | None:
    """SHA-256 of a file, or of the names and digests of a folder's files; None if neither is there."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return None
    files = sorted(each for each in path.iterdir() if each.is_file())
    return hashlib.sha256("".join(f"{each.name} {_digest(each)}\n" for each in files).encode()).hexdigest()


class TokenSettings(EncoderSettings):
    """What the settings of encoders share whose columns hold numbers; their weights may also be `random`.

    Attributes:
        seed: of `random` weights.
        stored: dtype of the features on disk.
    """

    seed: int = 0
    stored: Literal["float16", "float32"] = "float16"


class ClipSettings(TokenSettings):
    """An open_clip visual tower.

    Attributes:
        layer: which block's output to take, as Hugging Face counts hidden states: -2 is the last block but one.
        pooling: the temporal token of a frame is its class token, or the mean of its patches where a tower has none.
        frames: the sizes T of the time grid; each divides the largest.
    """

    layer: int = -2
    pooling: Literal["cls", "mean"] = "cls"
    frames: tuple[int, ...] = (32,)

    @field_validator("frames")
    @classmethod
    def _nested(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return check_nested(value)


class ClapSettings(TokenSettings):
    """laion-clap's HTS-AT audio tower.

    Attributes:
        fusion: whether it takes long segments as a whole, shrunk, and three stretches; published weights know.
        segments: the numbers K of even segments.
        max_seconds: longer sounds are recorded as too large; an hour takes 0.7 GB of TMPDIR while it is decoded.
    """

    fusion: bool | None = None
    segments: Counts = (4,)
    max_seconds: float = MAX_SECONDS
    batch: Annotated[int, Field(gt=0)] = 2


class WhisperSettings(TokenSettings):
    """Whisper's encoder.

    Attributes:
        layer: which hidden state to take, as Hugging Face counts them: -1 is the last, after the final norm.
        segments: the numbers K of even segments.
        max_seconds: longer sounds are recorded as too large; an hour takes 0.7 GB of TMPDIR while it is decoded.
    """

    layer: int = -1
    segments: Counts = (4,)
    max_seconds: float = MAX_SECONDS
    batch: Annotated[int, Field(gt=0)] = 8


class BlipSettings(EncoderSettings):
    """BLIP captions of frames.

    Attributes:
        frames: how many frames of a video get a caption.
        max_tokens: tokens of a caption at most.
    """

    frames: Annotated[int, Field(gt=0)] = 8
    max_tokens: Annotated[int, Field(gt=0)] = 30
    batch: Annotated[int, Field(gt=0)] = 8


class AudioCaptionSettings(EncoderSettings):
    """Captions of segments by a Whisper that was trained to describe sounds.

    Attributes:
        style: what the decoder begins with; the published weights know three styles, one for each of their data sets.
        segments: the numbers K of even segments.
        max_seconds: longer sounds are recorded as too large; an hour takes 0.7 GB of TMPDIR while it is decoded.
        max_tokens: tokens of a caption at most.
    """

    style: str = "clotho > caption: "
    segments: Counts = (4,)
    max_seconds: float = MAX_SECONDS
    max_tokens: Annotated[int, Field(gt=0)] = 60
    batch: Annotated[int, Field(gt=0)] = 8


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
    """What a run of `featurize` takes of the machines; none of it shapes the numbers of a column.

    Attributes:
        workers: processes, or actors of a Ray cluster; by default as many as the CPUs and GPUs admit.
        cpus: CPU cores of a worker: so many threads decode ahead of its encoders, and torch has as many.
        gpus: GPUs of a worker; a fraction shares one.
        max_failed: stop once more than this share of the items seen is unreadable (absent streams do not count).
    """

    workers: Annotated[int, Field(gt=0)] | None = None
    cpus: Annotated[int, Field(gt=0)] = 1
    gpus: Annotated[float, Field(ge=0)] = 0.0
    max_failed: Annotated[float, Field(ge=0, le=1)] = 1.0


class FeaturizeConfig(RunSettings):
    """Settings of `featurize run`.

    Attributes:
        columns: one encoder each.
    """

    columns: Annotated[tuple[AnyEncoder, ...], Field(min_length=1)]
