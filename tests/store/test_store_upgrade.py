"""Sidecars of format 1: read as before, and upgraded without loss through any kill."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from store import ColumnReader, DamagedError, column_stats, verify_column
from store.sealed import seal_json
from store.sidecar import parse_sidecar

KILLS = 20 if "AVLLM_LONG" in os.environ else 4
SHARDS = 200
OLD = {  # written by the version before; column, tar and shard are `build`'s
    "000000.json": """{"column":"f51b1c769cc85653c74582c737b8d7468a332c1075a7097c34fa40aa59619728","failed":[{"code":\
"unreadable","key":"clip-3","reason":"moov atom not found"}],"format":1,"items":[{"arrays":{"spatial.t4":{"dtype":\
"float32","offset":1664,"shape":[3],"xxh3":"a2178b3d1b1ae2ab"},"temporal":{"dtype":"float16","offset":640,"shape":\
[3,4],"xxh3":"b489c607f92c0092"}},"key":"clip-0"},{"arrays":{"spatial.t4":{"dtype":"float32","offset":4736,"shape":\
[3],"xxh3":"a50746c095063af0"},"temporal":{"dtype":"float16","offset":3712,"shape":[1,4],"xxh3":"1087953e1cc1ec12"}},\
"key":"clip-1"},{"arrays":{"spatial.t4":{"dtype":"float32","offset":7808,"shape":[3],"xxh3":"dc4489798abacf7b"},\
"temporal":{"dtype":"float16","offset":6784,"shape":[0,4],"xxh3":"2d06800538d394c2"}},"key":"clip-2"}],"shard":0,\
"tar_bytes":10240,"tar_xxh3":"0673f08df3b2c35707abeb72d3667252","xxh3":"658e4d127688361c"}""",
    "000001.json": """{"column":"f51b1c769cc85653c74582c737b8d7468a332c1075a7097c34fa40aa59619728","failed":[],\
"format":1,"items":[{"arrays":{"spatial.t4":{"dtype":"float32","offset":1664,"shape":[3],"xxh3":"606ca17ab267f79e"},\
"temporal":{"dtype":"float16","offset":640,"shape":[5,4],"xxh3":"76347e7edd97e45c"}},"key":"clip-4"},{"arrays":\
{"spatial.t4":{"dtype":"float32","offset":4736,"shape":[3],"xxh3":"b52e2b18261b1088"},"temporal":{"dtype":"float16",\
"offset":3712,"shape":[1,4],"xxh3":"2e65c23484b5b838"}},"key":"clip-5"}],"shard":1,"tar_bytes":10240,"tar_xxh3":\
"fcfc9013c958b96fb7bd6a9799b468fa","xxh3":"f902f3aac90159b7"}""",
}
OLD_TEXTS = """{"column":"b4ce12a530673594e46bbf96b49e6e80314eb6fa85a5af077f212f14a1893f88","failed":[],"format":1,\
"items":[{"arrays":{"caption":{"dtype":"text","offset":512,"shape":[2],"size":54,"xxh3":"9892a2e2fc64cf8a"},"score":\
{"dtype":"float32","offset":1664,"shape":[2],"xxh3":"774376da7ad20e6b"}},"key":"clip-4"},{"arrays":{"caption":{"dtype":\
"text","offset":3584,"shape":[0],"size":2,"xxh3":"831154110e30ac6a"},"score":{"dtype":"float32","offset":4736,"shape":\
[2],"xxh3":"774376da7ad20e6b"}},"key":"clip-5"}],"shard":1,"tar_bytes":10240,"tar_xxh3":\
"2c2bb9ee1b0df828f3b81c43dc31084c","xxh3":"00f7dd47615e4b05"}"""


@pytest.fixture
def old(toy):
    """The toy store as the version before wrote it, and the sidecars of today."""
    new = {name: toy.storage.read(toy.column.path(name)) for name in OLD}
    for name, content in OLD.items():
        toy.storage.write(toy.column.path(name), content.encode())
    return toy, new


def sidecars_of(toy):
    return {name: toy.storage.read(toy.column.path(name)) for name in OLD}


def is_sound(toy):
    return not [checked.fault for checked in verify_column(toy.column, toy.corpus) if checked.fault]


def test_a_store_of_format_1_is_read_as_it_is(old):
    """Whoever may not write to a store trains on it all the same."""
    toy, _ = old
    reader = ColumnReader(toy.column)
    assert reader.keys() == ["clip-0", "clip-1", "clip-2", "clip-4", "clip-5"]
    assert dict(reader.failed) == {"clip-3": toy.lost}
    for key in ("clip-0", "clip-1", "clip-2", "clip-4", "clip-5"):
        for name, array in toy.arrays(int(key[5:])).items():
            np.testing.assert_array_equal(reader.read(key)[name], array)
            np.testing.assert_array_equal(toy.column.load_item(0 if key < "clip-3" else 1, key)[name], array)
    assert is_sound(toy)
    assert column_stats(toy.column, toy.corpus).usable == 5


def test_an_upgrade_writes_what_is_written_today(old, command):
    toy, new = old
    before = sidecars_of(toy)
    status, said, _ = command("upgrade", toy.storage.url, "--dry-run")
    assert (status, sidecars_of(toy)) == (0, before)
    assert "2 would be upgraded, 0 are of format 2" in said
    ColumnReader(toy.column)
    status, said, _ = command("upgrade", toy.storage.url)
    assert (status, sidecars_of(toy)) == (0, new)
    assert "2 are upgraded, 0 are of format 2" in said
    assert ColumnReader(toy.column).read("clip-4").keys() == {"temporal", "spatial.t4"}
    assert is_sound(toy)
    status, said, _ = command("upgrade", toy.storage.url)
    assert (status, sidecars_of(toy)) == (0, new)
    assert "0 are upgraded, 2 are of format 2" in said


def test_texts_are_the_same_in_both_formats():
    texts = parse_sidecar(OLD_TEXTS.encode(), "x")
    entry = texts.items[0].arrays["caption"]
    assert (entry.dtype, entry.offset, entry.shape, entry.nbytes) == ("text", 512, (2,), 54)
    assert parse_sidecar(seal_json(texts.dump()), "x") == texts


def changed(change):
    content = {name: value for name, value in json.loads(OLD["000000.json"]).items() if name != "xxh3"}
    change(content)
    return seal_json(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["items"][1]["arrays"].pop("temporal"),
        lambda c: c["items"][0]["arrays"]["temporal"].update(dtype="float32"),
        lambda c: c["items"][0]["arrays"]["temporal"].update(shape=[12]),
        lambda c: c["items"][0]["arrays"]["temporal"].update(xxh3="12"),
        lambda c: c["items"][0]["arrays"]["temporal"].update(offset=10240),
        lambda c: c["items"][0].pop("key"),
        lambda c: c.update(items={"a": 1}),
        lambda c: c.pop("items"),
    ],
)
def test_what_cannot_be_right_is_refused(old, change, command):
    toy, _ = old
    toy.storage.write(toy.column.path("000000.json"), changed(change))
    with pytest.raises(DamagedError, match=r"000000\.json"):
        ColumnReader(toy.column)


def test_what_format_2_would_lose_is_left_as_it_is(old, command):
    """A sidecar is only replaced if the old bytes can be made of the new one."""
    toy, new = old
    more = changed(lambda c: c["items"][0].update(note="of a program of one's own"))
    toy.storage.write(toy.column.path("000000.json"), more)
    status, _, error = command("upgrade", toy.storage.url)
    assert status == 2
    assert "000000.json: holds more than format 2 does; it is left as it is" in error
    assert sidecars_of(toy)["000000.json"] == more
    assert sidecars_of(toy)["000001.json"] in (OLD["000001.json"].encode(), new["000001.json"])


def test_an_upgrade_killed_anywhere_goes_on(build_store, tmp_path):
    """Every sidecar is of one format or the other, and says the same, after each kill."""
    toy = build_store(tmp_path / "store", items=0)
    content = {name: value for name, value in json.loads(OLD["000001.json"]).items() if name != "xxh3"}
    for shard in range(SHARDS):
        items = [item | {"key": f"clip-{2 * shard + n}"} for n, item in enumerate(content["items"])]
        toy.storage.write(toy.column.path(f"{shard:06d}.json"), seal_json(content | {"shard": shard, "items": items}))
    old = dict(toy.column.sidecars())
    moments = sorted(random.Random(0).sample(range(SHARDS), KILLS))

    def upgraded():
        return sum(toy.storage.read(toy.column.path(f"{shard:06d}.json")).startswith(b'{"arrays"') for shard in old)

    for moment in [*moments, SHARDS]:
        process = subprocess.Popen([sys.executable, "-m", "store", "upgrade", toy.storage.url])
        while upgraded() < moment and process.poll() is None:
            pass
        if moment < SHARDS:
            process.kill()
        process.wait()
        assert dict(toy.column.sidecars()) == old
    assert (process.returncode, upgraded()) == (0, SHARDS)
