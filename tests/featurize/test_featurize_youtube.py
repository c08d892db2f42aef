"""Media that leak into training under the names that downloaders and cutters of YouTube videos give."""

import pytest

from featurize.leaks import find_leaks
from store import MediaItem

NAMES = [
    "{}",
    "Blue kettle [{}]",
    "{}-Scene-001",
    "{}_10_20",
    "v_{}",
    "{}.f137",
    "Red [{}]-Scene-002",
    "Blue kettle-{}",
]


@pytest.mark.parametrize("id", ["abcdefghijk", "dQw4w9WgXcQ", "-8y1Q0rA3n8", "_K-2bcdefgH"])
@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("other", NAMES[:-1])
def test_a_youtube_id_is_known_in_names_that_downloaders_give(id, name, other):
    train, evaluation = _item("a", f"/train/{name.format(id)}.mp4"), _item("b", f"/test/{other.format(id)}.webm")
    for one, two in ((train, evaluation), (evaluation, train)):
        assert [leak.by for leak in find_leaks([one], [two])] == ["stem" if name == other else "youtube"]


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("a short-description", "a long-description"),
        ("trip to Lisbon_2023", "food in Lisbon_2023"),
        ("Blue kettle [abcdefghijk]", "Blue kettle [abcdefghijl]"),
        ("holiday2023-1", "holiday2024-1"),
    ],
)
def test_words_of_a_title_are_no_youtube_ids(name, other):
    assert find_leaks([_item("a", f"/train/{name}.mp4")], [_item("b", f"/test/{other}.mp4")]) == []


def _item(key, uri):
    return MediaItem(key, uri, "video", 0, 0, 1)
