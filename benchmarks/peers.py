"""The peers of the streaming benchmark: each writes the same samples in its own format, and yields collated batches.

Each is configured as its documentation advises for speed: uncompressed, in order, from a local disk. Batches hold one
contiguous torch tensor for each feature, which worker processes share fastest.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Sample = dict[str, Any]
FEATURES = ("temporal", "spatial.t32")
BATCH = 16
SHARD = 64  # samples in a file, for peers that split the data


class Peer(NamedTuple):
    """A peer: the package whose version is printed, its writer, and its batches with a number of worker processes."""

    package: str
    write: Callable[[Path, list[Sample]], None]
    batches: Callable[[Path, int], Iterable[Any]]


def _loader(dataset: Any, workers: int, **settings: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0, **settings)


class Slices:
    """A map-style dataset of batches, read as slices of arrays; `open_arrays` gives these by name, once per process."""

    def __init__(self, length: int, open_arrays: Callable[[], dict[str, Any]]) -> None:
        self.length, self._open = length, open_arrays
        self._arrays: dict[str, Any] | None = None

    def __len__(self) -> int:
        return -(-self.length // BATCH)

    def __getitem__(self, number: int) -> dict[str, Any]:
        import torch

        if self._arrays is None:
            self._arrays = self._open()
        part = slice(number * BATCH, min((number + 1) * BATCH, self.length))
        return {name: torch.from_numpy(np.asarray(array[part])) for name, array in self._arrays.items()}


def write_webdataset(folder: Path, samples: list[Sample]) -> None:
    """Plain tars."""
    import webdataset

    with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=SHARD, verbose=0) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{number:06d}"} | {f"{name}.npy": array for name, array in sample.items()})


def read_webdataset(folder: Path, workers: int) -> Any:
    """Batched inside the pipeline, as its documentation advises; a loader that does not batch again."""
    import webdataset
    from torch.utils.data import default_collate

    tars = sorted(map(str, folder.glob("*.tar")))
    dataset = webdataset.WebDataset(tars, shardshuffle=False).decode().to_tuple(*(f"{name}.npy" for name in FEATURES))
    dataset = dataset.batched(BATCH, collation_fn=default_collate).map(lambda b: dict(zip(FEATURES, b, strict=True)))
    return webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


def _tensors(sample: Sample) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(array) for name, array in sample.items()}


def write_litdata(folder: Path, samples: list[Sample]) -> None:
    """Tensors in chunks."""
    import litdata

    litdata.optimize(
        _tensors, samples, str(folder), chunk_size=SHARD, num_workers=1, start_method="fork", verbose=False
    )


def read_litdata(folder: Path, workers: int) -> Any:
    """Without its shuffling; items decoded one by one."""
    import litdata

    dataset = litdata.StreamingDataset(str(folder), shuffle=False, batch_decode=1)
    return litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)


def write_mosaic(folder: Path, samples: list[Sample]) -> None:
    """Arrays, with dtype and shape in the index rather than in each sample."""
    from streaming import MDSWriter

    columns = {n: f"ndarray:{a.dtype}:{','.join(map(str, a.shape))}" for n, a in samples[0].items()}
    size = SHARD * sum(array.nbytes for array in samples[0].values())
    with MDSWriter(out=str(folder), columns=columns, size_limit=size) as writer:
        for sample in samples:
            writer.write(sample)


def read_mosaic(folder: Path, workers: int) -> Any:
    """In order, on one node, without a remote."""
    from streaming import StreamingDataset

    links = folder / f"links-{workers}"  # processes of different jobs must not share a folder
    if not links.exists():
        shutil.copytree(folder, links, copy_function=os.link, ignore=shutil.ignore_patterns("links-*"))
    dataset = StreamingDataset(local=str(links), batch_size=BATCH, shuffle=False, num_canonical_nodes=1)
    return _loader(dataset, workers, batch_size=BATCH)


def write_hdf5(folder: Path, samples: list[Sample]) -> None:
    """One contiguous dataset for each feature."""
    import h5py

    with h5py.File(folder / "all.h5", "w") as file:
        for name in samples[0]:
            file.create_dataset(name, data=np.stack([sample[name] for sample in samples]))


def read_hdf5(folder: Path, workers: int) -> Any:
    """A batch is one slice; the file is opened in the process that reads it."""
    import h5py

    def open_arrays() -> dict[str, Any]:
        return dict(h5py.File(folder / "all.h5", "r").items())

    length = open_arrays()["temporal"].shape[0]
    return _loader(Slices(length, open_arrays), workers, batch_size=None)


def write_zarr(folder: Path, samples: list[Sample]) -> None:
    """Shards whose chunks are a batch each."""
    import zarr

    group = zarr.open_group(folder, mode="w")
    for name, first in samples[0].items():
        array = group.create_array(
            name,
            shape=(len(samples), *first.shape),
            dtype=first.dtype,
            chunks=(BATCH, *first.shape),  # a batch is one chunk, so nothing is read in excess
            shards=(SHARD, *first.shape),
            compressors=None,
        )
        array[:] = np.stack([sample[name] for sample in samples])


def read_zarr(folder: Path, workers: int) -> Any:
    """A batch is one slice, which is one chunk."""
    import zarr

    def open_arrays() -> dict[str, Any]:
        return dict(zarr.open_group(folder, mode="r").arrays())

    length = open_arrays()["temporal"].shape[0]
    return _loader(Slices(length, open_arrays), workers, batch_size=None)


PEERS = {
    "webdataset": Peer("webdataset", write_webdataset, read_webdataset),
    "litdata": Peer("litdata", write_litdata, read_litdata),
    "mosaicml-streaming": Peer("mosaicml-streaming", write_mosaic, read_mosaic),
    "HDF5, one file": Peer("h5py", write_hdf5, read_hdf5),
    "zarr, sharded": Peer("zarr", write_zarr, read_zarr),
}


def sizes(batches: Iterable[Any]) -> Iterator[int]:
    """The number of samples in each batch, whose features must be one contiguous array each."""
    for batch in batches:
        assert all(array.is_contiguous() for array in batch.values())
        yield len(batch["temporal"])
