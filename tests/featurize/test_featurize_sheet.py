"""The picture of an item's frames."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from featurize.__main__ import app
from featurize.media import read_video
from featurize.sheet import GAP, LINE, SIZE
from store import Candidate, Corpus, Storage, UserError


@pytest.fixture
def store(media, tmp_path):
    corpus = Corpus()
    corpus.append([Candidate(n, str(media / n), k) for n, k in (("red-loud.mp4", "video"), ("low.wav", "audio"))])
    corpus.save(Storage(tmp_path / "store"))
    return tmp_path / "store"


def drawn(store, key, out, *more):
    done = CliRunner().invoke(app, ["frames", key, "--store", str(store), "--out", str(out), *more])
    if done.exception:
        raise done.exception
    return np.asarray(Image.open(out))


def test_it_shows_the_frames_that_encoders_take(store, media, tmp_path):
    sheet = drawn(store, "red-loud-mp4", tmp_path / "frames.png", "--count", "10")
    frames = read_video(str(media / "red-loud.mp4"), [SIZE], 10)
    for place, number in enumerate(frames.index.tolist()):
        x, y = GAP + place % 8 * (SIZE + GAP), GAP + place // 8 * (SIZE + LINE + GAP)
        np.testing.assert_array_equal(sheet[y : y + SIZE, x : x + SIZE], frames.pixels[SIZE][number])
        assert sheet[y + SIZE : y + SIZE + LINE, x : x + SIZE].min() < 100, "its time is written below"


def test_what_cannot_be_drawn_is_one_line(store, tmp_path):
    for key, out, said in (
        ("low-wav", "x.png", "low-wav: absent: a sound file has no frames"),
        ("red", "x.png", "no item has the key 'red'; there are: "),
        ("red-loud-mp4", "x.txt", "expected a .png or .jpg file"),
        ("red-loud-mp4", "none/x.png", "no folder"),
    ):
        with pytest.raises(UserError, match=said):
            drawn(store, key, tmp_path / out)
    assert list(tmp_path.iterdir()) == [store]
