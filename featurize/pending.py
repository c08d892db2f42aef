"""What is still to encode, and what came of it. No torch here: the driver of a run needs none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from featurize.settings import EncoderSettings
from store import Column, Failure, Storage, list_columns


@dataclass(frozen=True)
class ShardReport:
    """What came of a shard: its number of items, and the failures of each column by its name."""

    shard: int
    items: int
    failures: dict[str, list[Failure]]


def find_columns(storage: Storage, encoders: Sequence[EncoderSettings]) -> list[Column | None]:
    """The store's column of each encoder, found without loading it; None where that cannot be told.

    A column is an encoder's if it was made with its settings, by this version of its numerics and with its weights.
    """
    there = list_columns(storage)
    found = [[column for column in there if _made_with(column, settings.pinned())] for settings in encoders]
    return [columns[0] if len(columns) == 1 else None for columns in found]


def _made_with(column: Column, settings: EncoderSettings) -> bool:
    try:
        made = type(settings).model_validate(column.build)
    except ValidationError:  # of another family, imported, or by a version with other settings
        return False
    return made == settings and column.spec.numerics.get("version") == settings.numerics


def missing_shards(
    columns: Sequence[Column], shards: Sequence[int], retry: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Each shard that some column has not yet, with the names of those columns.

    With `retry`, a shard with a failure that is not `absent` counts as missing: its files may have been mended.
    """
    there = {column.name: set(column.shards()) for column in columns}
    if retry:
        there = {column.name: {s for s in there[column.name] if not _defective(column, s)} for column in columns}
    for shard in shards:
        names = [name for name, done in there.items() if shard not in done]
        if names:
            yield shard, names


def _defective(column: Column, shard: int) -> bool:
    return any(failure.code != "absent" for failure in column.sidecar(shard).failed)
