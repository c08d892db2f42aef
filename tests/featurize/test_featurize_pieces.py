"""A source is read in pieces and its records wait on disk: what is planned is what reading it whole would plan."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from featurize.sources import read_sources
from featurize.sources.document import read_pieces
from featurize.sources.lines import Line, read_lines
from featurize.sources.report import join
from store import Corpus, Storage, UserError, load_conversations

REPO = Path(__file__).parents[2]
TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat \U0001f408."}]


def chat(number, **fields):
    return {"id": f"talk-{number}", "video": f"{number % 7}.mp4", "conversations": TALK, **fields}


RECORDS = [
    *(chat(n) for n in range(30)),
    chat(30, video=None),
    chat(31, typo="9.mp4", video=None),
    chat(32, video=None, conversations="What"),
    chat(3, video="3.mp4"),
    {**chat(33), "id": None},
    chat(34, start=1, end=2.5),
    chat(35, begin=1),
    chat(36, split="test"),
]
PART = 34  # its place among those that are read
ROWS = [f'{n}.mp4,"A cat, and\na dog {n}",here' for n in range(30)]
LINES = "\n".join(["path,caption,place", *ROWS[:9], '5.mp4,"open', *ROWS[9:20], "", "cut,short", *ROWS[20:], "7.mp4,,"])


@pytest.fixture
def sources(tmp_path):
    """A file of lines of each kind, with faults in both; a few of their clips are there."""
    (tmp_path / "media").mkdir()
    for name in ("1.mp4", "3.mp4", "5.mp4"):
        (tmp_path / "media" / name).write_bytes(name.encode())
    (tmp_path / "media" / "4.mp4").touch()
    (tmp_path / "talk.jsonl").write_text("\n".join([*map(json.dumps, RECORDS), "", "{broken", json.dumps(chat(40))]))
    (tmp_path / "list.csv").write_text(LINES)
    return [str(tmp_path / "talk.jsonl"), str(tmp_path / "list.csv")]


def planned(python, tmp_path, sources, name):
    words = ("--store", tmp_path / name, "--media-root", tmp_path / "media", "--report", tmp_path / f"{name}.json")
    done = python("featurize", "plan", *sources, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / f"{name}.json").read_text())


@pytest.mark.parametrize("size", [1, 2, 7, 30])
def test_pieces_of_any_size_say_what_the_whole_says(tmp_path, sources, monkeypatch, size):
    """Records, ids, what is left out, counts and reasons."""
    root = str(tmp_path / "media")
    whole = read_sources(sources, root)
    records, reports = [list(source.records) for source in whole], join(whole)
    monkeypatch.setattr("featurize.sources.document.PIECE", size)
    monkeypatch.setattr("featurize.sources.spool.ROWS", size)
    assert len(list(read_pieces(sources[0]))) > 1
    pieces = read_sources(sources, root)
    twice = read_sources(sources[:1] * 2, root)
    assert [len(source.records) for source in twice] == [len(records[0])] * 2
    for source, own, read in zip(whole, records, pieces, strict=True):
        assert list(read.records) == own
        assert [read.records[n] for n in range(len(own))] == own
        assert read.records[1:9:3] == own[1:9:3]
        assert read.left_out == source.left_out
    assert join(pieces) == reports
    assert [report.asks for report in join(pieces)] == [report.asks for report in reports]
    (report, listed) = join(pieces)
    assert (report.conversations, len(report.left_out)) == (38, 2)
    assert report.repeated_ids == ["talk-3"]
    assert report.repeated_records == [r.id for n, r in enumerate(records[0]) if n >= 7 and n not in (30, PART)]
    assert (report.media, report.found, report.parts, report.without_media) == (7, 3, 1, 2)
    assert report.unreadable == {f"{root}/4.mp4": "0 bytes"}
    assert list(report.missing) == [f"{root}/{n}.mp4" for n in (0, 2, 6)]
    assert report.unread == {"typo": 1, "begin": 1}
    assert [left.reason for left in listed.left_out] == [
        "line 20: not CSV: ',' expected after '\"'",
        "line 44: expected 3 fields, found 2; a comma or line break in a field needs quotes",
    ]


@pytest.mark.parametrize("text", [LINES, "", "\n\n", 'a\n"b', "a,b\r\n1,2\r\n", 'a\n"x\ny"\n"z\nw\n"'])
def test_rows_read_from_a_stream_are_those_of_a_list(text):
    """A row that is broken gives back all lines but its first."""

    def plainly(lines, number=1):
        import csv

        while lines:
            try:
                reader = csv.reader(iter(lines), strict=True)
                fields = next(reader)
                count, fault = reader.line_num, ""
            except csv.Error as error:
                fields, count, fault = [], 1, f"not CSV: {error}"
            if fault or any(map(str.strip, fields)) or lines[0].strip():
                yield Line(number, fields, fault)
            lines, number = lines[count:], number + count

    lines = text.splitlines(keepends=True)
    assert list(read_lines(lines)) == list(plainly(lines))


def test_a_store_holds_what_was_read(python, tmp_path, sources):
    """The key of each conversation's file, its turns and its meta data."""
    whole = read_sources(sources, str(tmp_path / "media"))
    said, _ = planned(python, tmp_path, sources, "a")
    assert [line.split(" ", 1)[1] for line in said.splitlines() if line.startswith("conversations")] == [
        "talk: 37 written", "talk-test: 1 written", "list: 30 written",
    ]  # fmt: skip
    storage = Storage(tmp_path / "a")
    keys = {item.part: item.key for item in Corpus.load(storage).items}
    for source, name in ((0, "talk"), (0, "talk-test"), (1, "list")):
        kept = [
            r for r in whole[source].records if r.turns and (r.meta.get("split") == "test") == name.endswith("test")
        ]
        expected = [(r.id, r.media and keys[r.media.part], r.turns, r.meta) for r in kept]
        assert [(c.id, c.key, c.turns, c.meta) for c in load_conversations(storage, name)] == expected


def test_text_that_is_no_utf8_far_down_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b"".join(json.dumps(chat(n)).encode() + b"\n" for n in range(500)) + b'{"id": "\xff"}'
    )
    with pytest.raises(UserError, match=r"a\.jsonl: not UTF-8: "):
        read_sources([str(tmp_path / "a.jsonl")], None)


LIMITED = """
import resource, sys
import featurize.plan, avllm.__main__
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]) << 20,) * 2)
sys.argv[1:] = sys.argv[2:]
avllm.__main__.main()
"""


def test_a_source_whose_records_fill_more_than_memory_is_planned(tmp_path):
    """They take some 300 MB as objects; the process has 400 MB of data in all, of which imports take half."""
    talk = [TALK[0], {"from": "gpt", "value": "word " * 400}]
    with open(tmp_path / "talk.jsonl", "w") as file:
        for number in range(100_000):
            file.write(json.dumps(chat(number, video=f"{number}.mp4", conversations=talk)) + "\n")
    words = ["featurize", "plan", str(tmp_path / "talk.jsonl"), "--store", str(tmp_path / "store"), "--unseen"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "400", *words], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(Corpus.load(Storage(tmp_path / "store"))) == 100_000
