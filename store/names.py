"""Names that may mean a folder here or a repository of a hub."""

from pathlib import Path

KEPT = ("build", "runs")  # folders in which the shipped configurations keep what is made


def means_folder(name: str) -> bool:
    """Whether a name can only mean a folder of this machine, not `owner/name` of a hub.

    It can if it begins with `.`, `/` or `~`, has more than two parts, or its first part is a folder here.
    """
    first, *rest = name.split("/")
    return name[:1] in tuple("./~") or len(rest) > 1 or bool(rest and (first in KEPT or Path(first).is_dir()))


def is_missing_folder(name: str) -> bool:
    """Whether a name means a folder that does not exist, so that no hub need be asked for it."""
    return means_folder(name) and not Path(name).is_dir()
