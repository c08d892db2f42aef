"""Garbage collection: remove unwanted columns, and the leftovers of killed runs.

A file that is being written looks like a leftover: what protects it is its writer's lock, which `store gc --yes` takes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from store.column import FOLDER, list_columns
from store.conversation import FOLDER as CONVERSATIONS
from store.errors import UserError
from store.mapped import count_modalities
from store.publish import TEMPORARY
from store.storage import Storage
from store.verify import IN_COLUMN

Why = Literal["not wanted", "no column.json", "tar without its sidecar", "temporary file"]


@dataclass(frozen=True)
class Rubbish:
    """Files that are removed together.

    Attributes:
        name: a column's folder, or a single file.
        why: the reason for the removal.
        files: paths relative to the store's root, in order of removal.
        bytes: total size of the files.
    """

    name: str
    why: Why
    files: tuple[str, ...]
    bytes: int


def find_temporary(storage: Storage) -> list[Rubbish]:
    """List the temporary files."""
    sizes = _sizes(storage)
    names = (name for name in sizes if name.rpartition("/")[2].startswith(TEMPORARY))
    return [_leftover(name, "temporary file", sizes) for name in names]


def find_rubbish(storage: Storage, keep: Sequence[str], remove: Sequence[str]) -> list[Rubbish]:
    """List the columns in `remove`, or all columns not in `keep`, and always the leftovers but for temporary files.

    A name is `name.digest`, or an encoder's name, which selects all its columns. A column that has sidecars but lost
    its `column.json` is damaged, not a leftover: it is removed only as an unwanted column.

    Raises:
        UserError: a name matches no column, or both lists are given.
    """
    if keep and remove:
        raise UserError("give either --keep or --remove")
    sizes = _sizes(storage)
    folders = storage.names(FOLDER)
    kept, unwanted = _named(storage, folders, keep), _named(storage, folders, remove)
    unwanted |= set(folders) - kept if keep else set()
    rubbish: list[Rubbish] = []
    for folder in folders:
        inside = f"{FOLDER}/{folder}/"
        files = sorted(name for name in sizes if name.startswith(inside) and IN_COLUMN.fullmatch(name[len(inside) :]))
        if folder in unwanted:
            rubbish.append(_column(folder, "not wanted", files, sizes))
        elif not any(name.endswith(".json") for name in files):
            rubbish.append(_column(folder, "no column.json", files, sizes))
        else:
            tars = (name for name in files if name.endswith(".tar") and _sidecar(name) not in sizes)
            rubbish += [_leftover(name, "tar without its sidecar", sizes) for name in tars]
    return rubbish


def clear(storage: Storage, rubbish: Iterable[Rubbish]) -> None:
    """Remove the files. A column's sidecars go first, so a kill midway leaves a sound column with fewer shards."""
    for heap in rubbish:
        for name in heap.files:
            storage.remove(name)
        folder = Path(storage.path(heap.name))
        if storage.local and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def orphaned(storage: Storage, rubbish: Iterable[Rubbish]) -> list[str]:
    """A warning line for each conversation file and modality whose last column would be removed."""
    going = {heap.name for heap in rubbish}
    columns = list_columns(storage)
    senses = {column.spec.modality for column in columns}
    left = {column.spec.modality for column in columns if f"{FOLDER}/{column.name}" not in going}
    lines = []
    for name in [file.removesuffix(".parquet") for file in storage.names(CONVERSATIONS)]:
        counts = count_modalities(storage, name)
        for sense in sorted(senses - left):
            count = counts[sense] + counts["audio_visual"]
            if count:
                lines.append(f"{count} conversations of {name} ask by the {sense} sense, and no such column is left")
    return lines


def _sizes(storage: Storage) -> dict[str, int]:
    listing = storage.fs.find(storage.root, detail=True)
    return {str(path)[len(storage.root) :].lstrip("/"): int(info["size"]) for path, info in listing.items()}


def _named(storage: Storage, folders: Sequence[str], names: Sequence[str]) -> set[str]:
    chosen: set[str] = set()
    for name in names:
        matches = {folder for folder in folders if name in (folder, folder.rpartition(".")[0])}
        if not matches:
            raise UserError(f"{storage.url}: there is no column {name!r}; it has: {', '.join(folders) or 'none'}")
        chosen |= matches
    return chosen


def _column(folder: str, why: Why, files: Sequence[str], sizes: dict[str, int]) -> Rubbish:
    """A whole column: sidecars first, then tars, and `column.json` last, so that a rerun still finds the column."""
    order = sorted(files, key=lambda name: (name.endswith("column.json"), name.endswith(".tar"), name))
    return Rubbish(f"{FOLDER}/{folder}", why, tuple(order), sum(sizes[name] for name in files))


def _leftover(name: str, why: Why, sizes: dict[str, int]) -> Rubbish:
    return Rubbish(name, why, (name,), sizes[name])


def _sidecar(tar: str) -> str:
    return tar.removesuffix(".tar") + ".json"
