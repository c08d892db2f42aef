"""Looking at a store by scans finds what loading it whole would find."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from store import (
    Candidate,
    ColumnSpec,
    Conversation,
    Corpus,
    DamagedError,
    Failure,
    Feature,
    Storage,
    Turn,
    UserError,
    create_column,
    save_conversations,
)
from store.__main__ import app
from store.browse import Record, conversations_about, count_items, find_items, items_of, record_of


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A plan of 700 items, mapped in batches of 64."""
    monkeypatch.setattr("store.corpus.ROWS", 64)
    storage, corpus = Storage(tmp_path / "store"), Corpus()
    corpus.append(Candidate(f"{'AB'[i % 2]}/{i:03}.mp4", f"/x/{i}\udce9.mp4", "video", start=i / 2) for i in range(700))
    corpus.save(storage)
    return storage, corpus


@pytest.mark.parametrize("search", ["", "a-", "B-1", "99", "nothing"])
@pytest.mark.parametrize("limit", [1, 50, 64, 1000])
def test_pages_of_a_search_are_together_what_a_whole_reading_finds(planned, search, limit):
    storage, corpus = planned
    found, start = [], 0
    while start is not None:
        page = find_items(storage, search, start, limit)
        assert len(page.items) <= limit
        found, start = found + page.items, page.next
        assert page.items or start is None
    assert found == [item for item in corpus.items if search.lower() in item.key.lower()]


def test_items_are_found_by_their_keys_and_counted(planned):
    storage, corpus = planned
    some = corpus.items[5::130]
    assert items_of(storage, [*(item.key for item in some), "unknown"]) == {item.key: item for item in some}
    assert count_items(storage) == 700


def test_a_byte_that_changed_is_damage_and_not_another_key(planned):
    storage, _ = planned
    path = Path(storage.path("corpus.parquet"))
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"corpus\.parquet"):
        find_items(storage, "x")


def test_conversations_about_an_item_are_bounded_and_in_order(planned):
    storage, corpus = planned
    key = corpus.items[0].key
    talks = [Conversation(str(i), key if i % 3 else None, (Turn("What?", "visual", str(i)),)) for i in range(300)]
    save_conversations(storage, "talk", talks)
    assert conversations_about(storage, "talk", key, 100) == [talk for talk in talks if talk.key][:100]
    assert conversations_about(storage, "talk", "unknown") == []


@pytest.fixture
def written(tmp_path):
    """A column of six items: two usable, one failed, the shard of three not published."""
    storage, corpus = Storage(tmp_path / "store"), Corpus()
    corpus.append([Candidate(f"{i}.mp4", f"/x/{i}.mp4", "video") for i in range(6)], shard_size=3)
    corpus.save(storage)
    features = {"said": Feature(shape=(None,), dtype="text"), "seen": Feature(shape=(None, 3), dtype="float16")}
    column = create_column(storage, ColumnSpec(name="x", modality="visual", numerics={}, features=features), {})
    first, failed, last, *_ = corpus.items
    with column.write_shard(0) as writer:
        for item, length in ((first, 1), (last, 513)):
            arrays = {"said": np.array(["a" * length, "<é>"]), "seen": np.zeros((length, 3), np.float16)}
            writer.add(item.key, arrays, {"times": [0.5] * length})
        writer.fail(Failure(key=failed.key, code="truncated", reason="half"))
    return storage, corpus, column


def test_a_record_is_what_was_written(written):
    """Facts lie behind the arrays in the tar, whatever their size; a changed byte of a record is damage."""
    storage, corpus, column = written
    first, failed, last, *unpublished = corpus.items
    arrays = {item.key: item.arrays for item in column.sidecar(0).items}
    assert record_of(column, first) == Record(arrays[first.key], {"said": ["a", "<é>"]}, {"times": [0.5]})
    assert record_of(column, last) == Record(arrays[last.key], {"said": ["a" * 513, "<é>"]}, {"times": [0.5] * 513})
    assert record_of(column, failed) == Failure(key=failed.key, code="truncated", reason="half")
    assert [record_of(column, item) for item in unpublished] == [None] * 3
    path = Path(storage.path(column.path("000000.tar")))
    whole = path.read_bytes()
    for place in (whole.index(b'["a"'), whole.index(f"{first.key}.json".encode())):
        path.write_bytes(whole[:place] + b"?" + whole[place + 1 :])
        with pytest.raises(DamagedError, match=r"000000\.tar"):
            record_of(column, first)


def test_a_store_that_is_not_there_is_told(tmp_path):
    done = CliRunner().invoke(app, ["show", str(tmp_path / "none"), "x"])
    assert str(done.exception).startswith(
        f"{tmp_path}/none: no store is there: no corpus.parquet; avllm featurize plan"
    )


def test_the_command_shows_all_that_is_known_of_an_item(written):
    storage, corpus, column = written
    first, failed, last, unpublished, *_ = corpus.items
    talks = [Conversation(str(i), first.key, (Turn("What?", "visual", f"answer {i}"),)) for i in range(30)]
    save_conversations(storage, "talk", talks)

    def shown(item, *options):
        done = CliRunner().invoke(app, ["show", storage.url, item.key, *options])
        assert done.exit_code == 0, done.output
        return done.output

    said = shown(first)
    for words in ("0-mp4: video, /x/0.mp4", "seen", "1 x 3", "float16", "times: [0.5]", '["a", "<é>"]'):
        assert words in said
    assert "conversations talk: 20 or more" in said
    assert "answer 19" in said
    known = json.loads(shown(first, "--json"))
    assert known["item"]["key"] == first.key
    assert known["columns"][column.name]["arrays"] == {"said": [[2], "text"], "seen": [[1, 3], "float16"]}
    assert known["conversations"]["talk"][1]["turns"] == [
        {"instruction": "What?", "modality": "visual", "response": "answer 1"}
    ]
    assert "truncated: half" in shown(failed)
    assert "not featurized" in shown(unpublished)
    assert max(map(len, shown(last).splitlines())) > 513  # captions are not cut
    for key in ("2.mp4", "2_mp4"):
        unknown = CliRunner().invoke(app, ["show", storage.url, key])
        assert isinstance(unknown.exception, UserError)
        assert f"{storage.url}: no item has the key {key!r}; there are: 2-mp4" in str(unknown.exception)
