"""What can be refused before torch is imported, so that a mistake is told at once."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

from store import ColumnReader, Kind, Sense, Storage, UserError, open_column
from store.items import CORPUS, check_is_store
from store.show import find_item
from trainer.checkpoint.info import FOLDER, CheckpointInfo, is_checkpoint, read_info

ORDER = "; the order is CHECKPOINT STORE"
PROJECTORS = Path(FOLDER) / "projectors.safetensors"
ABSENT: dict[Sense, str] = {"visual": "no video stream", "audio": "no audio stream"}


def check_checkpoint(checkpoint: str | Path, order: str = "") -> CheckpointInfo:
    """The metadata of a checkpoint, whose files are there and whole as far as their headers tell.

    Args:
        checkpoint: its folder.
        order: said after a store that was given in its place.

    Raises:
        UserError: names the file.
        ModuleNotFoundError: a package is missing that loading it takes.
    """
    check_packages("torch", "transformers", "safetensors")
    folder = Path(checkpoint)
    if (folder / CORPUS).exists():
        raise UserError(f"{folder}: is a store, not a checkpoint{order}")
    config = folder / FOLDER / "config.json"
    try:
        info = read_info(folder)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{config}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):  # not JSON, or no object
        raise UserError(f"{config}: damaged; copy the checkpoint again") from None
    if not (folder / PROJECTORS).exists():
        raise UserError(f"{folder / PROJECTORS}: no such file; copy the checkpoint again")
    for path in (folder / PROJECTORS, *sorted(folder.glob("*.safetensors"))):
        _check_weights(path)
    return info


def check_packages(*names: str) -> None:
    """Miss optional packages before what is given is looked at; they are imported later.

    Raises:
        ModuleNotFoundError: one is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open  # an optional package, as those of media are

    try:
        with safe_open(path, "np"):
            return
    except SafetensorError:
        raise UserError(f"{path}: damaged or cut; copy the checkpoint again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def check_store(store: str, info: CheckpointInfo, senses: Sequence[Sense] | None = None, order: str = "") -> Storage:
    """A store that is there, and has the columns of a checkpoint.

    Args:
        store: its folder or URL.
        info: of the checkpoint.
        senses: whose columns are needed; None for all of the checkpoint's.
        order: said after a checkpoint that was given in its place.

    Raises:
        UserError: it is none, or lacks a column.
    """
    storage = open_store(store, order)
    for sense in senses_of(info) if senses is None else senses:
        open_column(storage, info.columns[sense].folder)
    return storage


def open_store(store: str, order: str = "") -> Storage:
    """A store that is there; see `check_store`."""
    if is_checkpoint(store):
        raise UserError(f"{store}: is a checkpoint, not a store{order}")
    storage = Storage(store)
    check_is_store(storage)
    return storage


def senses_of(info: CheckpointInfo) -> list[Sense]:
    """The senses that a checkpoint was trained with."""
    return [sense for sense in get_args(Sense) if sense in info.columns]


def check_senses(info: CheckpointInfo, senses: Sequence[Sense]) -> None:
    """Refuse senses that a checkpoint was not trained with.

    Raises:
        UserError: names the first.
    """
    for sense in senses:
        if sense not in info.columns:
            raise UserError(f"this checkpoint was trained without a {sense} column")


def check_item(store: str, key: str, info: CheckpointInfo, chosen: Sequence[Sense]) -> None:
    """Refuse an item that its store lacks, or that has no features of a chosen sense.

    Raises:
        UserError: names the item.
    """
    check_senses(info, chosen)
    storage = check_store(store, info, chosen or None)
    find_item(storage, key)
    for sense in chosen:
        reader = ColumnReader(open_column(storage, info.columns[sense].folder))
        if key in reader.failed:
            raise UserError(f"{key}: {sense}: {reader.failed[key].reason}")


def check_medium(media: str, info: CheckpointInfo, chosen: Sequence[Sense]) -> None:
    """Refuse a raw file that cannot be opened, or whose header shows nothing to ask about. URLs are not opened.

    Args:
        media: the file.
        info: of the checkpoint.
        chosen: senses that the file has to have; without any, one that the checkpoint was trained with will do.

    Raises:
        UserError: names the file.
    """
    check_senses(info, chosen)
    kind, senses = kind_of_file(media), chosen or senses_of(info)
    if "://" in media:
        return
    from featurize.media import MediaError  # PyAV takes a moment, too

    try:
        there = _senses_in(media, kind)
    except MediaError as error:
        raise UserError(f"{media}: not a usable {kind} file: {error}") from None
    lacking = [sense for sense in senses if sense not in there]
    if lacking and (chosen or lacking == senses):
        raise UserError(f"{media}: {'; '.join(f'{sense}: {ABSENT[sense]}' for sense in lacking)}")


def kind_of_file(media: str) -> Kind:
    """What a raw file is read as, by its extension.

    Raises:
        UserError: it is not there, is a folder or may not be read, or the extension is unknown.
    """
    if "://" not in media:
        if not os.path.exists(media):
            raise UserError(f"{media}: no such file")
        if os.path.isdir(media):
            raise UserError(f"{media}: is a folder; expected a video, an image or a sound file")
        if not os.access(media, os.R_OK):
            raise UserError(f"{media}: cannot be read: Permission denied")
    from featurize.sources.kinds import guess_kind  # evaluation asks about stores alone, and imports no featurizer

    kind = guess_kind(media)
    if kind is None:
        raise UserError(f"{media}: not a video, image or sound by its extension; accepted: .mp4, .jpg, .wav and others")
    return kind


def _senses_in(media: str, kind: Kind) -> set[Sense]:
    """The senses for which the header of a file names a stream."""
    from featurize.media.file import open_container, picture_of
    from featurize.media.image import open_image

    if kind == "image":
        with open_image(media):
            return {"visual"}
    with open_container(media) as container:
        there: set[Sense] = {"audio"} if container.streams.audio else set()
        return there | {"visual"} if kind == "video" and picture_of(container) else there


def check_output(path: Path, *, is_folder: bool = False) -> None:
    """Refuse an `--out` that cannot be written. Folders on its way need not be there.

    Raises:
        UserError: names what stands in its way.
    """
    there = next(str(place) for place in (path, *path.parents) if os.path.exists(place))
    if there == str(path) and os.path.isdir(path) != is_folder:
        raise UserError(f"--out {path}: is a {'file' if is_folder else 'folder'}; name a "
                        f"{'folder' if is_folder else 'file'}")  # fmt: skip
    if there != str(path) and not os.path.isdir(there):
        raise UserError(f"--out {path}: {there} is a file, not a folder")
    if not os.access(there, os.W_OK):
        raise UserError(f"--out {path}: {there} cannot be written; name another place")
