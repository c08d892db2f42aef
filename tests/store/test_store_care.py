"""Clearing, merging and describing stores: sound at every moment, and nothing lost that was wanted."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import store.exchange.copying as copying
from store import (
    Candidate,
    ColumnReader,
    ColumnSpec,
    Conversation,
    Corpus,
    DamagedError,
    Feature,
    Storage,
    Turn,
    UserError,
    create_column,
    gc,
    list_columns,
    open_column,
    save_conversations,
)
from store.__main__ import app
from store.exchange.card import make_card
from store.exchange.merge import plan_merge, run_merge


@pytest.fixture
def toy(tmp_path, build_store):
    """The toy store on a local disk."""
    return build_store(tmp_path / "store")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def files(url):
    """Content of each file below a folder; locks and temporary files are left out."""
    found = {str(path.relative_to(url)): path.read_bytes() for path in sorted(Path(url).rglob("*")) if path.is_file()}
    return {name: content for name, content in found.items() if ".lock" not in name}


def sound(store):
    """Whether `python -m store verify` finds nothing wrong."""
    url = store.url if isinstance(store, Storage) else str(store)
    return CliRunner().invoke(app, ["verify", url]).exit_code == 0


def talk(storage, name, answer="A cat", key="clip-0"):
    save_conversations(storage, name, [Conversation("1", key, (Turn("What?", "visual", answer),))])


def another_column(toy, name):
    """A second column of the toy store, of the same items."""
    column = create_column(toy.storage, toy.spec.model_copy(update={"name": name}), {})
    for shard, items in toy.corpus.shards.items():
        toy.fill(column, shard, [item.key for item in items])
    return column


def nothing(count):
    assert count


# gc


def test_gc_removes_what_is_named_and_nothing_else(toy, command):
    """Without --yes nothing goes; with it the named column goes, and foreign files stay."""
    another_column(toy, "old")
    talk(toy.storage, "chat")
    toy.storage.write("notes.txt", b"mine")
    before = files(toy.storage.url)
    old = open_column(toy.storage, "old").path("")
    for words in (("--remove", "old"), ("--keep", toy.column.name), ("--remove", "old", "--dry-run")):
        code, out, _ = command("gc", toy.storage.url, *words)
        assert code == 0
        assert f"{old.rstrip('/')}: not wanted, 5 files" in out
        assert "mind:" not in out
        assert files(toy.storage.url) == before
    assert command("gc", toy.storage.url, "--remove", "old", "--yes")[0] == 0
    assert files(toy.storage.url) == {name: content for name, content in before.items() if not name.startswith(old)}
    assert not Path(toy.storage.path(old)).exists()
    assert "0.000 GB to remove" in command("gc", toy.storage.url)[1]


def test_gc_says_whose_questions_lose_their_features(toy, command):
    """Removing the last visual column is told with the conversations that ask by sight."""
    talk(toy.storage, "chat")
    out = command("gc", toy.storage.url, "--remove", toy.spec.name)[1]
    assert "mind: 1 conversations of chat ask by the visual sense" in out


def test_gc_clears_leftovers(toy, command):
    """Temporary files, tars without sidecar and columns without column.json go; a sidecar without its tar stays.

    A dry run lists exactly what is removed.
    """
    toy.storage.write("notes.tmp-1", b"mine")
    assert "notes.tmp-1" in toy.storage.names("")
    assert "notes.tmp-1" in toy.storage.marks("")
    before = files(toy.storage.url)
    toy.storage.write(toy.column.path("000007.tar"), b"x")
    toy.storage.write("columns/gone.abcdef/000000.tar", b"x")
    toy.storage.write("columns/gone.abcdef/notes.txt", b"mine")
    (Path(toy.storage.url) / "columns" / ".tmp-1-x").write_bytes(bytes(2_000_000))
    out = command("gc", toy.storage.url)[1]
    assert "columns/.tmp-1-x: temporary file, 1 files, 0.002 GB" in out
    assert ("tar without its sidecar" in out, "no column.json" in out) == (True, True)
    assert "0.002 GB would go; --yes removes it" in out
    code, done, _ = command("gc", toy.storage.url, "--yes")
    assert (code, done) == (0, out.replace("would go; --yes removes it", "removed"))
    assert files(toy.storage.url) == {**before, "columns/gone.abcdef/notes.txt": b"mine"}
    (Path(toy.storage.url) / toy.column.path("000000.tar")).unlink()
    (Path(toy.storage.url) / toy.column.path("column.json")).unlink()
    command("gc", toy.storage.url, "--yes")
    assert toy.column.shards() == [0, 1]  # damage is verify's to tell and the user's to mend


@pytest.mark.parametrize("words", [("--keep", "none"), ("--remove", "none"), ("--keep", "a", "--remove", "b")])
def test_gc_refuses_what_it_does_not_know(toy, command, words):
    """A misspelt name must not make all columns unwanted."""
    before = files(toy.storage.url)
    assert command("gc", toy.storage.url, *words, "--yes")[0] == 2
    assert files(toy.storage.url) == before


def test_gc_killed_anywhere_leaves_a_sound_store(toy, tmp_path, monkeypatch):
    """After each removal the store verifies, the wanted column reads, and the same command ends the work."""
    another_column(toy, "old")
    remove = Storage.remove
    for limit in range(5):
        shutil.copytree(toy.storage.url, tmp_path / str(limit))
        storage, calls = Storage(tmp_path / str(limit)), itertools.count()

        def failing(self, name, calls=calls, limit=limit):
            if next(calls) == limit:
                raise Killed
            remove(self, name)

        monkeypatch.setattr(Storage, "remove", failing)
        with pytest.raises(Killed):
            gc.clear(storage, gc.find_rubbish(storage, [], ["old"]))
        monkeypatch.setattr(Storage, "remove", remove)
        assert sound(storage)
        assert open_column(storage, "old").shards() == [0, 1][limit:]
        gc.clear(storage, gc.find_rubbish(storage, [], ["old"]))
        assert [path.name for path in (tmp_path / str(limit) / "columns").iterdir()] == [toy.column.name]


# merge


def split(toy, tmp_path):
    """Two machines' stores of one plan: the first has shard 0, the second both."""
    for name, gone in (("a", (1,)), ("b", ())):
        shutil.copytree(toy.storage.url, tmp_path / name)
        for shard in gone:
            for suffix in ("tar", "json"):
                (tmp_path / name / toy.column.path(f"{shard:06d}.{suffix}")).unlink()
    return tmp_path / "a", tmp_path / "b"


