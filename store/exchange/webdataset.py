"""Import WebDataset tars made elsewhere: members `<key>.<suffix>.npy` with arrays, and `<key>.json` with facts."""

import contextlib
import io
import json
import posixpath
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from pydantic import JsonValue

from store.errors import UserError
from store.exchange.importing import STORED, Foreign, UnusableError, digest_files, little_endian, make_spec
from store.items import Kind
from store.reader import Arrays
from store.spec import Feature

KINDS: tuple[Kind, ...] = get_args(Kind)
NPY = ".npy"
ARRAY = NPY[1:]
HEADER_BYTES = 4096  # far more than an array's header needs


@dataclass(frozen=True)
class Member:
    """Where a member's bytes lie in a tar."""

    tar: Path
    offset: int
    size: int

    def read(self, count: int | None = None) -> bytes:
        """The member's bytes, or only the first `count`."""
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size if count is None else min(count, self.size))


@dataclass
class Index:
    """The content of the tars.

    Attributes:
        items: for each key, in tar order, the sample's members by suffix.
        ignored: suffixes that are not imported.
    """

    items: dict[str, dict[str, Member]] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)


def index_tars(tars: Sequence[Path], features: Mapping[str, str] | None) -> tuple[Index, dict[str, str]]:
    """Index the samples of the tars, and map each suffix to a feature name; by default `x.npy` maps to `x`.

    Raises:
        UserError: a file is not an uncompressed tar, a key occurs twice, or an expected member is missing.
    """
    index = Index()
    for tar in tars:
        for key, suffix, member in _members(tar):
            sample = index.items.setdefault(key, {})
            if suffix in sample or any(other.tar != tar for other in sample.values()):
                raise UserError(f"{tar}: {key}.{suffix}: this key stands in {next(iter(sample.values())).tar} too")
            sample[suffix] = member
    suffixes = {suffix for sample in index.items.values() for suffix in sample}
    arrays = sorted(suffix for suffix in suffixes if suffix.endswith(NPY) or suffix == ARRAY)
    chosen = dict(features) if features else {suffix: suffix.removesuffix(NPY) for suffix in arrays}
    lacking = chosen.keys() - set(arrays)
    if lacking or not chosen:
        missing = ", ".join(sorted(lacking)) or "arrays"
        raise UserError(f"{tars[0]}: there are no members {missing}; arrays are: {', '.join(arrays) or 'none'}")
    index.ignored = suffixes - chosen.keys() - {"json"}
    return index, chosen


def read_webdataset(
    index: Index,
    features: Mapping[str, str],
    name: str,
    modality: Literal["visual", "audio"],
    about: Mapping[str, JsonValue],
    advance: Callable[[int], None],
) -> Foreign:
    """Describe indexed tars as a column; only the first length of an array may vary between items.

    Args:
        features: feature names, by the suffix of their members.
        about: how the numbers were made, as far as known; stored in the spec.
        advance: called with the number of bytes read.

    Raises:
        UserError: a feature's arrays differ in dtype or width; the message names a member.
    """
    tars = list(dict.fromkeys(member.tar for sample in index.items.values() for member in sample.values()))
    described = {feature: _describe(index, suffix) for suffix, feature in features.items()}
    numerics = {**about, "imported": "webdataset", "sources": digest_files(tars, advance)}
    spec = make_spec(name=name, modality=modality, numerics=numerics, features=described)
    uris = {key: f"{next(iter(sample.values())).tar.absolute()}#{key}" for key, sample in index.items.items()}

    def load(key: str) -> tuple[Arrays, dict[str, JsonValue]]:
        sample = index.items[key]
        arrays = {feature: _array(sample[s], s) for s, feature in features.items() if s in sample}
        return arrays, _facts(sample["json"]) if "json" in sample else {}

    return Foreign(spec, uris, load, _kinds(index))


def _kinds(index: Index) -> dict[str, Kind]:
    """The `kind` in each sample's JSON, which our own tars have."""
    kinds: dict[str, Kind] = {}
    for key, sample in index.items.items():
        with contextlib.suppress(UnusableError):
            label = _facts(sample["json"]).get("kind") if "json" in sample else None
            kinds.update((key, kind) for kind in KINDS if kind == label)
    return kinds


