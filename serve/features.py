"""The features of the item a question is about: encoded from a raw file, or loaded from a store."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter

from featurize.encoders import Encoder, build_encoder
from featurize.media import MediaError
from featurize.prepare import ItemMedia
from featurize.settings import AnyEncoder
from featurize.sources.kinds import kind_of
from store import Arrays, ColumnReader, ColumnSpec, MediaItem, Modality, Sense, Storage, UserError, open_column
from trainer.checkpoint.folder import CheckpointInfo


def available_modality(arrays: Arrays) -> Modality:
    """The modality that covers all available features."""
    if "temporal" in arrays:
        return "audio_visual" if "audio" in arrays else "visual"
    return "audio" if "audio" in arrays else "text"


class FeatureSource:
    """Features in the form a checkpoint was trained on. Encoders and columns stay open for the next item.

    Args:
        info: the checkpoint's metadata.
    """

    def __init__(self, info: CheckpointInfo) -> None:
        self._info = info
        self._encoder = cache(self._build_encoder)
        self._reader = cache(self._open_column)

    @property
    def senses(self) -> list[Sense]:
        """The senses the checkpoint was trained with."""
        return [sense for sense in get_args(Sense) if sense in self._info.columns]

    def encode(self, path: str, senses: Sequence[Sense]) -> Arrays:
        """Decode a raw file and encode it with the checkpoint's encoders.

        Raises:
            UserError: an encoder cannot be built here, or its fingerprint differs from the one in training.
            MediaError: the file cannot be used for one of the senses.
        """
        uri = path if "://" in path else str(Path(path).absolute())
        item = MediaItem(key="question", uri=uri, kind=kind_of(path, path), shard=0, position=0, bytes=None)
        arrays: Arrays = {}
        for sense in senses:
            encoder = self._encoder(sense)
            units = encoder.prepare(item, ItemMedia(item, [encoder]))
            arrays |= self._info.grid.select(encoder.encode_item(units))
        return arrays

    def load(self, store: str, key: str, senses: Sequence[Sense]) -> Arrays:
        """Load an item's features from a store.

        Raises:
            UserError: the store lacks the column or the item.
            MediaError: the item could not be featurized.
        """
        arrays: Arrays = {}
        for sense in senses:
            reader = self._reader(store, sense)
            if key in reader.failed:
                raise MediaError(reader.failed[key].code, reader.failed[key].reason)
            arrays |= self._info.grid.select(reader.read(key))
        return arrays

    def _trained(self, sense: Sense) -> ColumnSpec:
        if sense not in self._info.columns:
            raise UserError(f"this checkpoint was trained without a {sense} column")
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