def test_shards_of_one_plan_come_together(toy, tmp_path, command):
    """What one machine lacks comes from the other; equal shards are one; the result is the whole store."""
    talk(toy.storage, "chat")
    a, b = split(toy, tmp_path)
    code, out, _ = command("merge", tmp_path / "all", a, b, "--dry-run")
    assert code == 0
    assert "would have 6 items, 6 of them new; 3 shards would be copied, but for those that are there" in out
    assert not (tmp_path / "all").exists()
    code, out, _ = command("merge", tmp_path / "all", a, b)
    assert code == 0
    assert "6 items, 6 of them new" in out
    assert "other bytes" not in out
    assert files(tmp_path / "all") == files(toy.storage.url)
    code, out, _ = command("merge", a, b)  # into one that is there
    assert "6 items, 0 of them new" in out
    assert files(a) == files(toy.storage.url)


def test_a_shard_with_other_bytes_is_kept_whole(toy, tmp_path, command):
    """Another machine's rounding: the first one's shard stays as it is, and the user is told."""
    a, b = split(toy, tmp_path)
    column = open_column(Storage(b), toy.spec.name)
    with column.write_shard(0) as writer:
        for number in range(4):
            writer.add(f"clip-{number}", toy.arrays(number if number < 3 else 0), {})
    out = command("merge", tmp_path / "all", a, b)[1]
    assert f"{toy.column.name} shard 0: other bytes in {b}; those that were there are kept (1 items failed" in out
    assert files(tmp_path / "all") == files(toy.storage.url)