def _members(tar: Path) -> Iterator[tuple[str, str, Member]]:
    """Key, suffix and location of each file in a tar; names are split at the first dot after the folder."""
    try:
        with tarfile.open(tar, "r:") as archive:
            members = archive.getmembers()
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{tar}: {error}; expected an uncompressed tar of WebDataset samples") from None
    by_name = {posixpath.normpath(info.name): info for info in members}
    for info in members:
        folder, slash, base = info.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        suffix = suffix[: -len(ARRAY)] + ARRAY if suffix.lower().endswith(ARRAY) else suffix
        is_link = (info.islnk() or info.issym()) and suffix.endswith((ARRAY, "json"))
        if dot and stem and (info.isfile() or is_link):
            file = _followed(tar, info, by_name)
            yield folder + slash + stem, suffix, Member(tar, file.offset_data, file.size)


def _followed(tar: Path, info: tarfile.TarInfo, by_name: Mapping[str, tarfile.TarInfo]) -> tarfile.TarInfo:
    """Follow a member's links to a plain file, as a link has no bytes of its own.

    Raises:
        UserError: the links lead to no file of the tar, or the file is sparse, so its bytes are not contiguous.
    """
    target: tarfile.TarInfo | None = info
    for _ in by_name:
        if target is None or not (target.islnk() or target.issym()):
            break
        folder = posixpath.dirname(target.name) if target.issym() else ""
        target = by_name.get(posixpath.normpath(posixpath.join(folder, target.linkname)))
    if target is None or not target.isfile() or target.issparse():
        to = f"a link to {info.linkname}, which is no file of this tar" if info.linkname else "a sparse file"
        raise UserError(f"{tar}: {info.name}: {to}; expected plain files (tar --hard-dereference --dereference)")
    return target


def _describe(index: Index, suffix: str) -> Feature:
    """The common shape and dtype of all readable arrays of one suffix."""
    common: tuple[int | None, ...] | None = None
    dtype: Any = None
    for key, sample in index.items.items():
        header = _header(sample[suffix]) if suffix in sample else None
        if header is None:
            continue
        shape, kind = header
        where = f"{sample[suffix].tar}: {key}.{suffix}: {kind} {list(shape)}"
        if kind not in STORED or not shape:
            raise UserError(f"{where}; accepted are arrays of {' or '.join(STORED)}")
        if common is None:
            common, dtype = shape, kind
        if kind != dtype or shape[1:] != common[1:]:
            raise UserError(f"{where}, but the ones before are {dtype} {list(common)}; the first length alone may vary")
        common = (common[0] if common[0] == shape[0] else None, *common[1:])
    if common is None:
        raise UserError(f"no member .{suffix} can be read as an array")
    return Feature(shape=common, dtype=dtype)


def _header(member: Member) -> tuple[tuple[int, ...], str] | None:
    """Shape and dtype from a member's npy header, or None if it has no valid one."""
    head = io.BytesIO(member.read(HEADER_BYTES))
    headers: Any = npy  # numpy's header readers are not typed
    try:
        parse = headers.read_array_header_1_0 if headers.read_magic(head) == (1, 0) else headers.read_array_header_2_0
        shape, _, dtype = parse(head)
    except ValueError:
        return None
    return tuple(int(n) for n in shape), str(dtype.newbyteorder("="))


def _array(member: Member, suffix: str) -> NDArray[Any]:
    try:
        return little_endian(np.load(io.BytesIO(member.read()), allow_pickle=False))
    except (ValueError, EOFError) as error:
        raise UnusableError("empty" if not member.size else "unreadable", f"{suffix}: {error}") from None


def _facts(member: Member) -> dict[str, JsonValue]:
    try:
        facts = json.loads(member.read(), parse_constant=_refuse)
    except ValueError as error:
        raise UnusableError("unreadable", f"json: {error}") from None
    if not isinstance(facts, dict):
        raise UnusableError("unreadable", "json: not an object")
    return facts


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
