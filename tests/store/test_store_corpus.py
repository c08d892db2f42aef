"""The plan and the conversations."""

import re

import pytest

from store import (
    Candidate,
    Conversation,
    Corpus,
    Part,
    Storage,
    Turn,
    UserError,
    load_conversations,
    make_key,
    save_conversations,
)

LONG = "a/very/long/folder/" * 10
NAMES = [
    "a.b.mp4", "a/b.mp4", "a-b-mp4", "../../etc/passwd", "/", "...", "", "é/ü", "日本", "日本語", "-x-", "__x__",
    LONG + "1.mp4", LONG + "2.mp4", LONG + "1.mp4", "x" * 80, "x" * 81, "tab\tnew\nline", "a:b*c?", "CON.mp4",
]  # fmt: skip


def candidates(names, prefix="/m/"):
    return [Candidate(name, f"{prefix}{i}", "video", i) for i, name in enumerate(names)]


def test_append_never_moves_an_item():
    """A plan only grows by fresh shards; else columns that are already written would name other items."""
    corpus, before = Corpus(), []
    for batch, size in ((5, 3), (0, 3), (1, 3), (7, 2), (4, 100)):
        had = set(corpus.shards)
        offset = len(corpus)
        corpus.append([Candidate(f"v{offset + i}", f"/m/{offset + i}", "audio") for i in range(batch)], size)
        assert corpus.items[: len(before)] == before
        assert not had & {item.shard for item in corpus.items[len(before) :]}
        before = list(corpus.items)
    assert list(corpus.shards) == list(range(len(corpus.shards)))
    for members in corpus.shards.values():
        assert [item.position for item in members] == list(range(len(members)))


def test_append_knows_a_file_by_its_uri():
    """Planning the same source twice adds nothing; else every file would be featurized again."""
    corpus = Corpus()
    assert corpus.append(candidates(NAMES), 4) == len(NAMES)
    kept = list(corpus.items)
    assert corpus.append(candidates(NAMES), 7) == 0
    assert corpus.items == kept


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("salt", [None, "/m/1"])
def test_a_key_is_a_safe_member_name(name, salt):
    """A key has no dot, no slash, at most 80 characters; else WebDataset splits it wrongly or a path escapes."""
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,80}", make_key(name, salt))
    assert make_key(name, salt) == make_key(name, salt)


def test_keys_are_unique_whatever_the_names():
    """Two items never share a key; else one would be read in place of the other."""
    corpus = Corpus()
    corpus.append(candidates(NAMES * 3), 4)
    # names that are themselves the salted key of an item to come
    taken = [make_key("same", "/later/1"), make_key("same", "/later/1+"), "same"]
    corpus.append(candidates(taken, "/taken/"), 4)
    corpus.append([Candidate("same", f"/later/{i}", "image") for i in range(3)], 4)
    assert len({item.key for item in corpus.items}) == len(corpus) == 3 * len(NAMES) + 6


def test_the_plan_is_a_function_of_its_candidates():
    """The same source plans to the same keys and places; else two machines would write different shards."""
    plans = [Corpus(), Corpus()]
    for plan in plans:
        plan.append(candidates(NAMES * 2), 3)
    assert plans[0].items == plans[1].items


@pytest.mark.parametrize("names", [[], NAMES])
def test_plan_round_trip(root, names):
    """What is saved is what is loaded, also an unknown size; else columns and plan drift apart."""
    corpus = Corpus()
    corpus.append([*candidates(names), Candidate("gone", "http://x/é", "image", None)][: len(names) + 1], 4)
    corpus.save(Storage(root))
    loaded = Corpus.load(Storage(root))
    assert loaded.items == corpus.items
    assert loaded.key_of_part[Part("http://x/é")] == corpus.items[-1].key


TALKS = [
    Conversation(
        "1", "clip-0", (Turn("What?\n", "visual", "A cat 🐈"), Turn("Hear?", "audio", "Meow")), {"n": [1, {}]}
    ),
    Conversation("2", None, (Turn("Hi", "text", ""),)),
    Conversation("2", "clip-1", (Turn("", "text", "x"), Turn("y", "audio_visual", "z"))),
]


@pytest.mark.parametrize("talks", [[], TALKS])
def test_conversations_round_trip(root, talks):
    """Turns, modalities, meta and a missing key come back equal; else training sees another question."""
    save_conversations(Storage(root), "talk", talks)
    assert load_conversations(Storage(root), "talk") == talks


def test_modality_of_a_conversation():
    """A conversation perceives what its turns perceive together; it decides which columns must hold its item."""
    assert [c.modality for c in TALKS] == ["audio_visual", "text", "audio_visual"]


def test_missing_tables_are_the_users_error(root):
    """An empty folder is named in one line, not in a traceback."""
    with pytest.raises(UserError, match=r"no store is there: no corpus\.parquet"):
        Corpus.load(Storage(root))
    with pytest.raises(UserError, match=r"talk\.parquet: no such file"):
        load_conversations(Storage(root), "talk")