def other_store(build_store, url, toy, keys=("x", "y", "z")):
    """A store of other files with a column of the same spec."""
    storage, corpus = Storage(url), Corpus()
    corpus.append((Candidate(key, f"/other/{key}.mp4", "video") for key in keys), 2)
    corpus.save(storage)
    column = create_column(storage, toy.spec, {})
    for shard, items in corpus.shards.items():
        with column.write_shard(shard) as writer:
            for item in items:
                writer.add(item.key, toy.arrays(4), {"key": item.key})
    return storage


def test_one_encoder_with_two_digests_is_told(toy, tmp_path, command):
    """Neither column has all shards, so training on either loses half of the items in silence."""
    a, b = split(toy, tmp_path)
    numerics = {**toy.spec.numerics, "weights": "other"}
    shutil.rmtree(b / toy.column.path(""))
    other = create_column(Storage(b), toy.spec.model_copy(update={"numerics": numerics}), {})
    toy.fill(other, 1, [item.key for item in toy.corpus.shards[1]])
    code, out, _ = command("merge", tmp_path / "all", a, b)
    assert code == 0
    first, second = sorted([toy.column.name, other.name])
    assert f"{first} (1 of 2 shards) and {second} (1 of 2 shards) are each filled in part" in out
    assert "toy-l-14 was encoded with different weights; fill one (avllm featurize run" in out
    toy.fill(open_column(Storage(tmp_path / "all"), other.name), 0, [item.key for item in toy.corpus.shards[0]])
    assert "in part" not in command("merge", tmp_path / "all", a, b)[1]  # whole, beside an old one


def test_plans_of_different_files_are_appended(toy, tmp_path, build_store, command):
    """New items come in fresh shards, their tars byte for byte; what was there does not move; conversations follow."""
    talk(toy.storage, "chat")
    other = other_store(build_store, tmp_path / "other", toy)
    talk(other, "other-chat", key="x")
    assert command("merge", tmp_path / "all", toy.storage.url, other.url)[0] == 0
    merged = Storage(tmp_path / "all")
    corpus = Corpus.load(merged)
    assert corpus.items[:6] == toy.corpus.items
    assert [(item.key, item.shard, item.position) for item in corpus.items[6:]] == [
        ("x", 2, 0),
        ("y", 2, 1),
        ("z", 3, 0),
    ]
    assert sound(merged)
    column = open_column(merged, toy.spec.name)
    assert merged.read(column.path("000002.tar")) == other.read(column.path("000000.tar"))
    reader = ColumnReader(column)
    assert reader.keys() == ["clip-0", "clip-1", "clip-2", "clip-4", "clip-5", "x", "y", "z"]
    assert np.array_equal(reader.read("z")["temporal"], toy.arrays(4)["temporal"])
    assert merged.names("conversations") == ["chat.parquet", "other-chat.parquet"]
    before = files(tmp_path / "all")
    assert "0 of them new" in command("merge", tmp_path / "all", toy.storage.url, other.url)[1]
    assert files(tmp_path / "all") == before


