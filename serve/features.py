"""The features of the item a question is about: encoded from a raw file, or loaded from a store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import TypeAdapter

from featurize.encoders import Encoder, build_encoder
from featurize.media import Isolated, MediaError
from featurize.prepare import ItemMedia
from featurize.settings import AnyEncoder
from serve.checks import check_senses, kind_of_file, senses_of
from store import Arrays, ColumnReader, ColumnSpec, MediaItem, Modality, Sense, Storage, UserError, open_column
from trainer.checkpoint.info import CheckpointInfo

DECODE_SECONDS = 600.0  # of one file's frames, or of its sound


def available_modality(arrays: Arrays) -> Modality:
    """The modality that covers all available features."""
    if "temporal" in arrays:
        return "audio_visual" if "audio" in arrays else "visual"
    return "audio" if "audio" in arrays else "text"


@dataclass(frozen=True)
class Features:
    """What is known of an item: its selected arrays, and why the senses without arrays cannot be used."""

    arrays: Arrays = field(default_factory=dict)
    failures: dict[Sense, MediaError] = field(default_factory=dict)


class FeatureSource:
    """Features in the form a checkpoint was trained on. Encoders and columns stay open for the next item.

    Attributes:
        open: the open column of a store for a sense.

    Args:
        info: the checkpoint's metadata.
    """

    def __init__(self, info: CheckpointInfo) -> None:
        self._info = info
        self._encoders = cache(self._build_encoder)
        self.open = cache(self._open_column)
        self._isolated = Isolated(seconds=DECODE_SECONDS)
        self._decoding, self._building = Lock(), Lock()

    @property
    def senses(self) -> list[Sense]:
        """The senses the checkpoint was trained with."""
        return senses_of(self._info)

    @property
    def columns(self) -> dict[Sense, tuple[ColumnSpec, dict[str, object]]]:
        """The spec of each sense's column, and how its encoder is built."""
        return {sense: (self._info.columns[sense], self._info.builds[sense]) for sense in self.senses}

    def encoder(self, sense: Sense) -> Encoder[Any]:
        """The encoder of a sense's column; built by the first call, which takes seconds.

        Raises:
            UserError: it cannot be built here, or its fingerprint differs from the one in training.
        """
        with self._building:
            return self._encoders(sense)

    def encode(self, path: str, senses: Sequence[Sense]) -> Features:
        """Decode a raw file once, in a process of its own, and encode it with the checkpoint's encoders.

        The arrays are bit for bit those of a column that is made on this machine; if encoders run on the CPU, only with
        one torch thread (`OMP_NUM_THREADS=1`), as `featurize run` has them, else up to rounding.

        Raises:
            UserError: an encoder cannot be built here, or its fingerprint differs from the one in training.
        """
        uri = path if "://" in path else str(Path(path).absolute())
        item = MediaItem(key="question", uri=uri, kind=kind_of_file(path), shard=0, position=0, bytes=None)
        encoders = {sense: self.encoder(sense) for sense in senses}
        with self._decoding:
            media = ItemMedia(item, list(encoders.values()), self._isolated)
            return self.select(
                {
                    sense: _kept(lambda e=encoder: e.encode_item(e.prepare(item, media)))  # type: ignore[misc]
                    for sense, encoder in encoders.items()
                }
            )

    def load(self, store: str, key: str, senses: Sequence[Sense]) -> Features:
        """Load an item's features from a store.

        Raises:
            UserError: the store lacks the column or the item.
        """
        readers = {sense: self.open(store, sense) for sense in senses}
        return self.select({sense: _kept(lambda r=reader: _read(r, key)) for sense, reader in readers.items()})  # type: ignore[misc]

    def perceive(self, media: str | None, store: str | None, key: str | None, chosen: Sequence[Sense]) -> Arrays:
        """The features of a raw file, or of an item of a store, by which it is asked.

        Args:
            media: the file; None takes the item.
            store: of the item.
            key: of the item.
            chosen: senses; none takes every sense that the medium has.

        Raises:
            UserError: a sense cannot be used, or none is there.
        """
        senses = chosen or self.senses
        features = self.encode(media, senses) if media else self.load(str(store), str(key), senses)
        said = {str(error) for error in features.failures.values()}
        reasons = "; ".join(f"{sense}: {error}" for sense, error in features.failures.items())
        if len(said) == 1 < len(features.failures):  # a file that is no medium is none by both senses
            reasons = said.pop()
        if not features.arrays:
            raise UserError(f"{media or key}: nothing to perceive: {reasons}")
        if any(chosen or error.code != "absent" for error in features.failures.values()):
            raise UserError(f"{media or key}: {reasons}")
        return features.arrays

    def select(self, found: Mapping[Sense, Arrays | MediaError]) -> Features:
        """What a checkpoint reads of columns' arrays."""
        features = Features()
        for sense, outcome in found.items():
            if isinstance(outcome, MediaError):
                features.failures[sense] = outcome
            else:
                features.arrays.update(self._info.grid.select(outcome))
        return features

    def close(self) -> None:
        """End the decoding process."""
        self._isolated.close()

    def _trained(self, sense: Sense) -> ColumnSpec:
        check_senses(self._info, [sense])
        return self._info.columns[sense]

    def _open_column(self, store: str, sense: Sense) -> ColumnReader:
        return ColumnReader(open_column(Storage(store), self._trained(sense).folder))

    def _build_encoder(self, sense: Sense) -> Encoder[Any]:
        trained = self._trained(sense)
        build = self._info.builds[sense]
        if "imported" in build:
            raise UserError(
                f"column {trained.folder} was imported ({build['imported']}): its encoder cannot be built here; "
                "ask about items of a store that holds it, with --store and --key"
            )
        settings: Any = TypeAdapter(AnyEncoder).validate_python(build)
        encoder = build_encoder(settings)
        if encoder.spec != trained:
            raise UserError(
                f"{settings.encoder}: gives the column {encoder.spec.folder}, "
                f"but the checkpoint was trained on {trained.folder}; were its weights changed?"
            )
        return encoder


def _kept(arrays_of: Callable[[], Arrays]) -> Arrays | MediaError:
    try:
        return arrays_of()
    except MediaError as error:
        return error


def _read(reader: ColumnReader, key: str) -> Arrays:
    if key in reader.failed:
        raise MediaError(reader.failed[key].code, reader.failed[key].reason)
    return reader.read(key)
