"""The spec of a column: everything that determines its numbers, and the digest in its name."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from store.settings import Settings

FORMAT = 1  # version of the on-disk format of columns and shards


class Feature(Settings):
    """One array of an item: its dtype and shape, with None for each length that varies between items.

    The dtype `text` means strings: JSON on disk, a numpy array of `str` in memory.
    """

    shape: tuple[int | None, ...]
    dtype: Literal["float16", "float32", "text"]

    def admits(self, shape: tuple[int, ...], dtype: str) -> bool:
        """Whether an array of this shape and dtype (`text` for strings of any length) matches the feature."""
        sized = len(shape) == len(self.shape) and all(
            want in (None, n) for want, n in zip(self.shape, shape, strict=True)
        )
        return sized and dtype == self.dtype


class ColumnSpec(Settings):
    """Everything that determines a column's numbers.

    Attributes:
        name: the encoder's short name, such as "clip-vit-l-14"; used as a path component.
        modality: the encoder's input modality.
        numerics: encoder, weights digest, layer, preprocessing, time grid, compute dtype, version of the numerics.
        features: the arrays of each item, by name; names are short, so that member names fit a tar header.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    modality: Literal["visual", "audio"]
    numerics: dict[str, JsonValue]
    features: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9.]{0,14}$")], Feature]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the spec's canonical JSON, in hexadecimal."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()

    @property
    def digest(self) -> str:
        """The first six digits of the fingerprint, used in the column's folder name."""
        return self.fingerprint[:6]

    @property
    def folder(self) -> str:
        """The column's folder name: `<name>.<digest>`."""
        return f"{self.name}.{self.digest}"


def canonical_json(value: Any) -> bytes:
    """Encode as JSON with sorted keys and no spaces, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