def test_what_cannot_be_merged_is_refused_before_anything_is_written(toy, tmp_path, build_store, command):
    """One key for two files, one file in two plans, two talks of one name: one line each, and no byte moves."""
    other = other_store(build_store, tmp_path / "other", toy, keys=("clip-1", "y"))
    recut, corpus = Storage(tmp_path / "recut"), Corpus()
    corpus.append((Candidate(item.key, item.uri, item.kind) for item in toy.corpus.items), 3)
    corpus.save(recut)
    chatty = other_store(build_store, tmp_path / "chatty", toy)
    talk(toy.storage, "chat")
    talk(chatty, "chat", "A dog", key="x")
    before = files(toy.storage.url)
    for inputs, message in (
        ([chatty.url.replace("chatty", "other")], "1 keys name other files than in the stores before: clip-1"),
        ([recut.url], "6 items stand in the stores before too, but in other shards"),
        ([chatty.url], "other conversations have this name already; --prefix"),
        ([toy.storage.url], "cannot be merged into itself"),
        ([tmp_path / "nowhere"], "no store is there"),
    ):
        code, _, err = command("merge", toy.storage.url, *inputs)
        assert code == 2
        assert message in err
        assert files(toy.storage.url) == before
    assert command("merge", tmp_path / "new", toy.storage.url, other.url)[0] == 2
    assert not (tmp_path / "new").exists()  # not even a lock
    assert other.exists("corpus.parquet")
    for _ in range(2):
        assert command("merge", toy.storage.url, chatty.url, "--prefix")[0] == 0
        assert toy.storage.names("conversations") == ["chat.parquet", "chatty-chat.parquet"]
        assert [item.key for item in Corpus.load(toy.storage).items][6:] == ["x", "y", "z"]
        assert sound(toy.storage)


def test_a_store_with_stripped_names_is_not_merged_with_its_origin(toy, tmp_path, command):
    """Each key names another path there, and only the reason tells why; two stores sent so come together."""
    far = tmp_path / "far"
    assert command("push", toy.storage.url, far, "--strip-uris")[0] == 0
    for out, source, named in ((toy.storage.url, far, "without a folder"), (far, toy.storage.url, "with their folder")):
        before = files(out)
        code, _, err = command("merge", out, source)
        assert code == 2
        assert f"names clip-0, clip-1, clip-2 and 3 more {named}" in err
        assert "one came by push --strip-uris" in err
        assert files(out) == before
    assert command("push", toy.storage.url, tmp_path / "also", "--strip-uris")[0] == 0
    assert command("merge", far, tmp_path / "also")[0] == 0


def test_a_damaged_shard_is_not_merged(toy, tmp_path):
    """A flipped byte in a tar, or a sidecar of other items, stops the merge before that shard is there."""
    _, b = split(toy, tmp_path)
    tar = b / toy.column.path("000001.tar")
    good = tar.read_bytes()
    tar.write_bytes(good[:-1] + b"x")
    out = Storage(tmp_path / "all")
    with pytest.raises(DamagedError, match=r"000001\.tar: the tar differs"):
        run_merge(plan_merge(out, [Storage(b)], prefix=False), nothing)
    assert list_columns(out)[0].shards() == [0]
    tar.write_bytes(good)
    toy.fill(open_column(Storage(b), toy.spec.name), 1, ["clip-5", "clip-4"])
    with pytest.raises(DamagedError, match=r"000001\.json: its items are not those"):
        run_merge(plan_merge(out, [Storage(b)], prefix=False), nothing)
    assert list_columns(out)[0].shards() == [0]


def test_a_merge_killed_anywhere_goes_on(toy, tmp_path, build_store, monkeypatch):
    """After each file that is published the store is sound, and the same command gives the same bytes in the end."""
    other = other_store(build_store, tmp_path / "other", toy)
    talk(other, "chat", key="x")
    stores = [Storage(toy.storage.url), other]
    whole = Storage(tmp_path / "whole")
    run_merge(plan_merge(whole, stores, prefix=False), nothing)
    writing = Storage.writing
    for limit in range(12):
        out, calls = Storage(tmp_path / f"out{limit}"), itertools.count()

        def failing(self, name, calls=calls, limit=limit):
            if next(calls) == limit:
                raise Killed
            return writing(self, name)

        monkeypatch.setattr(Storage, "writing", failing)
        try:
            run_merge(plan_merge(out, stores, prefix=False), nothing)
        except Killed:
            monkeypatch.setattr(Storage, "writing", writing)
            assert not out.exists("corpus.parquet") or sound(out)
            run_merge(plan_merge(out, stores, prefix=False), nothing)
        monkeypatch.setattr(Storage, "writing", writing)
        assert files(out.url) == files(whole.url)
    assert next(calls) > 10


