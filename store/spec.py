"""What a column is: the settings that shape its numbers, and the digest that names it."""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from store.settings import Settings

FORMAT = 1  # of columns and shards on disk


class Feature(Settings):
    """One array of an item: its shape, with None where the length varies from item to item, and its dtype.

    A `text` is a list of strings; in memory, a numpy array of `str`.
    """

    shape: tuple[int | None, ...]
    dtype: Literal["float16", "float32", "text"]

    def admits(self, shape: tuple[int, ...], dtype: str) -> bool:
        """Whether an array of this shape and dtype (`text` for strings of any length) may stand here."""
        sized = len(shape) == len(self.shape) and all(
            want in (None, n) for want, n in zip(self.shape, shape, strict=True)
        )
        return sized and dtype == self.dtype


class ColumnSpec(Settings):
    """All that shapes the numbers of a column.

    Attributes:
        name: the encoder's short name, such as "clip-vit-l-14"; a path component.
        modality: what the encoder perceives.
        numerics: encoder, weights digest, layer, preprocessing, time grid, compute dtype, version of the numerics.
        features: the arrays of every item, by name; short, so that a tar member's name fits its header.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    modality: Literal["visual", "audio"]
    numerics: dict[str, JsonValue]
    features: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9.]{0,14}$")], Feature]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of this spec, in hexadecimal."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json"))).hexdigest()

    @property
    def digest(self) -> str:
        """The first six digits of the fingerprint, as they stand in the column's folder name."""
        return self.fingerprint[:6]

    @property
    def folder(self) -> str:
        """The name of the column's folder: `<name>.<digest>`."""
        return f"{self.name}.{self.digest}"


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
