"""The kind of a file, by its extension."""

import posixpath

from store import Kind, UserError

EXTENSIONS: dict[Kind, frozenset[str]] = {
    "video": frozenset([
        "mp4", "m4v", "mov", "qt", "f4v", "mkv", "mk3d", "webm", "avi", "divx", "flv", "wmv", "asf", "mpg", "mpeg",
        "mpe", "m1v", "m2v", "ts", "mts", "m2ts", "m2t", "vob", "mxf", "3gp", "3g2", "ogv", "rm", "rmvb", "dv", "mjpeg",
        "mjpg", "gif",
    ]),
    "image": frozenset([
        "jpg", "jpeg", "jpe", "jfif", "pjpeg", "png", "apng", "webp", "avif", "bmp", "tif", "tiff", "ppm", "pgm", "pnm",
    ]),
    "audio": frozenset([
        "wav", "wave", "w64", "flac", "ogg", "oga", "opus", "mp3", "mp2", "mpga", "m4a", "m4b", "aac", "ac3", "wma",
        "weba", "mka", "aif", "aiff", "aifc", "caf", "au", "amr", "wv", "tta",
    ]),
}  # fmt: skip
_KINDS = {f".{extension}": kind for kind, known in EXTENSIONS.items() for extension in known}
_RESOURCES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # folders that macOS, Synology and Windows create


def guess_kind(name: str) -> Kind | None:
    """The kind of a file by its extension, or None if the extension is unknown."""
    return _KINDS.get(posixpath.splitext(name)[1].lower())


def is_hidden(path: str) -> bool:
    """Whether a path below a root is hidden or made by the system: `.x`, `._x.jpg`, `__MACOSX/x.jpg`."""
    return any(part.startswith(".") or part in _RESOURCES for part in path.split("/"))


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