def test_a_short_copy_is_noticed(toy, tmp_path, monkeypatch):
    """An object store that kept less than was sent: the shard does not become visible."""
    out = Storage(tmp_path / "out")
    target = create_column(out, toy.spec, {})
    monkeypatch.setattr(type(out.fs), "size", lambda self, path: 1)
    with pytest.raises(DamagedError, match="1 bytes arrived"):
        copying.copy_shard(toy.column, target, toy.column.sidecar(0), 0)
    assert target.shards() == []


# card


def test_the_card_tells_the_store_and_no_path(toy, command):
    """Items, columns, digests and counts stand in it; where the media lie on somebody's machine does not."""
    talk(toy.storage, "chat")
    assert command("card", toy.storage.url, "--license", "cc-by-4.0")[0] == 0
    card = toy.storage.read("README.md").decode()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "cc-by-4.0"
    assert header["configs"] == [{"config_name": "chat", "data_files": "conversations/chat.parquet"}]
    assert "6 media files (6 video) in 2 shards" in card
    assert f"### {toy.column.name}" in card
    assert "2 of 2 shards; 5 items usable; not usable: 1 unreadable" in card
    assert toy.spec.fingerprint in card
    assert "| chat | 1 | 0 | 1 | 0 | 0 |" in card
    assert "| `temporal` | * x 4 | float16 |" in card
    assert "/media" not in card
    assert str(Path(toy.storage.url).parent) not in card
    code = card.split("```python\n")[2].split("```")[0].replace('Storage(".")', f"Storage({toy.storage.url!r})")
    exec(compile(code, "card", "exec"), {})


def test_the_card_shows_how_to_read_numbers(toy):
    """A column of texts has none, though its name comes first."""
    texts = toy.spec.model_copy(
        update={"name": "a-caption", "features": {"caption": Feature(shape=(1,), dtype="text")}}
    )
    create_column(toy.storage, texts, {})
    card = make_card(toy.storage, None).decode()
    assert f"columns/{toy.column.name}/000000.tar" in card
    assert f'open_column(Storage("."), "{toy.column.name}")' in card


def test_a_private_path_in_a_spec_is_not_told(tmp_path):
    """A path among the numerics, of weights or of an import, loses its folders in the card."""
    storage = Storage(tmp_path)
    Corpus().save(storage)
    numerics = {"weights": "/home/me/secret/x.pt", "more": [{"from": "s3://bucket/secret/y"}], "layer": "a/b"}
    create_column(storage, ColumnSpec(name="x", modality="audio", numerics=numerics, features={}), {})
    card = make_card(storage, None).decode()
    assert "secret" not in card
    assert all(kept in card for kept in ('"x.pt"', '"y"', '"a/b"', "Licence: not stated"))


def test_a_card_follows_its_store_and_keeps_what_a_person_wrote(toy, command):
    """The same store gives the same card; another byte another digest; words and a licence of one's own stay."""
    assert command("card", toy.storage.url, "--license", "mit")[0] == 0
    first = toy.storage.read("README.md")
    assert command("card", toy.storage.url)[0] == 0
    assert toy.storage.read("README.md") == first
    mine = first.decode().replace("pretty_name: store", "pretty_name: Mine") + "\n## My words\n"
    mine = mine.replace("# store\n", "# store\n\nWhat this is for.\n")
    toy.storage.write("README.md", mine.encode())
    talk(toy.storage, "chat")
    assert command("card", toy.storage.url)[0] == 0
    second = toy.storage.read("README.md").decode()
    assert all(kept in second for kept in ("What this is for.", "## My words", "pretty_name: Mine", "license: mit"))
    digests = [text.split("Digest of the store: `")[1][:64] for text in (first.decode(), second)]
    assert digests[0] != digests[1]
    assert second.count("## Columns") == 1
    toy.storage.write("README.md", b"---\n- a\n---\n")
    with pytest.raises(UserError, match="no YAML mapping"):
        make_card(toy.storage, None)
