"""The encoder interface: prepare an item's media as rows, encode the rows, collect them as a column's arrays."""

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from featurize.encoders.transfers import Transfers
from featurize.media import Frames, MediaError, Sound
from featurize.settings import EncoderSettings, TokenSettings
from store import Arrays, ColumnSpec, MediaItem, UserError
from store.hub import is_offline

Rows = torch.Tensor | list[str]  # b encoded rows: tokens float32 [b, ...], or texts
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
S = TypeVar("S", bound=EncoderSettings)
T = TypeVar("T", bound=TokenSettings)


@dataclass(frozen=True)
class Units:
    """An item, ready to encode.

    Attributes:
        rows: the encoder's input, [n, ...].
        index: the row of each place of the time grid.
        facts: metadata to store beside the arrays.
    """

    rows: NDArray[Any]
    index: NDArray[np.int64]
    facts: dict[str, JsonValue] = field(default_factory=dict)


class Encoder(ABC, Generic[S]):
    """A frozen encoder with its settings.

    Attributes:
        spec: names everything that affects its numbers.
        size: side of its square input frames, in pixels; 0 if it takes no frames.
        frame_count: number of frames in its finest time grid.
        rate: of its input sound in Hz, at most `settings.max_seconds` long; 0 if it takes no sound.
        device: that it runs on.
        transfers: copies to and from that device.
    """

    spec: ColumnSpec
    size: int = 0
    frame_count: int = 1
    rate: int = 0

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.transfers = Transfers()
        self.device = self.transfers.device
        self.dtype = DTYPES[settings.dtype]

    @abstractmethod
    def prepare(self, item: MediaItem, media: "MediaCache") -> Units:
        """Decode what this encoder needs of an item. Runs in a thread.

        Raises:
            MediaError: the item cannot be used for this column.
        """

    @abstractmethod
    def encode(self, rows: NDArray[Any]) -> Rows:
        """Encode a batch of `b` rows to `b` results; a `TokenEncoder`'s are on its device, maybe still computing."""

    @abstractmethod
    def collect(self, rows: Sequence[Any], index: NDArray[np.int64]) -> Arrays:
        """The arrays of an item, from its encoded rows and the row of each place of its grid."""

    def encode_item(self, units: Units) -> Arrays:
        """The arrays of one item alone, bit for bit those that it has in a column made on this machine.

        On a CPU this holds with one torch thread, as in a worker of `featurize run`.

        Raises:
            MediaError: its tokens are not finite in the column's dtype.
        """
        starts = range(0, len(units.rows), self.settings.batch)
        batches = [self.encode_padded(units.rows[start : start + self.settings.batch]) for start in starts]
        return self.collect(list(itertools.chain(*batches)), units.index)

    def encode_padded(self, rows: NDArray[Any]) -> Rows:
        """Encode a batch that may lack rows at full size, padded with its last row.

        Libraries choose kernels by batch size, and kernels differ in rounding. At a fixed size, a row's result depends
        on that row alone: not on its shard, its neighbours or the grid it was decoded for.
        """
        missing = self.settings.batch - len(rows)
        whole = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
        self.transfers.begin_batch()
        return self.encode(whole)[: len(rows)]


class TokenEncoder(Encoder[T]):
    """An encoder whose column holds numbers. Rows become float32 tensors on its device, reduced there by `collect`."""

    def store(self, tokens: torch.Tensor) -> NDArray[Any]:
        """Cast to the column's dtype, and fetch the result from the device.

        Raises:
            MediaError: a number is not finite in that dtype.
        """
        stored: NDArray[Any] = tokens.to(DTYPES[self.settings.stored]).cpu().numpy()
        if not np.isfinite(stored).all():
            raise MediaError(
                "unreadable", f"its tokens are not finite as {self.settings.stored}; stored: float32 holds more"
            )
        return stored


class MediaCache(ABC):
    """One item's decoded media, shared by all encoders that need it."""

    @abstractmethod
    def frames(self, size: int, count: int) -> Frames:
        """Frames of the item on the grid of `count`, with pixels of `size`."""

    @abstractmethod
    def sound(self, rate: int, max_seconds: float) -> Sound:
        """Mono samples at `rate` Hz: slice only what is needed, since the sound may be hours long."""


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a state dict, sorted by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def download(encoder: str, fetch: Callable[[], str]) -> str:
    """The local path of an encoder's published weights, which `fetch` gets from a hub unless they are cached.

    Raises:
        UserError: the hub cannot be reached, or refuses.
    """
    try:
        return str(fetch())
    except Exception as error:  # of the hub's and the network's packages, with no common base class
        if is_offline():
            raise UserError(
                f"field 'encoder': {encoder}: no hub answers, and the weights are not in its cache; "
                f"without a hub: {encoder.partition('/')[0]}/random or the path of a checkpoint"
            ) from None
        reason = " ".join(str(error).split())
        raise UserError(
            f"field 'encoder': {encoder}: its published weights cannot be downloaded; "
            f"without a hub give the path of a checkpoint: {reason}"
        ) from None


def load_state(path: str) -> dict[str, torch.Tensor]:
    """Read a checkpoint without running code from it: safetensors, or a torch file with tensors only.

    Raises:
        UserError: the file is missing, or holds more than tensors and plain values.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; expected a .safetensors, .pt or .bin file")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_numpy_scalars()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle and safetensors raise many kinds here
        raise UserError(f"{path}: cannot be read as a checkpoint of tensors: {str(error).splitlines()[0]}") from None
    state = state.get("state_dict", state)
    return {name.removeprefix("module."): tensor for name, tensor in state.items() if torch.is_tensor(tensor)}


def _numpy_scalars() -> list[Any]:
    """The numpy types that LAION's checkpoints hold beside their tensors (an epoch's scores)."""
    scalar = np.float64(0).__reduce__()[0]
    named = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [*named, np.dtype, type(np.dtype(np.float64)), type(np.dtype(np.float32))]


def load_strict(module: torch.nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Load a state dict whole.

    Raises:
        UserError: names or shapes differ; names the first.
    """
    expected = module.state_dict()
    wrong = sorted(expected.keys() ^ state.keys()) or [n for n in expected if expected[n].shape != state[n].shape]
    if wrong:
        raise UserError(f"{where}: not the weights of this architecture: {len(wrong)} tensors differ, first {wrong[0]}")
    module.load_state_dict(dict(state))
