"""Features made elsewhere become columns like any other; nothing that a file names is run."""

import io
import json
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

from store import (
    Candidate,
    ColumnReader,
    Corpus,
    Part,
    Storage,
    UserError,
    column_stats,
    list_columns,
    open_column,
)
from store.__main__ import app
from store.exchange.importing import UnusableError
from store.exchange.pickles import load_array

rng = np.random.default_rng(0)


@pytest.fixture
def toy(tmp_path, build_store):
    """The toy store on a local disk."""
    return build_store(tmp_path / "store")


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sound(store):
    """Whether `python -m store verify` finds nothing wrong."""
    url = store.url if isinstance(store, Storage) else str(store)
    return CliRunner().invoke(app, ["verify", url]).exit_code == 0


def plan(url, *names):
    """A store whose corpus has the videos of these names."""
    corpus = Corpus()
    corpus.append((Candidate(f"videos/{name}.mp4", f"/videos/{name}.mp4", "video") for name in names), 4)
    corpus.save(Storage(url))
    return corpus


def halves(*shape):
    return rng.standard_normal(shape).astype(np.float16)


# pickles


@pytest.fixture
def pickles(tmp_path):
    """Four videos as Video-ChatGPT saves them; one has 60 frames, one is cut short, one has another shape."""
    folder = tmp_path / "features"
    folder.mkdir()
    made = {name: halves(100 + 4, 8) for name in ("v_one", "v_two", "v_cut", "v_odd")}
    made["v_two"][60:100] = 0
    made["v_odd"] = made["v_odd"][:50]
    for name, array in made.items():
        (folder / f"{name}.pkl").write_bytes(pickle.dumps(array))
    cut = folder / "v_cut.pkl"
    cut.write_bytes(cut.read_bytes()[:300])
    (folder / "v_empty.pkl").write_bytes(b"")
    return folder, made


def test_video_chatgpts_pickles_become_a_column(pickles, tmp_path, command):
    """Rows split into temporal and spatial tokens, padding left out; what cannot be read is a record with a reason."""
    folder, made = pickles
    store = tmp_path / "store"
    told = command("import", "video-chatgpt", store, folder, "--dry-run")
    assert (told[0], "5 of 5 items would be imported" in told[1], store.exists()) == (0, True, False)
    assert command("import", "video-chatgpt", store, folder, "--shard-size", 2)[0] == 0
    column = open_column(Storage(store), "clip-vit-l-14-video-chatgpt")
    reader = ColumnReader(column)
    assert reader.keys() == ["v_one", "v_two"]
    for key, frames in (("v_one", 100), ("v_two", 60)):
        assert np.array_equal(reader.read(key)["temporal"], made[key][:frames])
        assert np.array_equal(reader.read(key)["spatial.t100"], made[key][100:])
    assert {key: failure.code for key, failure in reader.failed.items()} == {
        "v_cut": "unreadable",
        "v_odd": "unreadable",
        "v_empty": "empty",
    }
    assert sound(store)
    assert (column.spec.numerics["imported"], column.build) == ("video-chatgpt", {"imported": "video-chatgpt"})
    before = {path: path.read_bytes() for path in store.rglob("*.tar")}
    (path := next(iter(before))).with_suffix(".json").unlink()  # as if a run had been killed before it
    path.unlink()
    assert command("import", "video-chatgpt", store, folder)[0] == 0
    assert {path: path.read_bytes() for path in store.rglob("*.tar")} == before
    assert len(list_columns(Storage(store))) == 1


def test_pickles_find_their_videos_by_name(pickles, tmp_path, command):
    """In a planned store a pickle belongs to the video of its name; items without one are records."""
    folder, _ = pickles
    corpus = plan(tmp_path / "store", "v_two", "other")
    code, out, _ = command("import", "video-chatgpt", tmp_path / "store", folder)
    assert code == 0
    assert "not imported, as no item of the corpus matches: 4, such as v_" in out
    reader = ColumnReader(list_columns(Storage(tmp_path / "store"))[0])
    assert reader.keys() == [corpus.keys_of([Part("/videos/v_two.mp4")])[0]]
    assert reader.failed[corpus.keys_of([Part("/videos/other.mp4")])[0]].code == "missing"
    assert sound(tmp_path / "store")


class Evil:
    """A pickle of this runs a shell command where it is loaded."""

    def __init__(self, call, *arguments):
        self.what = (call, arguments)

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_runs_nothing(tmp_path, protocol):
    """The refused name stands in one line, and the command in the pickle never ran."""
    mark = tmp_path / "ran"
    for number, evil in enumerate(
        [
            Evil(os.system, f"touch {mark}"),
            [np.zeros(2, np.float16), Evil(os.system, f"touch {mark}")],
            Evil(eval, f"open({str(mark)!r}, 'w')"),
            Evil(np.load, str(mark)),
            Evil(getattr, mark, "unlink"),
        ]
    ):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(pickle.dumps(evil, protocol))
        with pytest.raises(UserError, match=rf"{path}: refused: the pickle calls [\w.]+, which") as caught:
            load_array(path)
        assert "\n" not in str(caught.value)
    assert not mark.exists()
    pickle.loads((tmp_path / "0.pkl").read_bytes())
    assert mark.exists()  # it is a real one: unguarded, it runs


