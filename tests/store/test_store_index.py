"""The index of a column: what it says, and what it refuses of sidecars whose checksum is right."""

import os

import numpy as np
import pytest

from store import ColumnReader, DamagedError
from store.index import open_index
from store.sealed import seal_json, unseal_json


def reseal(toy, change):
    """Change the sidecar of shard 0 and give it its checksum again."""
    name = toy.column.path("000000.json")
    content = unseal_json(toy.storage.read(name), 2, name)
    change(content)
    toy.storage.write(name, seal_json(content))


def test_it_says_what_the_sidecars_say(toy):
    """A slip between the lists would read one item's numbers as another's."""
    index, row = open_index(toy.column), 0
    assert index.features == ("spatial.t4", "temporal")
    for shard in toy.column.shards():
        sidecar = toy.column.sidecar(shard)
        assert index.tar(shard) == (sidecar.tar_bytes, sidecar.tar_xxh3)
        for item in sidecar.items:
            assert (index.row(item.key), index.key(row), index.shard[row]) == (row, item.key, shard)
            for number, name in enumerate(index.features):
                entry = item.arrays[name]
                assert index.offset[row, number] == entry.offset
                assert tuple(index.shape[row, number, : len(entry.shape)]) == entry.shape
                assert index.nbytes[row, number] == np.prod(entry.shape) * np.dtype(entry.dtype).itemsize
                assert index.xxh3[row, number] == entry.xxh3
            row += 1
    assert len(index) == row == 5


def test_a_shard_or_column_without_items_opens(build_store, tmp_path):
    """All files of a shard may be unusable."""
    toy = build_store(tmp_path / "store", items=0)
    assert ColumnReader(toy.column).keys() == []
    with toy.column.write_shard(0) as writer:
        writer.fail(toy.lost)
    reader = ColumnReader(toy.column)
    assert (reader.keys(), reader.failed) == ([], {"clip-3": toy.lost})


def test_a_reason_that_looks_like_json_is_only_a_reason(toy):
    """What a decoder said must not be taken for the file's own fields."""
    reason = '],"shard":7,"keys":["x"],"xxh3":"0123456789abcdef"}'

    def change(content):
        content["failed"][0]["reason"] = reason

    reseal(toy, change)
    reader = ColumnReader(toy.column)
    assert reader.failed["clip-3"].reason == reason
    assert len(reader) == 5


def places_of(content):
    return content["arrays"]["temporal"]


def put(values, number, value):
    values[number] = value


@pytest.mark.parametrize(
    "change",
    [
        lambda c: put(places_of(c)["offset"], 1, c["tar_bytes"]),
        lambda c: put(places_of(c)["offset"], 1, -64),
        lambda c: put(places_of(c)["offset"], 1, 1.5),
        lambda c: put(places_of(c)["offset"], 1, 1 << 63),
        lambda c: places_of(c)["offset"].append(0),
        lambda c: put(places_of(c)["shape"], 0, 10**6),
        lambda c: put(places_of(c)["shape"], 0, [1, 1]),
        lambda c: put(places_of(c)["shape"], 0, 1 << 40),
        lambda c: put(places_of(c)["shape"], 1, 5),
        lambda c: places_of(c).update(shape=[4]),
        lambda c: places_of(c).update(dtype="float32"),
        lambda c: places_of(c).update(dtype="object"),
        lambda c: places_of(c).update(xxh3="12"),
        lambda c: places_of(c).update(xxh3=places_of(c)["xxh3"] + "0" * 16),
        lambda c: places_of(c).update(size=[1]),
        lambda c: c["arrays"].pop("temporal"),
        lambda c: c["arrays"].update(audio=places_of(c)),
        lambda c: c.pop("arrays"),
        lambda c: c.update(arrays=[]),
        lambda c: put(c["keys"], 1, "clip-0"),
        lambda c: put(c["keys"], 1, "clip-5"),
        lambda c: c["keys"].append("clip-9"),
        lambda c: c.update(shard=1),
        lambda c: c.update(column="0" * 64),
    ],
)
def test_a_sidecar_that_cannot_be_right_is_refused(toy, change):
    """Wrong offsets, shapes, dtypes or keys never reach a batch, even under a right checksum."""
    reseal(toy, change)
    with pytest.raises(DamagedError, match=r"000000\.json|000001\.json"):
        ColumnReader(toy.column)


def test_a_column_of_many_shards_is_in_the_order_of_their_numbers(toy):
    """Names of six digits sort as text; a seventh digit must not put a shard in front."""
    with toy.column.write_shard(1000000) as writer:
        writer.add("last", toy.arrays(0), {})
    assert ColumnReader(toy.column).keys()[-1] == "last"


def test_a_sidecar_on_s3_takes_one_request(s3, build_store, monkeypatch):
    """To ask for its size first would double the requests, and the time, of opening a column of many shards."""
    import s3fs

    toy = build_store(f"{s3}/{os.urandom(8).hex()}/store", items=6, shard_size=1)
    asked, call = [], s3fs.S3FileSystem._call_s3

    async def counted(self, method, *words, **named):
        asked.append(method)
        return await call(self, method, *words, **named)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    assert toy.column.sidecar(0).keys == ("clip-0",)
    assert asked == ["get_object"]
    asked.clear()
    assert len(ColumnReader(toy.column)) + len(ColumnReader(toy.column).failed) == 6
    assert asked.count("get_object") == 6
    assert set(asked) == {"get_object", "list_objects_v2"}
