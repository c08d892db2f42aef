"""The plan and the conversations."""

import re
from dataclasses import replace
from itertools import groupby
from random import Random

import pytest

from store import (
    Candidate,
    Conversation,
    Corpus,
    MediaItem,
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
    assert loaded.keys_of([Part("http://x/é")])[0] == corpus.items[-1].key


def append_plainly(items, candidates, size):
    """What `Corpus.append` does, in dictionaries."""
    fps = {item.part: item.fps for item in items}
    sizes, new = {}, []
    keys = {item.key for item in items}
    for c in candidates:
        if c.part in fps:
            fps[c.part] = fps[c.part] or c.fps
            sizes[c.uri] = c.bytes
            continue
        key, salt = make_key(c.name), c.uri
        while key in keys:
            key, salt = make_key(c.name, salt), salt + "+"
        keys.add(key)
        fps[c.part] = c.fps
        new.append((key, c))
    items = [replace(i, bytes=sizes[i.uri], fps=fps[i.part]) if i.uri in sizes else i for i in items]
    first = items[-1].shard + 1 if items else 0
    return items + [
        MediaItem(key, c.uri, c.kind, first + n // size, n % size, c.bytes, c.start, c.end, c.fps)
        for n, (key, c) in enumerate(new)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_appending_is_what_dictionaries_do(tmp_path, monkeypatch, seed):
    """Whatever repeats, in whatever pieces: new files, known ones, parts, sizes that changed, names that collide."""
    random = Random(seed)
    at_once, rows = random.choice([(1, 1), (3, 1), (6, 3), (64, 64)])
    monkeypatch.setattr("store.corpus.AT_ONCE", at_once)
    monkeypatch.setattr("store.corpus.ROWS", rows)
    corpus, plain = Corpus(), []
    for _ in range(4):
        coming = [
            Candidate(
                random.choice(NAMES[:6]), f"/m/{random.randrange(9)}\udce9", "video", random.choice([None, 0, n]),
                start=random.choice([None, 0, 1.5]), end=random.choice([None, 2]), fps=random.choice([None, 3.0]),
            )
            for n in range(random.randrange(30))
        ]  # fmt: skip
        size = random.randrange(1, 6)
        assert corpus.append(coming, size) == len(append_plainly(plain, coming, size)) - len(plain)
        plain = append_plainly(plain, coming, size)
        assert corpus.items == plain
        if random.random() < 0.5:
            corpus.save(Storage(tmp_path))
            corpus = Corpus.load(Storage(tmp_path))
        assert list(corpus.items) == plain
        assert {n: list(items) for n, items in corpus.shards.items()} == {
            n: list(items) for n, items in groupby(plain, lambda item: item.shard)
        }
        assert corpus.keys_of([item.part for item in plain]) == [item.key for item in plain]
        assert corpus.keys_of([Part("/m/1"), *(item.part for item in plain[:1])])[0] is None
        assert corpus.parts_of([*(item.key for item in plain), "no"]) == [*(item.part for item in plain), None]
        a, b = sorted(random.choices(range(len(plain) + 2), k=2))
        assert corpus.items[a:b] == plain[a:b]


def test_a_plan_of_frames_a_second_is_not_planned_with_others():
    corpus = Corpus()
    corpus.append([Candidate("a", "/a", "video", fps=3.0)])
    with pytest.raises(UserError, match="/a: was planned with 3 frames a second"):
        corpus.append([Candidate("b", "/b", "video"), Candidate("a", "/a", "video", fps=4.0)])
    assert corpus.append([Candidate("b", "/b", "video")]) == 1  # what was refused is forgotten


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
