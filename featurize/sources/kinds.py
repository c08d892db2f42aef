"""What a file is taken for, by its extension."""

import posixpath

from store import Kind, UserError

EXTENSIONS: dict[Kind, frozenset[str]] = {
    "video": frozenset(["mp4", "m4v", "mov", "mkv", "webm", "avi", "flv", "wmv", "mpg", "mpeg", "3gp", "ogv", "gif"]),
    "image": frozenset(["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"]),
    "audio": frozenset(["wav", "flac", "ogg", "oga", "opus", "mp3", "m4a", "aac", "wma", "aiff"]),
}
_KINDS = {f".{extension}": kind for kind, known in EXTENSIONS.items() for extension in known}


def guess_kind(name: str) -> Kind | None:
    """The kind of a file by its extension, or None if it is no media file that we know."""
    return _KINDS.get(posixpath.splitext(name)[1].lower())


def stem_of(name: str) -> str:
    """The name without its media extension; any other ending, such as that of `id_30.000`, stays."""
    return posixpath.splitext(name)[0] if guess_kind(name) else name


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
