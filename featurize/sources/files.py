"""Find media files below a root by path, or by the id that an annotation gives instead."""

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

from featurize.sources.kinds import guess_kind, is_hidden, stem_of
from featurize.sources.listing import file_size, is_web, list_folder, walk
from store import Candidate, Kind

USUAL: dict[Kind, str] = {"video": ".mp4", "image": ".jpg", "audio": ".wav"}  # assumed for a missing file
FEW = 8  # stills that a folder needs to look like a film


class MediaFiles:
    """The files below a media root. Each folder is listed once, when first needed.

    Attributes:
        root: an absolute path or a URL.
        fps: stills per second of folders of stills, None if unknown.
        ambiguous: candidate files by the name looked for, the chosen one first.
    """

    def __init__(self, root: str, fps: float | None = None) -> None:
        self.root = root.rstrip("/") if "://" in root else os.path.abspath(root)
        self.fps = fps
        self.ambiguous: dict[str, list[str]] = {}
        self._folders: dict[str, str] = {}
        self._sizes: dict[str, dict[str, int]] = {}

    def at(self, path: str, kind: Kind) -> Candidate:
        """The file at `path`: absolute, a URL, or below the root. It need not exist: the report lists missing files."""
        uri = self._uri(path)
        folder, _, name = uri.rpartition("/")
        if "://" not in uri:
            folder = self._absolute(folder)
            uri = f"{folder.rstrip('/')}/{name}"
        size = self._size(folder, name)
        if size is not None or not self.folder_kind(path):
            return Candidate(name=path, uri=uri, kind=kind, bytes=size)
        return Candidate(name=path, uri=uri, kind="video", bytes=_stills(uri), fps=self.fps)

    def folder_kind(self, path: str) -> Kind | None:
        """`video` if a path without an extension leads to a folder of stills, the frames of a film."""
        return "video" if not guess_kind(path) and _stills(self._uri(path)) else None

    def named(self, names: Sequence[str], kinds: Sequence[Kind] = ("video",)) -> Candidate:
        """The first of `names` that exists: the end of a path below the root, with or without an extension.

        If several files match a name, the exact name comes before another extension, then the earlier kind, then the
        shorter path; a folder of stills counts as a video of that name. If none exists, the first name is returned.

        Args:
            names: possible names of the file, most exact first.
            kinds: accepted kinds, preferred first.
        """
        for name in names:
            outside = self._outside(name)
            if not outside and (path := self._find(name, kinds)):
                return self._below(path, guess_kind(path) or "video")
            if outside and (candidate := self._there(name, kinds)).bytes is not None:
                return candidate
        return self._there(names[0], kinds)

    def under(self, folder: str, path: str) -> list[str]:
        """`path` below a folder of the root; empty if it is absolute, a URL or leads out of the root."""
        return [] if self._outside(path) else [f"{folder}/{path}"]

    def all(self) -> Iterator[Candidate]:
        """All media files below the root, sorted by name; other files are skipped.

        With `fps`, each folder of numbered stills becomes one film instead of its stills.
        """
        films = set(self.numbered(2)) if self.fps else set()
        for path in sorted([*self._tree, *films]):
            kind = guess_kind(path)
            if path in films:
                yield self._below(path, "video")
            elif kind and not (kind == "image" and posixpath.dirname(path) in films):
                yield self._below(path, kind)

    def numbered(self, few: int = FEW) -> list[str]:
        """The folders, sorted by name, of at least `few` stills that are numbered like the frames of a film."""
        names: dict[str, list[str]] = {}
        for path in self._tree:
            if guess_kind(path) == "image":
                names.setdefault(posixpath.dirname(path), []).append(posixpath.splitext(posixpath.basename(path))[0])
        return sorted(folder for folder, stems in names.items() if len(stems) >= few and _are_numbered(stems))

    def passed_over(self) -> dict[str, int]:
        """Number of files below the root that are no media, by extension, and of hidden ones."""
        names = (posixpath.splitext(path)[1].lower() or "no extension" for path in self._tree if not guess_kind(path))
        hidden = Counter({"hidden": len(self._files) - len(self._tree)})
        return dict((+hidden + Counter(names)).most_common())

    @cached_property
    def _stills_by_folder(self) -> dict[str, int]:
        """Total bytes of the stills in each folder that holds some, by its path below the root."""
        folders: Counter[str] = Counter()
        for path, size in self._tree.items():
            if guess_kind(path) == "image":
                folders[posixpath.dirname(path)] += size
        return dict(folders)

    @cached_property
    def _files(self) -> dict[str, int]:
        return {} if is_web(self.root) else dict(walk(self.root))

    @cached_property
    def _tree(self) -> dict[str, int]:
        return {path: size for path, size in self._files.items() if not is_hidden(path)}

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        paths: dict[str, list[str]] = {}
        for path in self._tree:
            if guess_kind(path):
                paths.setdefault(posixpath.basename(stem_of(path)), []).append(path)
        for folder in filter(None, self._stills_by_folder):
            paths.setdefault(posixpath.basename(folder), []).append(folder)
        return paths

    def _find(self, name: str, kinds: Sequence[Kind]) -> str | None:
        name = posixpath.normpath(name)
        ranked = []
        for path in self._by_stem.get(posixpath.basename(stem_of(name)), ()):
            kind = guess_kind(path)
            if _ends(stem_of(path), stem_of(name)) and (kind or "video") in kinds:
                rank = (not _ends(path, name), kind is None, kinds.index(kind or "video"))
                ranked.append((rank, path.count("/"), path))
        ranked.sort()
        equal = [path for rank, _, path in ranked if rank == ranked[0][0]]
        if len(equal) > 1:
            self.ambiguous[name] = equal
        return equal[0] if equal else None

    def _below(self, path: str, kind: Kind) -> Candidate:
        uri = f"{self.root.rstrip('/')}/{path}".rstrip("/")
        if path in self._tree:
            return Candidate(name=path, uri=uri, kind=kind, bytes=self._tree[path])
        name = path or posixpath.basename(uri)
        return Candidate(name=name, uri=uri, kind=kind, bytes=self._stills_by_folder[path], fps=self.fps)

    def _there(self, name: str, kinds: Sequence[Kind]) -> Candidate:
        name = name if guess_kind(name) else name + USUAL[kinds[0]]
        return self.at(name, guess_kind(name) or kinds[0])

    def _uri(self, path: str) -> str:
        if "://" in path or "://" not in self.root:
            return path if "://" in path else os.path.join(self.root, path)
        if path.startswith("/"):
            return path
        scheme, _, root = self.root.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(root, path)) if '..' in path else f'{root}/{path}'}"

    def _outside(self, name: str) -> bool:
        return "://" in name or name.startswith("/") or posixpath.normpath(name).startswith("..")

    def _absolute(self, folder: str) -> str:
        if folder not in self._folders:
            self._folders[folder] = os.path.abspath(folder or "/")
        return self._folders[folder]

    def _size(self, folder: str, name: str) -> int | None:
        if is_web(folder):
            return file_size(f"{folder}/{name}")
        if folder not in self._sizes:
            self._sizes[folder] = list_folder(folder)
        return self._sizes[folder].get(name)


def _stills(folder: str) -> int | None:
    """Total bytes of the stills in a folder, None if it holds none."""
    listed = {} if is_web(folder) else list_folder(folder)
    return sum(size for name, size in listed.items() if guess_kind(name) == "image" and not is_hidden(name)) or None


def _are_numbered(stems: Sequence[str]) -> bool:
    """Whether names differ only by the number at their end."""
    prefixes = {stem.rstrip("0123456789") for stem in stems}
    return len(prefixes) == 1 and all(stem[-1:].isdigit() for stem in stems)


def _ends(path: str, tail: str) -> bool:
    return path == tail or path.endswith(f"/{tail}")
