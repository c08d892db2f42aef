"""Clear a store of columns that nobody wants, and of what killed runs left behind."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from store.column import FOLDER, list_columns
from store.conversation import FOLDER as CONVERSATIONS
from store.conversation import load_conversations
from store.errors import UserError
from store.publish import TEMPORARY
from store.storage import Storage

Why = Literal["not wanted", "no column.json", "tar without its sidecar", "temporary file"]

OURS = re.compile(r"column\.json|\d+\.(tar|json)")  # whatever else lies in a column's folder stays


@dataclass(frozen=True)
class Rubbish:
    """Files that go together.

    Attributes:
        name: a column's folder, or a single file.
        files: paths from the store's root, in the order in which they are removed.
        bytes: of all of them.
    """

    name: str
    why: Why
    files: tuple[str, ...]
    bytes: int


def find_rubbish(storage: Storage, keep: Sequence[str], remove: Sequence[str]) -> list[Rubbish]:
    """What would go: columns named by `remove`, or all but those of `keep`; and leftovers in any case.

    A column is named by its encoder's name, which means all that have it, or by `name.digest`. One that lost its
    column.json but has shards is damaged, not a leftover: it goes only if it is named.

    Raises:
        UserError: a name is that of no column, or both lists are given.
    """
    if keep and remove:
        raise UserError("give either --keep or --remove")
    sizes = _sizes(storage)
    folders = storage.names(FOLDER)
    wanted, unwanted = _named(storage, folders, keep), _named(storage, folders, remove)
    unwanted |= set(folders) - wanted if keep else set()
    found = [_leftover(name, "temporary file", sizes) for name in sizes if TEMPORARY in name.rpartition("/")[2]]
    for folder in folders:
        inside = f"{FOLDER}/{folder}/"
        files = sorted(name for name in sizes if name.startswith(inside) and OURS.fullmatch(name[len(inside) :]))
        if folder in unwanted:
            found.append(_column(folder, "not wanted", files, sizes))
        elif not any(name.endswith(".json") for name in files):
            found.append(_column(folder, "no column.json", files, sizes))
        else:
            tars = (name for name in files if name.endswith(".tar") and _sidecar(name) not in sizes)
            found += [_leftover(name, "tar without its sidecar", sizes) for name in tars]
    return found


def clear(storage: Storage, rubbish: Iterable[Rubbish]) -> None:
    """Remove it. Of a column the sidecars go first: a kill on the way leaves a sound column with fewer shards."""
    for heap in rubbish:
        for name in heap.files:
            storage.remove(name)
        folder = Path(storage.path(heap.name))
        if storage.local and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def orphaned(storage: Storage, rubbish: Iterable[Rubbish]) -> list[str]:
    """A line for each set of conversations that asks by a sense of which no column would be left."""
    going = {heap.name for heap in rubbish}
    columns = list_columns(storage)
    senses = {column.spec.modality for column in columns}
    left = {column.spec.modality for column in columns if f"{FOLDER}/{column.name}" not in going}
    lines = []
    for name in [file.removesuffix(".parquet") for file in storage.names(CONVERSATIONS)]:
        talks = load_conversations(storage, name)
        for sense in sorted(senses - left):
            count = sum(talk.modality in (sense, "audio_visual") for talk in talks)
            if count:
                lines.append(f"{count} conversations of {name} ask by the {sense} sense, and no such column is left")
    return lines


def _sizes(storage: Storage) -> dict[str, int]:
    found = storage.fs.find(storage.root, detail=True)
    return {str(path)[len(storage.root) :].lstrip("/"): int(info["size"]) for path, info in found.items()}


def _named(storage: Storage, folders: Sequence[str], names: Sequence[str]) -> set[str]:
    chosen: set[str] = set()
    for name in names:
        matches = {folder for folder in folders if name in (folder, folder.rpartition(".")[0])}
        if not matches:
            raise UserError(f"{storage.url}: there is no column {name!r}; it has: {', '.join(folders) or 'none'}")
        chosen |= matches
    return chosen


def _column(folder: str, why: Why, files: Sequence[str], sizes: dict[str, int]) -> Rubbish:
    """A whole column: its sidecars first, then its tars, and its column.json last, by which it is named again."""
    order = sorted(files, key=lambda name: (name.endswith("column.json"), name.endswith(".tar"), name))
    return Rubbish(f"{FOLDER}/{folder}", why, tuple(order), sum(sizes[name] for name in files))


def _leftover(name: str, why: Why, sizes: dict[str, int]) -> Rubbish:
    return Rubbish(name, why, (name,), sizes[name])


def _sidecar(tar: str) -> str:
    return tar.removesuffix(".tar") + ".json"
