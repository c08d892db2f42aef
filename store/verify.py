"""Look after a store: count what it holds, and compare its bytes with the checksums taken when they were written."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import xxhash

from store.column import Column
from store.corpus import Corpus
from store.errors import UserError
from store.shard import Failure, shard_name

BLOCK_BYTES = 4 << 20


@dataclass
class ColumnStats:
    """What a column holds of its corpus.

    Attributes:
        shards: shards that are there.
        planned: shards of the corpus plan.
        usable: items that can be read.
        failures: the records of all others in those shards.
        bytes: of the tars.
    """

    shards: int
    planned: int
    usable: int = 0
    bytes: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def by_code(self) -> Counter[str]:
        """How many failures of each code."""
        return Counter(failure.code for failure in self.failures)


def column_stats(column: Column, corpus: Corpus) -> ColumnStats:
    """Count a column's shards, items, failures and bytes, from its sidecars alone."""
    shards = column.shards()
    stats = ColumnStats(len(shards), len(corpus.shards))
    for shard in shards:
        sidecar = column.sidecar(shard)
        stats.usable += len(sidecar.items)
        stats.bytes += sidecar.tar_bytes
        stats.failures += sidecar.failed
    return stats


def verify_column(column: Column, corpus: Corpus) -> Iterator[tuple[int, str | None]]:
    """For each shard that is there: its number, and what is wrong with it or None.

    A shard is sound if its tar has the size and checksum of the sidecar, and its usable and failed items are together
    exactly the corpus's items of that shard, the usable ones in the corpus's order.
    """
    planned = corpus.shards
    for shard in column.shards():
        yield shard, _fault(column, shard, [item.key for item in planned.get(shard, [])])


def _fault(column: Column, shard: int, planned: list[str]) -> str | None:
    try:
        sidecar = column.sidecar(shard)
    except UserError as error:
        return str(error)
    if sidecar.shard != shard or sidecar.column != column.spec.fingerprint:
        return "the sidecar belongs to another shard or column"
    failed = {failure.key for failure in sidecar.failed}
    if [item.key for item in sidecar.items] != [key for key in planned if key not in failed] or failed - set(planned):
        return "its items are not those of the corpus plan"
    tar = column.path(shard_name(shard, "tar"))
    if not column.storage.exists(tar):
        return "the tar is missing"
    digest, size = xxhash.xxh3_128(), 0
    with column.storage.fs.open(column.storage.path(tar), "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    if size != sidecar.tar_bytes:
        return f"the tar has {size} bytes, the sidecar says {sidecar.tar_bytes}"
    if digest.hexdigest() != sidecar.tar_xxh3:
        return "the tar differs from its checksum"
    return None
