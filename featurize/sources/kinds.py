"""What a file is taken for, by its extension."""

from pathlib import PurePosixPath

from store import Kind, UserError

EXTENSIONS: dict[Kind, frozenset[str]] = {
    "video": frozenset(["mp4", "m4v", "mov", "mkv", "webm", "avi", "flv", "wmv", "mpg", "mpeg", "3gp", "ogv", "gif"]),
    "image": frozenset(["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"]),
    "audio": frozenset(["wav", "flac", "ogg", "oga", "opus", "mp3", "m4a", "aac", "wma", "aiff"]),
}


def guess_kind(name: str) -> Kind | None:
    """The kind of a file by its extension, or None if it is no media file that we know."""
    extension = PurePosixPath(name).suffix[1:].lower()
    return next((kind for kind, known in EXTENSIONS.items() if extension in known), None)


def kind_of(name: str, where: str) -> Kind:
    """The kind of a file by its extension.

    Raises:
        UserError: the extension is unknown; names `where` it stands.
    """
    kind = guess_kind(name)
    if kind is None:
        known = "; ".join(f"{k}: {' '.join(sorted(e))}" for k, e in EXTENSIONS.items())
        raise UserError(f"{where}: {name!r} has no media extension; known are {known}")
    return kind
