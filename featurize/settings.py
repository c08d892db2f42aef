"""The configuration of `featurize run`: which columns to make, and with what of the machines."""

import re
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from featurize.grid import check_nested
from store import Settings
from store.repair import RunSettings

MAX_SECONDS = 14400.0
ENCODER = re.compile(r"(?P<family>[a-z]+):(?P<architecture>[^/]+)/(?P<weights>.+)")
Counts = tuple[Annotated[int, Field(gt=0)], ...]


class EncoderSettings(Settings):
    """What the settings of all encoders share.

    Attributes:
        encoder: `family:architecture/weights`; weights are a published name, or the path of a file or folder.
        dtype: of the encoder's arithmetic.
        batch: frames or segments in one pass; it changes rounding, so it belongs to the column's spec.
    """

    encoder: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch: Annotated[int, Field(gt=0)] = 32

    @field_validator("encoder")
    @classmethod
    def _three_parts(cls, value: str) -> str:
        if not ENCODER.fullmatch(value):
            raise ValueError(f"{value!r}: expected family:architecture/weights, such as clip:ViT-L-14/openai")
        return value

    @property
    def architecture(self) -> str:
        """The part between the colon and the first slash."""
        return self._part("architecture")

    @property
    def weights(self) -> str:
        """The part after the first slash."""
        return self._part("weights")

    def _part(self, name: str) -> str:
        found = ENCODER.fullmatch(self.encoder)
        assert found
        return found[name]


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
    batch: Annotated[int, Field(gt=0)] = 8


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


class FeaturizeConfig(RunSettings):
    """Settings of `featurize run`.

    Attributes:
        columns: one encoder each.
    """

    columns: Annotated[tuple[AnyEncoder, ...], Field(min_length=1)]
