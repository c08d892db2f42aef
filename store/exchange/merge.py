"""Merge stores that were featurized on different machines.

A shard of a plan that both stores have is one shard, whichever machine encoded it. The shards of another plan are
appended under new numbers; their tars stay byte for byte, since a tar does not hold its number.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from store.column import Column, create_column, list_columns
from store.conversation import FOLDER as CONVERSATIONS
from store.corpus import NAME, Corpus, MediaItem, Part
from store.errors import DamagedError, UserError
from store.exchange.copying import check_plan, copy_shard
from store.exchange.importing import some
from store.shard import shard_name
from store.spec import canonical_json
from store.storage import Storage

Items = tuple[tuple[str, Part, str], ...]


@dataclass(frozen=True)
class Incoming:
    """One of the stores to merge.

    Attributes:
        corpus: its plan.
        shards: the number that each of its shards gets.
        conversations: the name that each of its conversations gets.
    """

    storage: Storage
    corpus: Corpus
    shards: dict[int, int]
    conversations: dict[str, str]


@dataclass(frozen=True)
class Merge:
    """What a merge will do: the plan that results, how many of its items are new, and where each store's parts go."""

    out: Storage
    corpus: Corpus
    new: int
    incoming: tuple[Incoming, ...]

    @property
    def shards(self) -> int:
        """How many shards of columns are to be copied or compared."""
        return sum(len(column.shards()) for each in self.incoming for column in list_columns(each.storage))


def plan_merge(out: Storage, stores: Sequence[Storage], *, prefix: bool) -> Merge:
    """Find out how stores fit together; nothing is written.

    Args:
        prefix: give conversations that differ under one name the name `<folder of their store>-<name>`.

    Raises:
        UserError: two files have one key, a plan was cut otherwise, or conversations of one name differ.
    """
    corpus = Corpus.load(out) if out.exists(NAME) else Corpus()
    had = len(corpus)
    talks = {name: out.read(name) for name in _conversations(out)}
    incoming = []
    for storage in stores:
        if storage.url == out.url:
            raise UserError(f"{out.url}: cannot be merged into itself")
        theirs = Corpus.load(storage)
        shards = _join(corpus, theirs, storage)
        incoming.append(Incoming(storage, theirs, shards, _join_conversations(talks, storage, prefix)))
    return Merge(out, corpus, len(corpus) - had, tuple(incoming))


def run_merge(merge: Merge, advance: Callable[[int], None]) -> list[str]:
    """Merge; stopped at any moment it leaves a sound store, and the same command goes on.

    Returns:
        a line for each shard that both stores have with other bytes; the first one's are kept, never mixed.

    Raises:
        DamagedError: a shard to be copied differs from its checksum or from its plan.
    """
    if merge.new or not merge.out.exists(NAME):
        merge.corpus.save(merge.out)
    differing = []
    for each in merge.incoming:
        for column in list_columns(each.storage):
            differing += _merge_column(merge.out, column, each, advance)
        for name, renamed in each.conversations.items():
            merge.out.write(renamed, each.storage.read(name))
    return differing


def half_filled(storage: Storage) -> list[str]:
    """A line for each encoder that has several columns, none of all shards: machines encoded with other numerics."""
    planned = len(Corpus.load(storage).shards)
    partial: dict[str, dict[Column, int]] = {}
    for column in list_columns(storage):
        shards = len(column.shards())
        if shards < planned:
            partial.setdefault(column.spec.name, {})[column] = shards
    return [
        f"{' and '.join(f'{column.name} ({shards} of {planned} shards)' for column, shards in columns.items())} "
        f"are each filled in part: {name} was encoded with different {_difference(columns)}; "
        "fill one (python -m featurize run with its settings), and remove the other (python -m store gc --remove)"
        for name, columns in partial.items()
        if len(columns) > 1
    ]


def _difference(columns: Iterable[Column]) -> str:
    """The numerics in which columns differ."""
    numerics = [column.spec.numerics for column in columns]
    names = sorted({name for each in numerics for name in each})
    differ = [name for name in names if len({canonical_json(each.get(name)) for each in numerics}) > 1]
    return ", ".join(differ) or "features"


def _join(corpus: Corpus, theirs: Corpus, storage: Storage) -> dict[int, int]:
    """Append the shards that are new to `corpus`; the number of every shard."""
    ours = {_identity(items): number for number, items in corpus.shards.items()}
    new = {n: items for n, items in theirs.shards.items() if _identity(items) not in ours}
    _check_disjoint(corpus, [item for items in new.values() for item in items], storage)
    numbers = {n: ours[_identity(items)] for n, items in theirs.shards.items() if n not in new}
    following = max(ours.values(), default=-1) + 1
    for number, (shard, items) in enumerate(new.items(), following):
        numbers[shard] = number
        corpus.items += [replace(item, shard=number) for item in items]
    return numbers


def _identity(items: list[MediaItem]) -> Items:
    return tuple((item.key, item.part, item.kind) for item in items)


def _check_disjoint(corpus: Corpus, new: list[MediaItem], storage: Storage) -> None:
    parts = {item.key: item.part for item in corpus.items}
    known = set(parts.values())
    collisions = [item.key for item in new if parts.get(item.key, item.part) != item.part]
    if collisions:
        raise UserError(
            f"{storage.url}: {len(collisions)} keys name other files than in the stores before: {some(collisions)}; "
            "plan and featurize one of the two under longer paths (keys are made of them), or train on both as sources"
        )
    both = [item.key for item in new if item.part in known]
    if both:
        raise UserError(
            f"{storage.url}: {len(both)} items stand in the stores before too, but in other shards: {some(both)}; "
            "only stores of one plan, or of different files, can be merged"
        )


def _conversations(storage: Storage) -> list[str]:
    return [f"{CONVERSATIONS}/{name}" for name in storage.names(CONVERSATIONS)]


def _join_conversations(talks: dict[str, bytes], storage: Storage, prefix: bool) -> dict[str, str]:
    """The new name of each of a store's conversations; those that are there already with equal bytes are left out."""
    renamed = {}
    for name in _conversations(storage):
        content = storage.read(name)
        folder, stem = name.split("/")
        own = f"{folder}/{storage.url.rsplit('/', 1)[-1]}-{stem}"
        target = own if prefix and talks.get(name, content) != content else name
        if talks.get(target, content) != content:
            hint = "" if prefix else "; --prefix names them after their store"
            raise UserError(f"{storage.where(name)}: other conversations have this name already{hint}")
        if target not in talks:
            renamed[name] = target
        talks[target] = content
    return renamed


def _merge_column(out: Storage, column: Column, each: Incoming, advance: Callable[[int], None]) -> list[str]:
    target = create_column(out, column.spec, column.build)
    there = set(target.shards())
    planned = each.corpus.shards
    differing = []
    for shard in column.shards():
        sidecar = column.sidecar(shard)
        if shard not in planned or sidecar.shard != shard:
            raise DamagedError(f"{column.storage.where(column.path(shard_name(shard, 'json')))}: not of the plan")
        check_plan(column, sidecar, planned[shard])
        number = each.shards[shard]
        if number not in there:
            copy_shard(column, target, sidecar, number)
        elif target.sidecar(number) != sidecar.model_copy(update={"shard": number}):
            kept = target.sidecar(number)
            differing.append(
                f"{target.name} shard {number}: other bytes in {column.storage.url}; those that were there are kept "
                f"({len(kept.failed)} items failed in them, {len(sidecar.failed)} in the other)"
            )
        advance(1)
    return differing
