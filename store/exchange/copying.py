"""Copy a shard between stores: first the tar, then the sidecar; the checksum is verified on the way."""

from dataclasses import replace
from pathlib import Path

from store.column import Column
from store.errors import DamagedError
from store.shard import shard_name, tar_checksum
from store.sidecar import Sidecar, save_sidecar


def copy_shard(source: Column, target: Column, sidecar: Sidecar, number: int) -> None:
    """Copy the shard of `source` described by `sidecar`, and publish it as shard `number` of `target`.

    Raises:
        DamagedError: the tar that was read or written does not match the sidecar.
    """
    tar, name = source.path(shard_name(sidecar.shard, "tar")), target.path(shard_name(number, "tar"))
    sidecar_name = target.path(shard_name(number, "json"))
    with target.storage.writing(name) as temporary, source.blamed(sidecar.shard):
        try:
            source.storage.fs.get_file(source.storage.path(tar), str(temporary))
        except FileNotFoundError:
            raise DamagedError(f"{source.storage.where(tar)}: the tar is missing") from None
        if temporary.stat().st_size != sidecar.tar_bytes or _checksum(temporary) != sidecar.tar_xxh3:
            raise DamagedError(f"{source.storage.where(tar)}: the tar differs from its checksum")
        target.storage.remove(sidecar_name)  # an old sidecar does not describe the new tar
    written = target.storage.fs.size(target.storage.path(name))
    if written != sidecar.tar_bytes:
        raise DamagedError(f"{target.storage.where(name)}: {written} bytes arrived of {sidecar.tar_bytes}")
    save_sidecar(target.storage, sidecar_name, replace(sidecar, shard=number))


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return tar_checksum(file)
