"""Hashes of keys: equal keys are found in sorted arrays of fixed width, without a table of strings in memory."""

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray


def hash_keys(keys: pa.Array) -> NDArray[np.uint64]:
    """The xxh3-128 of each of N strings as two numbers, uint64 [N, 2]; null is hashed as "".

    128 bits: among a billion keys, two have the same hash with a probability of 1e-21.
    """
    digests = [xxhash.xxh3_128_digest(key or b"") for key in keys.cast(pa.large_binary()).to_pylist()]
    return np.frombuffer(b"".join(digests), ">u8").astype("<u8").reshape(-1, 2)


def find(sorted_hashes: NDArray[np.uint64], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each of M hashes [M, 2] stands among N sorted ones [N, 2], int64 [M]; -1 where it does not.

    The M hashes are looked for in order, so that large sorted arrays are read from front to back.
    """
    first, second = sorted_hashes.T
    order = np.argsort(hashes[:, 0])
    places = np.searchsorted(first, hashes[order, 0])
    wanted = hashes[order]
    while True:  # two hashes that begin alike are neighbours
        inside = places < len(first)
        near = np.zeros(len(places), bool)
        near[inside] = first[places[inside]] == wanted[inside, 0]
        missed = near.copy()
        missed[near] = second[places[near]] != wanted[near, 1]
        if not missed.any():
            break
        places[missed] += 1
    found = np.empty(len(places), np.int64)
    found[order] = np.where(near, places, -1)
    return found


def hash_key(key: str) -> tuple[int, int]:
    """The hash of one string, as `hash_keys`."""
    return divmod(xxhash.xxh3_128_intdigest(key.encode()), 1 << 64)


def find_one(sorted_hashes: NDArray[np.uint64], wanted: tuple[int, int]) -> int:
    """Where one hash stands among N sorted ones [N, 2], or -1. As `find`, which takes longer to begin."""
    first, second = sorted_hashes.T
    place = int(first.searchsorted(np.uint64(wanted[0])))
    while place < len(first) and first.item(place) == wanted[0]:
        if second.item(place) == wanted[1]:
            return place
        place += 1
    return -1


def first_places(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where the first hash equal to each of N [N, 2] stands, int64 [N]."""
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: of equal hashes, the first comes first
    starts = np.flatnonzero(np.append(True, (hashes[order[1:]] != hashes[order[:-1]]).any(1))[: len(order)])
    places = np.empty(len(order), np.int64)
    places[order] = np.repeat(order[starts], np.diff(np.append(starts, len(order))))
    return places


class HashIndex:
    """The numbers of many hashes, such as rows of a table, in 24 bytes each. It may grow while it is asked."""

    def __init__(self) -> None:
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []  # each sorted; the largest come first

    def add(self, hashes: NDArray[np.uint64], numbers: NDArray[np.int64]) -> None:
        """Add N hashes [N, 2] that are not there, with their numbers, int64 [N]."""
        if len(numbers):
            self._runs.append(_sorted(hashes, numbers))
        while len(self._runs) > 1 and len(self._runs[-2][0]) <= 2 * len(self._runs[-1][0]):
            (first, one), (second, other) = self._runs[-2:]
            self._runs[-2:] = [_sorted(np.concatenate([first, second]), np.concatenate([one, other]))]

    def find(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The number of each of M hashes [M, 2], int64 [M]; -1 of one that is not there."""
        found = np.full(len(hashes), -1, np.int64)
        for known, numbers in self._runs:
            places = find(known, hashes)
            found = np.where(places < 0, found, numbers[places])
        return found


def _sorted(hashes: NDArray[np.uint64], numbers: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    order = np.argsort(hashes[:, 0], kind="stable")  # `find` asks for no more
    return hashes[order], numbers[order]
