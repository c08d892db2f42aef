"""One writer at a time, and disks that refuse: one clear line, and the store stays sound."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import store.lease
from store import Corpus, Storage, UserError, create_column
from store.lease import Holder

ROOT = Path(__file__).parents[2]
HOLD = "import sys; from store import Storage\nwith Storage(sys.argv[1]).lock():\n print(flush=True)\n sys.stdin.read()"


@pytest.fixture(params=["disk", "s3"])
def url(request, tmp_path):
    """Where another process can see it."""
    if request.param == "disk":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('s3')}/{os.urandom(8).hex()}"


def holding(url):
    child = subprocess.Popen([sys.executable, "-c", HOLD, url], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"\n"
    return child


def test_a_second_writer_is_told_who_the_first_is(url):
    """Two drivers on one store: the second ends with one line that names the first; it may begin when that ends."""
    child = holding(url)
    with pytest.raises(UserError) as caught, Storage(url).lock():
        pass
    line = str(caught.value)
    assert line.startswith(f"{Storage(url).url}: another process is writing to this store: process {child.pid} on ")
    assert time.strftime(", since %Y-%m-%d %H:", time.gmtime()) in line
    assert "\n" not in line
    child.communicate()
    with Storage(url).lock():
        pass


def test_a_killed_writer_holds_nothing(url):
    """After kill -9 the same command goes on at once, on this machine; nobody has to remove a lock by hand."""
    child = holding(url)
    child.kill()
    child.communicate()
    with Storage(url).lock():
        pass


def test_of_writers_that_begin_at_once_one_writes(s3):
    """One holds it and no two, whatever the timing: two plans would give one shard number to two sets of items."""
    url = f"{s3}/{os.urandom(8).hex()}"
    inside, most, told = [], [], []

    def write(number):
        try:
            with Storage(url).lock():
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.2)
                inside.remove(number)
        except UserError as error:
            told.append(str(error))

    threads = [threading.Thread(target=write, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(told) == 5
    assert all("another process is writing" in line for line in told)
    assert Storage(url).names(".lock") == [f"{len(most):08d}.json"]


def test_an_object_is_created_by_one_call_only(s3):
    """What a lease rests on: the second create is refused, and what the first one wrote stays."""
    storage = Storage(f"{s3}/{os.urandom(8).hex()}")
    assert storage.create(".lock/00000001.json", b"first")
    assert not storage.create(".lock/00000001.json", b"second")
    assert storage.read(".lock/00000001.json") == b"first"


def test_a_writer_that_slept_before_it_created_its_lease_gives_way(s3, monkeypatch):
    """While it slept two others wrote: its number is free again, but not the last one."""
    storage = Storage(f"{s3}/{os.urandom(8).hex()}")
    late, created = Storage(storage.url), []

    def create(name, data):
        if not created:
            with storage.lock():
                pass
            lease(storage, 2)
            storage.remove(".lock/00000001.json")
        created.append(name)
        return Storage.create(late, name, data)

    monkeypatch.setattr(late, "create", create)
    with pytest.raises(UserError, match="another process is writing"), late.lock():
        pass
    assert created == [".lock/00000001.json"]
    storage.remove(".lock/00000002.json")
    with storage.lock():
        pass


def lease(storage, number=1, **changes):
    name = f".lock/{number:08d}.json"
    storage.write(name, json.dumps(vars(Holder.here()) | {"kernel": "another machine"} | changes).encode())
    return name


def test_a_lease_of_another_machine_ends_when_it_is_not_renewed(s3):
    """A machine that died cannot lock a store for ever; one that lives is never robbed of it."""
    storage = Storage(f"{s3}/{os.urandom(8).hex()}")
    lease(storage, renewed=time.time() - store.lease.STALE + 60)
    with pytest.raises(UserError, match="another process"), storage.lock():
        pass
    lease(storage, renewed=time.time() - store.lease.STALE - 1)
    with storage.lock():
        assert len(storage.names(".lock")) == 1


def test_a_lease_is_renewed_and_its_loss_is_said(s3, monkeypatch):
    """A run of days keeps its lease; one that was frozen for minutes learns that another may have written."""
    monkeypatch.setattr(store.lease, "RENEWED", 0.05)
    storage = Storage(f"{s3}/{os.urandom(8).hex()}")
    with storage.lock():
        (name,) = storage.names(".lock")
        first = Holder.parse(storage.read(f".lock/{name}"))
        deadline = time.monotonic() + 30
        while Holder.parse(storage.read(f".lock/{name}")).renewed == first.renewed:
            assert time.monotonic() < deadline
        assert Holder.parse(storage.read(f".lock/{name}")).since == pytest.approx(first.since, abs=5)
    monkeypatch.setattr(store.lease, "RENEWED", 1000)
    with pytest.raises(UserError, match="ran out"), storage.lock():
        lease(storage, 3)
    lease(storage, 3, released=True)
    with pytest.raises(UserError, match="ran out"), storage.lock():
        lease(storage, 4)  # as on a store that ignores exclusive creates


# disks


def test_leftovers_are_cleared_where_writers_leave_them(disk):
    """The next writer clears what a killed one left, in every folder of a store; files of others are not touched."""
    names = [".tmp-1", "conversations/.tmp-2", disk.column.path(".tmp-3"), "mine/deep/down/.tmp-4"]
    for name in names:
        path = Path(disk.storage.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with disk.storage.lock():
        assert [Path(disk.storage.path(name)).exists() for name in names] == [False, False, False, True]


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
sys.path.insert(0, "tests/store")
from conftest import SPEC, build, fill
from store import Storage, open_column
from store.console import run

def main():
    if sys.argv[3] == "store":
        build(sys.argv[1])
    else:
        with Storage(sys.argv[1]).lock():
            fill(open_column(Storage(sys.argv[1]), "toy-l-14"), 0, ["clip-0", "clip-5"])

run(main)
"""