def test_numpys_own_functions_are_not_handed_out(tmp_path):
    """A pickle may set attributes on what it was given; it is given copies, so that numpy stays as it was."""
    from numpy.core.numeric import _frombuffer

    states = {}
    for name in ("_frombuffer", "ndarray", "dtype"):
        module = "numpy.core.numeric" if name == "_frombuffer" else "numpy"
        states[name] = (
            b"\x80\x04c" + f"{module}\n{name}\n".encode() + pickle.dumps((None, {"__defaults__": (1,)}))[2:-1]
        )
        (tmp_path / name).write_bytes(states[name] + b"b.")
        with pytest.raises(UnusableError):
            load_array(tmp_path / name)
    assert _frombuffer.__defaults__ is None
    (tmp_path / "call").write_bytes(b"\x80\x04cnumpy\nndarray\n" + pickle.dumps(((10**9,), "O"))[2:-1] + b"R.")
    with pytest.raises(UnusableError):
        load_array(tmp_path / "call")


@pytest.mark.parametrize(
    "value", [np.zeros(3, object), np.zeros(3, np.int64), np.zeros(3, "V8"), {"a": 1}, np.float16(1), b"x"]
)
def test_only_arrays_of_floats_are_read(tmp_path, value):
    """Anything else is unreadable, or refused by name; never handed on as features."""
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises((UnusableError, UserError)):
        load_array(tmp_path / "x.pkl")


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("modern", [False, True])
def test_every_pickle_of_an_array_reads_equal(tmp_path, protocol, order, dtype, modern):
    """Pickles of all protocols since Python 3, of numpy 1 and 2, and of transposed arrays."""
    array = np.asarray(rng.standard_normal((5, 3)).astype(dtype), order=order)
    content = pickle.dumps(array, protocol)
    if modern and protocol == 3:
        content = content.replace(b"cnumpy.core.", b"cnumpy._core.")
    elif modern:
        for name in (b"numpy.core.multiarray", b"numpy.core.numeric"):
            renamed = name.replace(b"core", b"_core")
            content = content.replace(b"\x8c%c%b" % (len(name), name), b"\x8c%c%b" % (len(renamed), renamed))
        content = content[:2] + content[11:] if content[2:3] == b"\x95" else content  # a frame's length differs
    (tmp_path / "x.pkl").write_bytes(content)
    assert np.array_equal(load_array(tmp_path / "x.pkl"), array)


# tars


def test_our_own_tars_come_back_equal(toy, tmp_path, command):
    """A tar of ours, imported in another store, gives the same arrays and facts under a column of its own."""
    tars = [toy.storage.path(toy.column.path(f"00000{n}.tar")) for n in (0, 1)]
    assert command("import", "webdataset", tmp_path / "new", *tars, "--name", "other", "--modality", "visual")[0] == 0
    ours, theirs = ColumnReader(toy.column), ColumnReader(open_column(Storage(tmp_path / "new"), "other"))
    assert ours.keys() == theirs.keys()
    for key in ours.keys():  # noqa: SIM118
        assert {n: a.tolist() for n, a in ours.read(key).items()} == {
            n: a.tolist() for n, a in theirs.read(key).items()
        }
    assert theirs.column.spec.features == toy.spec.features
    assert sound(tmp_path / "new")
    with tarfile.open(tmp_path / "new" / theirs.column.path("000000.tar")) as archive:
        facts = json.load(archive.extractfile("clip-0.json"))
    assert facts == {"kind": "video", "seconds": 1.5, "key": "clip-0"}


