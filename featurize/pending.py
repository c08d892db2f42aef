"""Which shards remain to be encoded, and reports on finished ones. Imports no torch: a run's driver needs none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from featurize.settings import EncoderSettings
from store import Column, Failure, Storage, list_columns


@dataclass(frozen=True)
class ShardReport:
    """The result of a shard: its number of items, and its failures by column name."""

    shard: int
    items: int
    failures: dict[str, list[Failure]]


def find_columns(storage: Storage, encoders: Sequence[EncoderSettings]) -> list[Column | None]:
    """The stored column of each encoder, found without loading the encoder; None unless exactly one matches.

    A column matches if it was built with the same settings, numerics version and weights. After a change of
    `max_seconds` alone none matches, though a run, which loads the encoders then, finds the same column: its old
    `too_large` records stay until --retry.
    """
    stored = list_columns(storage)
    matches = [[column for column in stored if _made_with(column, settings.pinned())] for settings in encoders]
    return [columns[0] if len(columns) == 1 else None for columns in matches]


def _made_with(column: Column, settings: EncoderSettings) -> bool:
    try:
        built = type(settings).model_validate(column.build)
    except ValidationError:  # another family, an import, or a version with different settings
        return False
    return built == settings and column.spec.numerics.get("version") == settings.numerics


def missing_shards(
    columns: Sequence[Column], shards: Sequence[int], retry: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Each shard that some column lacks, with the names of those columns.

    With `retry`, a shard with a failure that is not `absent` counts as missing: its files may have been put right.
    """
    finished = {column.name: set(column.shards()) for column in columns}
    if retry:
        finished = {column.name: {s for s in finished[column.name] if not _defective(column, s)} for column in columns}
    for shard in shards:
        names = [name for name, done in finished.items() if shard not in done]
        if names:
            yield shard, names


def _defective(column: Column, shard: int) -> bool:
    return any(failure.code != "absent" for failure in column.sidecar(shard).failed)
