"""Push a store to a dataset repository of a model hub. A pull reads it through the hub's fsspec file system."""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from store.column import Column
from store.errors import UserError
from store.exchange.transfer import CARD, Cargo, check_extends
from store.shard import shard_name
from store.sidecar import Sidecar
from store.storage import Storage

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT_SHARDS = 50  # maximum per commit: an interrupted push loses at most one commit
COMMIT_BYTES = 10 << 30


def is_repository(target: str) -> bool:
    """Whether a target is a hub's `owner/name`, not a URL or a folder (written `./folder/store`)."""
    return bool(REPOSITORY.fullmatch(target)) and not Path(target).exists()


def repository_url(repository: str) -> str:
    """The fsspec URL of a dataset repository."""
    _hub()
    return f"hf://datasets/{repository}"


def send_to_hub(source: Storage, repository: str, cargo: Cargo, *, public: bool, advance: Callable[[int], None]) -> int:
    """Commit what the repository lacks; return the number of shards sent. Each shard's tar and sidecar share a commit.

    Args:
        public: make a newly created repository public; an existing one keeps its visibility.

    Raises:
        UserError: the store is not on a local disk, the hub refuses, or the repository holds another store.
    """
    hub = _hub()
    if not source.local:
        raise UserError(f"{source.url}: a hub takes files from a local disk; pull the store to one first")
    api = hub.HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=not public, exist_ok=True)
        check_extends(Storage(repository_url(repository)), cargo.corpus)
        tree = api.list_repo_tree(repository, recursive=True, repo_type="dataset")
        files = {file.path: file for file in tree if hasattr(file, "blob_id")}
        return _commit_all(_Repository(api, repository, files), source, cargo, advance)
    except _refusals(hub) as error:
        raise UserError(f"{repository}: {' '.join(str(error).split()) or type(error).__name__}") from None


class _Repository:
    """A repository and the files that it already holds."""

    def __init__(self, api: Any, name: str, there: dict[str, Any]) -> None:
        self._api, self._name, self._there = api, name, there

    def has(self, path: str, content: bytes) -> bool:
        """Whether the repository has this exact file: by git blob id, or by SHA-256 for an LFS file."""
        file = self._there.get(path)
        if file is None:
            return False
        if file.lfs:
            return bool(file.lfs.sha256 == hashlib.sha256(content).hexdigest())
        return bool(file.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())

    def has_shard(self, column: Column, sidecar: Sidecar) -> bool:
        """Whether the repository has this exact shard: an equal sidecar, and a tar of the same size."""
        sidecar_name = column.path(shard_name(sidecar.shard, "json"))
        tar = self._there.get(column.path(shard_name(sidecar.shard, "tar")))
        sized = tar is not None and tar.size == sidecar.tar_bytes
        return sized and self.has(sidecar_name, column.storage.read(sidecar_name))

    def commit(self, files: dict[str, bytes | str], message: str, advance: Callable[[int], None] | None = None) -> None:
        """Commit contents (bytes) and local files (paths as str); contents that are already there are skipped.

        Args:
            advance: called with 1 after each tar is uploaded.
        """
        from huggingface_hub import CommitOperationAdd

        new = []
        for path, content in files.items():
            if isinstance(content, str) or not self.has(path, content):
                new.append(CommitOperationAdd(path_in_repo=path, path_or_fileobj=content))
            if advance and path.endswith(".tar"):
                self._api.preupload_lfs_files(self._name, new[-1:], repo_type="dataset")
                advance(1)
        if new:
            self._api.create_commit(self._name, new, commit_message=message, repo_type="dataset")


def _commit_all(repository: _Repository, source: Storage, cargo: Cargo, advance: Callable[[int], None]) -> int:
    specs = (column.path("column.json") for column, _ in cargo.columns.values())
    repository.commit({**cargo.tables, **{name: source.read(name) for name in specs}}, "Plan, conversations, specs")
    sent = 0
    for batch in _batches(repository, cargo, advance):
        files: dict[str, bytes | str] = {}
        for column, shard in batch:
            for suffix in ("tar", "json"):
                files[column.path(shard_name(shard, suffix))] = source.path(column.path(shard_name(shard, suffix)))
        repository.commit(files, f"{len(batch)} shards", advance)
        sent += len(batch)
    if cargo.card:
        repository.commit({CARD: cargo.card}, "Card")
    return sent


def _batches(
    repository: _Repository, cargo: Cargo, advance: Callable[[int], None]
) -> Iterator[list[tuple[Column, int]]]:
    """The shards that the repository lacks, grouped into commits."""
    batch: list[tuple[Column, int]] = []
    size = 0
    for column, shard in cargo.numbered():
        sidecar = column.sidecar(shard)
        if repository.has_shard(column, sidecar):
            advance(1)
            continue
        if batch and (len(batch) == COMMIT_SHARDS or size + sidecar.tar_bytes > COMMIT_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((column, shard))
        size += sidecar.tar_bytes
    if batch:
        yield batch


def _refusals(hub: Any) -> tuple[type[Exception], ...]:
    """What the client raises if the hub refuses or is unreachable, whichever HTTP library the client uses."""
    return (*hub.errors.HfHubHTTPError.__bases__, OSError)


def _hub() -> Any:
    try:
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise UserError("a hub needs the package huggingface_hub; pip install 'avllm[featurize]'") from None
    disable_progress_bars()  # our own progress bar counts shards
    return huggingface_hub
