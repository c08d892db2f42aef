"""A folder of media files."""

import fsspec

from featurize.sources.kinds import guess_kind
from featurize.sources.locate import candidate
from store import Candidate


def read_folder(url: str) -> list[Candidate]:
    """All media files below a folder, by name; other files are passed over."""
    fs, root = fsspec.core.url_to_fs(url)
    base = url if "://" in url else root
    names = sorted(str(path).removeprefix(root).lstrip("/") for path in fs.find(root))
    kinds = [(name, guess_kind(name)) for name in names]
    return [candidate(name, base, kind) for name, kind in kinds if kind]