def limited(url, limit, what, **env):
    """A process that may write no file longer than `limit` bytes: the kernel refuses the rest, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, url, str(limit), what],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **env},
    )  # fmt: skip
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    return done.stderr.strip()


def test_a_full_disk_is_one_line_and_what_was_there_stays(disk, tmp_path):
    """Half a file is never published nor left behind; the shard that was there is there still."""
    folder = Path(disk.storage.path(disk.column.path("")))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for limit in (0, 10_239):
        line = limited(disk.storage.url, limit, "shard")
        assert line.startswith(f"error: {disk.storage.url}/")
        assert line.endswith("cannot be written: File too large; make room, then give the same command again")
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    line = limited(str(tmp_path / "new"), 500, "store")
    assert f"{tmp_path}/new/corpus.parquet: cannot be written: File too large" in line
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_temporary_folder_is_one_line(s3, build_store, tmp_path):
    """A shard bound for an object store is first a local file; which folder is full is said."""
    toy = build_store(f"{s3}/{os.urandom(8).hex()}")
    before = toy.storage.read(toy.column.path("000000.json"))
    (tmp_path / "tmp").mkdir()
    line = limited(toy.storage.url, 3000, "shard", TMPDIR=str(tmp_path / "tmp"))
    assert line.startswith(f"error: {tmp_path}/tmp (TMPDIR): cannot be written: File too large; make room")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "No usable temporary directory found in" in limited(toy.storage.url, 0, "shard")
    assert toy.storage.read(toy.column.path("000000.json")) == before
    with toy.storage.lock():
        pass


UNPRIVILEGED = """
import os, sys
sys.path.insert(0, "tests/store")
from conftest import SPEC
from store import Corpus, Storage, create_column
from store.console import run

storage = Storage(sys.argv[1])
if not os.getuid():
    os.setgid(65534), os.setuid(65534)

def main():
    if sys.argv[2] == "lock":
        with storage.lock():
            pass
    elif sys.argv[2] == "plan":
        Corpus().save(storage)
    else:
        create_column(storage, SPEC, {})

run(main)
"""


@pytest.mark.parametrize("what", ["lock", "plan", "column"])
def test_a_read_only_store_is_one_line(what):
    """A folder without write permission is named, with what would help."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # pytest's own are for its user alone, and root may write everywhere
        (Path(folder) / "store").mkdir(mode=0o555)
        words = [sys.executable, "-c", UNPRIVILEGED, f"{folder}/store", what]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith(f"error: {folder}/store/")
    assert "cannot be written: Permission denied; make it writable or name another place" in done.stderr


def test_a_store_below_a_file_is_one_line(tmp_path):
    """A path that cannot be a folder is named, whether it is read or written."""
    (tmp_path / "file").write_text("")
    storage = Storage(tmp_path / "file" / "store")
    with pytest.raises(UserError, match=r"file/store/\.lock: cannot be written: Not a directory"), storage.lock():
        pass
    with pytest.raises(UserError, match=r"corpus\.parquet: cannot be written: "):
        Corpus().save(storage)
    with pytest.raises(UserError, match="no store is there"):
        Corpus.load(storage)
    assert storage.names("columns") == []


def test_an_error_of_the_caller_is_not_taken_for_the_disks(disk):
    """A media file that is missing while a shard is written is no trouble of the store's."""
    with pytest.raises(FileNotFoundError), disk.column.write_shard(0):
        open("/nowhere/clip.mp4")  # noqa: SIM115
    with pytest.raises(PermissionError), disk.column.write_shard(0):
        raise PermissionError(13, "no", "/nowhere/clip.mp4")


# object stores


def test_an_object_store_that_refuses_is_one_line(s3, monkeypatch, tmp_path):
    """No bucket, no server, no credentials, no such protocol: each is the user's to mend, in one line."""
    with pytest.raises(UserError, match=r"s3://nowhere/store/corpus\.parquet: cannot be reached: "):
        Corpus().save(Storage("s3://nowhere/store"))
    with pytest.raises(UserError, match="no store is there"):
        Corpus.load(Storage("s3://nowhere/store"))
    with pytest.raises(UserError, match=r"s4://x/y: .*expected a folder or an fsspec URL"):
        Storage("s4://x/y")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    try:
        with pytest.raises(UserError, match="cannot be reached: Unable to locate credentials"):
            Corpus().save(Storage(f"{s3}/x"))
    finally:
        s3fs.S3FileSystem.clear_instance_cache()


def test_what_another_process_wrote_is_seen(s3, build_store):
    """No listing is kept: a driver sees a shard that a worker has just published, and no longer one withdrawn."""
    toy = build_store(f"{s3}/{os.urandom(8).hex()}")
    assert toy.column.shards() == [0, 1]
    code = "import sys; from store import *; open_column(Storage(sys.argv[1]), 'toy-l-14').withdraw(0)"
    subprocess.run([sys.executable, "-c", code, toy.storage.url], cwd=ROOT, check=True)
    assert toy.column.shards() == [1]
    assert create_column(toy.storage, toy.spec, {}).shards() == [1]


def test_a_folder_of_thousands_is_listed_whole(s3, build_store):
    """A listing comes in pages of a thousand; a shard on a later page is there too."""
    toy = build_store(f"{s3}/{os.urandom(8).hex()}", items=0)
    names = [toy.column.path(f"{shard:06d}.json") for shard in range(1200)]
    toy.storage.fs.pipe({toy.storage.path(name): b"" for name in names})
    assert toy.column.shards() == list(range(1200))