def test_tars_join_a_planned_store(toy, tmp_path, command):
    """Features find their items by key, or by file name; suffixes are named by the user; other members stay out."""
    tar = write_tar(
        tmp_path / "a.tar",
        {
            "x/clip-5.cls.npy": npy(halves(2, 4)),
            "x/clip-5.jpg": b"picture",
            "clip-0.cls.npy": npy(halves(3, 4).astype(">f2")),
            "clip-1.cls.npy": npy(np.full((1, 4), np.nan, np.float16)),
            "clip-2.cls.npy": npy(halves(1, 4))[:-1],
            "clip-4.jpg": b"no array",
            "stranger.cls.npy": npy(halves(1, 4)),
        },
    )
    words = ("--name", "vit", "--modality", "visual", "--feature", "cls.npy=temporal", "--about", "layer=-2")
    code, out, _ = command("import", "webdataset", toy.storage.url, tar, *words, "--dry-run")
    assert code == 0
    assert "not imported, as no item of the corpus matches: 1, such as stranger\n" in out
    assert "5 of 6 items would be imported" in out
    assert [column.name for column in list_columns(toy.storage)] == [toy.column.name]
    code, out, err = command("import", "webdataset", toy.storage.url, tar, *words)
    assert code == 0, err
    assert "not imported: members jpg" in out
    assert "not imported, as no item of the corpus matches: 1, such as stranger\n" in out
    column = open_column(toy.storage, "vit")
    reader = ColumnReader(column)
    assert reader.keys() == ["clip-0", "clip-5"]
    assert reader.read("clip-0")["temporal"].dtype == np.dtype("<f2")
    reasons = {key: failure.reason for key, failure in reader.failed.items()}
    assert "not finite" in reasons["clip-1"]
    assert reasons["clip-3"] == "is not among what was imported"
    assert reasons["clip-4"] == "has no temporal"
    assert column.spec.numerics["layer"] == -2
    assert column_stats(column, toy.corpus).by_code == {"unreadable": 2, "missing": 2}
    assert sound(toy.storage.url)


def test_each_item_keeps_its_kind(tmp_path, command):
    """Our own tars tell it, so a still among videos stays one; what tells none is what the user says."""
    said = {"a": {"kind": "image"}, "b": {"kind": "audio"}, "c": {"kind": "cat"}, "d": ["no object"]}
    members = {f"{key}.x.npy": npy(halves(2, 4)) for key in "abcde"}
    members |= {f"{key}.json": json.dumps(facts).encode() for key, facts in said.items()}
    tar = write_tar(tmp_path / "a.tar", dict(sorted(members.items())))
    words = ("--name", "vit", "--modality", "visual")
    for more, others in (((), "video"), (("--kind", "image"), "image")):
        store = tmp_path / others
        assert command("import", "webdataset", store, tar, *words, *more)[0] == 0
        kinds = {item.key: item.kind for item in Corpus.load(Storage(store)).items}
        assert kinds == {"a": "image", "b": "audio", "c": others, "d": others, "e": others}


def test_more_files_under_one_name_are_refused(toy, tmp_path, command):
    """They would be a second column, with the first files' items missing in it; other numerics are another column."""
    a, b = (write_tar(tmp_path / f"{n}.tar", {f"clip-{n}.x.npy": npy(halves(2, 4))}) for n in (0, 1))
    words = ("--name", "vit", "--modality", "visual")

    def imported(*more):
        return command("import", "webdataset", toy.storage.url, *more, *words)

    assert imported(a)[0] == 0
    (first,) = (column for column in list_columns(toy.storage) if column.spec.name == "vit")
    for tars in ((b,), (a, b)):
        code, _, err = imported(*tars)
        assert (code, err.count("\n")) == (2, 0)
        assert f"{first.name} was imported from other files" in err
    assert imported(a)[0] == 0  # the same again goes on
    assert len(list_columns(toy.storage)) == 2
    assert imported(b, "--about", "layer=-1")[0] == 0
    assert len(list_columns(toy.storage)) == 3
    assert command("gc", toy.storage.url, "--remove", first.name, "--yes")[0] == 0
    assert imported(a, b)[0] == 0
    assert sound(toy.storage)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.x.npy": npy(np.zeros((2, 3)))}, "float64"),
        ({"a.x.npy": npy(halves(2, 3)), "b.x.npy": npy(halves(2, 4))}, "first length alone may vary"),
        ({"a.x.npy": npy(np.array([{}]))}, "object"),
        ({"a.x.npy": npy(halves(2)), "a.y.npy": b"", "b.y.npy": b""}, "no member .y.npy can be read"),
        ({"a.txt": b""}, "arrays are: none"),
        ({"a.Bad.npy": npy(halves(2))}, "field 'features"),
        ({"x/a.b.npy": npy(halves(2)), "y/a.b.npy": npy(halves(2))}, "could be item videos-a-mp4, as is"),
    ],
)
def test_tars_that_make_no_column_are_refused(tmp_path, members, message, command):
    """One line names the member or what is lacking, and no column is made."""
    plan(tmp_path / "store", "a", "b")
    tar = write_tar(tmp_path / "a.tar", members)
    code, _, err = command("import", "webdataset", tmp_path / "store", tar, "--name", "n", "--modality", "audio")
    assert (code, err.count("\n")) == (2, 0)
    assert message in err
    assert list_columns(Storage(tmp_path / "store")) == []


def test_a_file_that_is_no_tar_is_refused(tmp_path, command):
    """A zip, a compressed tar or nothing at all is named in one line."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.x.npy", b"")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz"):
        pass
    for name in ("a.zip", "a.tar.gz", "none.tar"):
        words = ("import", "webdataset", tmp_path / "store", tmp_path / name, "--name", "n", "--modality", "audio")
        code, _, err = command(*words)
        assert (code, err.count("\n")) == (2, 0)
        assert "expected an uncompressed tar" in err
