"""Members of a tar that are links, or whose suffix is in capitals: an item is never missing without a word."""

import io
import tarfile

import numpy as np
import pytest

from store import UserError
from store.exchange.webdataset import index_tars, read_webdataset


def make_tar(folder, links, suffix="npy"):
    """A tar of `a` and `c`, and of links: name, what it leads to, type."""
    with tarfile.open(folder / "x.tar", "w") as archive:
        for name, number in (("a", 1.0), ("c", 3.0)):
            file = io.BytesIO()
            np.save(file, np.full((2, 4), number, np.float32))
            info = tarfile.TarInfo(f"./in/{name}.{suffix}")
            info.size = file.tell()
            file.seek(0)
            archive.addfile(info, file)
        for name, to, type in links:
            info = tarfile.TarInfo(f"./in/{name}.npy")
            info.type, info.linkname = type, to
            archive.addfile(info)
    return [folder / "x.tar"]


def values(tars):
    index, chosen = index_tars(tars, None)
    foreign = read_webdataset(index, chosen, "x", "visual", {}, lambda _: None)
    return {key.rpartition("/")[2]: float(foreign.load(key)[0]["npy"].mean()) for key in index.items}


@pytest.mark.parametrize(
    ("to", "type"), [("./in/a.npy", tarfile.LNKTYPE), ("a.npy", tarfile.SYMTYPE), ("../in/./a.npy", tarfile.SYMTYPE)]
)
def test_a_link_has_the_numbers_of_what_it_leads_to(tmp_path, to, type):
    """As after `ln a.npy b.npy`: tar keeps the bytes of the first name only."""
    assert values(make_tar(tmp_path, [("b", to, type)])) == {"a": 1.0, "c": 3.0, "b": 1.0}


def test_a_suffix_in_capitals_is_one(tmp_path):
    assert values(make_tar(tmp_path, [], "NPY")) == {"a": 1.0, "c": 3.0}


@pytest.mark.parametrize(("to", "type"), [("/elsewhere/a.npy", tarfile.SYMTYPE), ("b.npy", tarfile.SYMTYPE)])
def test_a_link_that_leads_nowhere_is_named(tmp_path, to, type):
    with pytest.raises(UserError, match=r"x\.tar: \./in/b\.npy: a link to .*, which is no file of this tar"):
        index_tars(make_tar(tmp_path, [("b", to, type)]), None)
