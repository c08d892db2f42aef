"""Merge stores that were featurized on different machines.

A shard with the same planned items in two stores counts as one shard, whichever machine encoded it. Other shards are
appended under new numbers. Their tars are copied unchanged, as a tar does not contain its number.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from store.column import Column, create_column, list_columns
from store.conversation import FOLDER as CONVERSATIONS
from store.corpus import Corpus
from store.errors import UserError
from store.exchange.copying import copy_shard
from store.exchange.importing import some
from store.items import CORPUS, MediaItem
from store.spec import canonical_json
from store.storage import Storage
from store.verify import check_plan


@dataclass(frozen=True)
class Incoming:
    """One of the stores to merge.

    Attributes:
        storage: the store.
        corpus: its plan.
        shards: the new number of each of its shards.
        conversations: the new name of each of its conversation files to copy.
    """

    storage: Storage
    corpus: Corpus
    shards: dict[int, int]
    conversations: dict[str, str]


@dataclass(frozen=True)
class Merge:
    """What a merge will do: the resulting plan, the number of new items, and the new names in each store."""

    out: Storage
    corpus: Corpus
    new: int
    incoming: tuple[Incoming, ...]

    @property
    def shards(self) -> int:
        """The number of column shards to copy or compare."""
        return sum(len(column.shards()) for source in self.incoming for column in list_columns(source.storage))


def plan_merge(out: Storage, stores: Sequence[Storage], *, prefix: bool) -> Merge:
    """Plan a merge; nothing is written.

    Args:
        prefix: if conversations of one name differ, rename the later ones to `<folder of their store>-<name>`.

    Raises:
        UserError: two files have the same key, a file is in different shards of two plans, or conversations of one name
            differ.
    """
    corpus = Corpus.load(out) if out.exists(CORPUS) else Corpus()
    items_before = len(corpus)
    talks = {name: out.read(name) for name in _conversations(out)}
    incoming = []
    for storage in stores:
        if storage.url == out.url:
            raise UserError(f"{out.url}: cannot be merged into itself")
        theirs = Corpus.load(storage)
        shards = _join(corpus, theirs, storage)
        incoming.append(Incoming(storage, theirs, shards, _join_conversations(talks, storage, prefix)))
    return Merge(out, corpus, len(corpus) - items_before, tuple(incoming))


def run_merge(merge: Merge, advance: Callable[[int], None]) -> list[str]:
    """Run a merge. If interrupted, it leaves a sound store, and the same command resumes.

    Returns:
        a line for each shard whose bytes differ between two stores; the first store's shard is kept whole.

    Raises:
        DamagedError: a shard does not match its checksum or its plan.
    """
    if merge.new or not merge.out.exists(CORPUS):
        merge.corpus.save(merge.out)
    differing = []
    for source in merge.incoming:
        for column in list_columns(source.storage):
            differing += _merge_column(merge.out, column, source, advance)
        for name, renamed in source.conversations.items():
            merge.out.write(renamed, source.storage.read(name))
    return differing


def half_filled(storage: Storage) -> list[str]:
    """A line for each encoder with several incomplete columns: its machines encoded with different numerics."""
    planned = len(Corpus.load(storage).shards)
    partial: dict[str, dict[Column, int]] = {}
    for column in list_columns(storage):
        shards = len(column.shards())
        if shards < planned:
            partial.setdefault(column.spec.name, {})[column] = shards
    return [
        f"{' and '.join(f'{column.name} ({shards} of {planned} shards)' for column, shards in columns.items())} "
        f"are each filled in part: {name} was encoded with different {_difference(columns)}; "
        "fill one (avllm featurize run with its settings), and remove the other (avllm store gc --remove)"
        for name, columns in partial.items()
        if len(columns) > 1
    ]


def _difference(columns: Iterable[Column]) -> str:
    """The names of the numerics that differ between columns."""
    numerics = [column.spec.numerics for column in columns]
    names = sorted({name for settings in numerics for name in settings})
    differ = [name for name in names if len({canonical_json(settings.get(name)) for settings in numerics}) > 1]
    return ", ".join(differ) or "features"


def _join(corpus: Corpus, theirs: Corpus, storage: Storage) -> dict[int, int]:
    """Append new shards to `corpus`; return the number in `corpus` of each shard of `theirs`."""
    ours = {_identity(items): number for number, items in corpus.shards.items()}
    following = max(ours.values(), default=-1) + 1
    numbers: dict[int, int] = {}
    new: list[int] = []
    for shard, items in theirs.shards.items():
        numbers[shard] = ours.get(_identity(items), following + len(new))
        if numbers[shard] >= following:
            new.append(shard)
    _check_disjoint(corpus, [item for shard in new for item in theirs.shards[shard]], storage)
    corpus.extend(replace(item, shard=numbers[shard]) for shard in new for item in theirs.shards[shard])
    return numbers


def _identity(items: list[MediaItem]) -> bytes:
    """A digest of what makes two shards the same."""
    return hashlib.sha256(repr([(item.key, tuple(item.part), item.kind) for item in items]).encode()).digest()


def _check_disjoint(corpus: Corpus, new: list[MediaItem], storage: Storage) -> None:
    parts = corpus.parts_of([item.key for item in new])
    collisions = [item.key for item, part in zip(new, parts, strict=True) if part not in (None, item.part)]
    if collisions and corpus.stripped != Corpus(new).stripped:
        theirs, ours = ("with their folder", "not") if corpus.stripped else ("without a folder", "so")
        raise UserError(
            f"{storage.url}: names {some(collisions)} {theirs}, the stores before do {ours}: one came by push "
            "--strip-uris; merge the stores before they are pushed, or push both with --strip-uris"
        )
    if collisions:
        raise UserError(
            f"{storage.url}: {len(collisions)} keys name other files than in the stores before: {some(collisions)}; "
            "plan and featurize one of the two under longer paths (keys are made of them), or train on both as sources"
        )
    known = corpus.keys_of([item.part for item in new])
    both = [item.key for item, key in zip(new, known, strict=True) if key is not None]
    if both:
        raise UserError(
            f"{storage.url}: {len(both)} items stand in the stores before too, but in other shards: {some(both)}; "
            "only stores of one plan, or of different files, can be merged"
        )


def _conversations(storage: Storage) -> list[str]:
    return [f"{CONVERSATIONS}/{name}" for name in storage.names(CONVERSATIONS)]


def _join_conversations(talks: dict[str, bytes], storage: Storage, prefix: bool) -> dict[str, str]:
    """The new name of each of a store's conversation files, without those already present with equal bytes."""
    renamed = {}
    for name in _conversations(storage):
        content = storage.read(name)
        folder, stem = name.split("/")
        prefixed = f"{folder}/{storage.url.rsplit('/', 1)[-1]}-{stem}"
        target = prefixed if prefix and talks.get(name, content) != content else name
        if talks.get(target, content) != content:
            hint = "" if prefix else "; --prefix names them after their store"
            raise UserError(f"{storage.where(name)}: other conversations have this name already{hint}")
        if target not in talks:
            renamed[name] = target
        talks[target] = content
    return renamed


def _merge_column(out: Storage, column: Column, incoming: Incoming, advance: Callable[[int], None]) -> list[str]:
    target = create_column(out, column.spec, column.build)
    existing = set(target.shards())
    planned, differing = incoming.corpus.shards, []
    for shard in column.shards():
        sidecar = column.sidecar(shard)
        check_plan(column, sidecar, [item.key for item in planned[shard]] if shard in planned else None)
        number = incoming.shards[shard]
        if number not in existing:
            copy_shard(column, target, sidecar, number)
        elif target.sidecar(number) != replace(sidecar, shard=number):
            kept = target.sidecar(number)
            differing.append(
                f"{target.name} shard {number}: other bytes in {column.storage.url}; those that were there are kept "
                f"({len(kept.failed)} items failed in them, {len(sidecar.failed)} in the other)"
            )
        advance(1)
    return differing
