"""What plan says of files and conversations: the join report, names of any bytes, and media that leak into training."""

import json
import os
import shutil
from dataclasses import replace

import pytest

from featurize.leaks import find_leaks
from featurize.sources import LeftOut, read_sources
from featurize.sources.chat import meant_by
from featurize.sources.files import MediaFiles
from featurize.sources.report import JoinReport, join
from store import Corpus, MediaItem, Storage, load_conversations
from store.exchange.transfer import strip


def chat(id, video, answer="yes"):
    return {
        "id": id,
        "video": video,
        "conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": answer}],
    }


def test_the_report_of_a_source_with_every_defect(tmp_path, media, bad_media):
    """All counts and names at once; without `probe` only what a listing shows."""
    for source, name in ((media / "red-loud.mp4", "good.mp4"), (media / "red-loud.mp4", "copy.mp4")):
        shutil.copy(source, tmp_path / name)
    for name in ("empty.mp4", "text.mp4"):
        shutil.copy(bad_media / name, tmp_path / name)
    shutil.copy(bad_media / "text.mp4", tmp_path / "broken.png")
    (tmp_path / "tail.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:-1] + b"!")  # of equal size only
    names = [
        "good.mp4",
        "good.mp4",
        "copy.mp4",
        "empty.mp4",
        "text.mp4",
        "gone.mp4",
        "tail.mp4",
        "good.mp4",
        "broken.png",
    ]
    ids = ["1", "2", "3", "4", "5", "6", "7", "2", "9"]
    records = [chat(id, name, f"yes {i % 7}") for i, (id, name) in enumerate(zip(ids, names, strict=True))]
    (tmp_path / "chat.json").write_text(json.dumps([*records, chat("10", ["good.mp4", "copy.mp4"])]))
    (source,) = read_sources([str(tmp_path / "chat.json")], None)

    def path(name):
        return str(tmp_path / name)

    expected = JoinReport(
        source=path("chat.json"),
        format="llava",
        conversations=9,
        media=7,
        found=5,
        missing=[path("gone.mp4")],
        unreadable={path("empty.mp4"): "0 bytes"},
        repeated_ids=["2"],
        repeated_records=["2"],
        copies=[],
        ambiguous={},
        left_out=[LeftOut("10", "several media files; a conversation has one")],
        parts=0,
    )
    assert join([source]) == [expected]
    [probed] = join([source], probe=True)
    assert probed.unreadable.pop(path("text.mp4")).startswith("FFmpeg: ")
    assert probed.unreadable.pop(path("broken.png")).startswith("Pillow: ")
    assert probed == replace(expected, found=3, copies=[[path("good.mp4"), path("copy.mp4")]])


def test_the_report_is_printed_and_written(python, tmp_path, media):
    """Also by a dry run, which writes nothing else."""
    (tmp_path / "chat.json").write_text(json.dumps([chat("1", "red-loud.mp4"), chat("2", "gone[1].mp4")]))
    words = ["featurize", "plan", tmp_path / "chat.json", "--media-root", media, "--store", tmp_path / "store"]
    done = python(*words, "--dry-run", "--report", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    heads, row = (
        line.split() for line in done.stdout.splitlines() if line.strip().startswith(("source", "chat.json "))
    )
    assert heads == ["source", "conversations", "media", "found", "missing", "unreadable", "repeated", "out"]  # whole
    assert row == ["chat.json", "2", "2", "1", "1", "0", "0", "0"]
    assert f"{tmp_path / 'chat.json'}: read as llava" in done.stdout
    assert f"1 not found: {media}/gone[1].mp4" in done.stdout
    assert f"{tmp_path / 'chat.json'}: 2 new media files would be added" in done.stdout
    assert f"{tmp_path / 'store'}: would have 2 items in 2 shards" in done.stdout
    assert "conversations chat: 2 would be written" in done.stdout
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["missing"] == [f"{media}/gone[1].mp4"]
    assert not (tmp_path / "store").exists()


def test_a_store_with_stripped_names_takes_no_files(python, tmp_path, media):
    """Their folder is not known there, so each known file would be planned and encoded again under another key."""
    assert python("featurize", "plan", media, "--store", tmp_path / "store").returncode == 0
    strip(Corpus.load(Storage(tmp_path / "store"))).save(Storage(tmp_path / "far"))
    before = (tmp_path / "far" / "corpus.parquet").read_bytes()
    done = python("featurize", "plan", media, "--store", tmp_path / "far")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'far'}: came by push --strip-uris")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "far" / "corpus.parquet").read_bytes() == before
    (tmp_path / "words.json").write_text(json.dumps([{**chat("1", ""), "video": None}]))
    assert python("featurize", "plan", tmp_path / "words.json", "--store", tmp_path / "far").returncode == 0


def test_a_file_whose_name_is_not_utf8_is_planned_like_any_other(python, tmp_path, media):
    """Such names are on every old disk; its bytes come back from the plan as they are on the disk."""
    folder = os.fsencode(tmp_path / "clips")
    os.mkdir(folder)
    for name in (b"\xff.mp4", b"\xfe.mp4", b"bytes:%ff.mp4"):
        shutil.copy(media / "red-loud.mp4", folder + b"/" + name)
    done = python("featurize", "plan", tmp_path / "clips", "--store", tmp_path / "store", "--probe")
    assert done.returncode == 0, done.stderr
    assert "unreadable:" not in done.stdout
    assert "\\udcff.mp4" in done.stdout  # named as one of three copies
    corpus = Corpus.load(Storage(tmp_path / "store"))
    assert {os.fsencode(item.uri) for item in corpus.items} == {os.path.join(folder, n) for n in os.listdir(folder)}
    assert len({item.key for item in corpus.items}) == 3
    assert "0 new" in python("featurize", "plan", tmp_path / "clips", "--store", tmp_path / "store").stdout


def test_a_name_that_several_files_answer_to(tmp_path):
    """The very name first, then the wanted kind, then the shorter path; and where that leaves a choice, it is told."""
    for name in ("a/1.mp4", "b/c/1.mp4", "1.wav", "a/2.webm", "b/2.mp4", "3/1.jpg", "video12.mp4", "x_30.000.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    files = MediaFiles(str(tmp_path))

    def name(*names, kinds=("video",)):
        return files.named(names, kinds).name

    assert name("2.webm") == "a/2.webm"
    assert name("c/1") == "b/c/1.mp4"
    assert name("1", kinds=("audio", "video")) == "1.wav"
    assert name("3") == "3"  # a folder of stills
    assert (name("2"), name("12"), name("x_30.000")) == ("a/2.webm", "12.mp4", "x_30.000.mp4")
    assert files.ambiguous == {"2": ["a/2.webm", "b/2.mp4"]}
    assert name("1") == "a/1.mp4"
    assert files.ambiguous["1"] == ["a/1.mp4", "b/c/1.mp4"]
    outside = files.named(["../x", "/y/1"])
    assert (outside.uri, outside.bytes) == (f"{tmp_path.parent}/x.mp4", None)


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").write_bytes(b"x")
    (tmp_path / "real" / "again").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "lost.mp4").symlink_to(tmp_path / "nowhere")
    assert [c.name for c in MediaFiles(str(tmp_path)).all()] == ["linked/a.mp4", "real/a.mp4"]


def test_a_media_root_behind_a_url():
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe({"/clips/a/v_12345678901.mkv": b"123", "/clips/b.mp4": b"1"})
    files = MediaFiles("memory://clips/")
    assert files.named(["12345678901", "v_12345678901"]).uri == "memory://clips/a/v_12345678901.mkv"
    assert [files.at(name, "video").bytes for name in ("b.mp4", "a/v_12345678901.mkv", "a/b.mp4", "c/b.mp4")] == [
        1,
        3,
        None,
        None,
    ]
    fs.rm("/clips", recursive=True)


def item(key, uri):
    return MediaItem(key, uri, "video", 0, 0, 1)


@pytest.mark.parametrize(
    ("train", "evaluation", "by"),
    [
        (("k", "/a/1.mp4"), ("k", "/b/2.mp4"), "key"),
        (("k", "/a/1.mp4"), ("l", "/a/1.mp4"), "uri"),
        (("k", "/a/one.mp4"), ("l", "s3://b/one.webm"), "stem"),
        (("k", "/a/v_1QIUV7WYKXg.mp4"), ("l", "/b/1QIUV7WYKXg_000012.mp4"), "youtube"),
        (("k", "/a/1QIUV7WYKXg_5_15.avi"), ("l", "/b/Y1QIUV7WYKXg.wav"), "youtube"),
        (("k", "/a/one.mp4"), ("l", "/a/two.mp4"), None),
        (("k", "/a/1QIUV7WYKXg.mp4"), ("l", "/a/1QIUV7WYKXh.mp4"), None),
        (("k", "/a/1.mp4"), ("l", "/a/1.000.mp4"), None),
    ],
)
def test_a_leak_is_known_by_its_surest_sign(train, evaluation, by):
    found = find_leaks([item(*train)], [item(*evaluation)])
    assert [leak.by for leak in found] == ([by] if by else [])


def test_leaks_are_listed_and_end_with_1(python, tmp_path, media):
    """Also across stores; and plan warns at once, whichever side is planned first."""
    shutil.copytree(media, tmp_path / "other")
    train = [chat("1", "red-loud.mp4"), chat("2", "silent.mp4")]
    for name, records in (("train", train), ("test", [chat("3", "red-loud.mp4")]), ("more", [chat("4", "x.mp4")])):
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    (tmp_path / "other" / "x.mp4").write_bytes(b"x")

    def plan(name, root, store="store"):
        words = [tmp_path / f"{name}.json", "--media-root", root, "--store", tmp_path / store]
        done = python("featurize", "plan", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def leaks(*words, store="store"):
        return python("featurize", "leaks", "--store", tmp_path / store, *words)

    assert "warning" not in plan("train", media)
    assert "warning" not in plan("more", tmp_path / "other")
    said = plan("test", media)
    assert "warning: 1 media of the evaluation conversations test are also in training, first" in said
    assert f"avllm featurize leaks more train --against test --store {tmp_path / 'store'}\n" in said
    assert "warning: 1 media" in plan("train", tmp_path / "other")  # the same clip under another path
    assert "warning" not in plan("more", tmp_path / "other")
    done = leaks("train", "more", "--against", "test")
    assert done.returncode == 1
    assert "1 of 1 evaluation media are among the 3 of training" in done.stdout
    assert "stem" in done.stdout
    done = leaks("train", "more", "--against", "test", "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert [(leak["by"], leak["evaluation"]) for leak in said.pop("leaks")] == [("stem", f"{media}/red-loud.mp4")]
    assert said == {"training": 3, "evaluation": 1}
    assert leaks("more", "--against", "test").returncode == 0
    plan("test", tmp_path / "other", "second")
    across = leaks("train", "--against", "test", "--against-store", tmp_path / "second")
    assert across.returncode == 1
    wrong = leaks("none", "--against", "test")
    assert wrong.returncode == 2
    assert wrong.stderr.endswith("store: has no conversations none; it has: more, test, train\n")


def test_copies_under_other_names_are_found_in_all_sources(python, tmp_path, media):
    """The name of a downloaded video says nothing of its content."""
    for name in ("train/one.mp4", "train/other.mp4", "test/two.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(media / ("silent.mp4" if "other" in name else "red-loud.mp4"), tmp_path / name)
    (tmp_path / "train.json").write_text(json.dumps([chat("1", "train/one.mp4"), chat("2", "train/other.mp4")]))
    (tmp_path / "test.json").write_text(json.dumps([chat("3", "test/two.mp4")]))
    words = [tmp_path / "train.json", tmp_path / "test.json", "--store", tmp_path / "store"]
    done = python("featurize", "plan", *words, "--probe", "--report", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    copies = [report["copies"] for report in json.loads((tmp_path / "report.json").read_text())]
    assert copies == [[], [[str(tmp_path / "train" / "one.mp4"), str(tmp_path / "test" / "two.mp4")]]]
    assert "1 media of the evaluation conversations test are also in training, first" in done.stdout
    assert "(same content)" in done.stdout
    leaks = ["featurize", "leaks", "train", "--against", "test", "--store", tmp_path / "store"]
    assert python(*leaks).returncode == 0
    probed = python(*leaks, "--probe", "--json")
    assert probed.returncode == 1
    assert [leak["by"] for leak in json.loads(probed.stdout)["leaks"]] == ["content"]


def test_splits_of_one_file_are_kept_apart(python, tmp_path):
    """VGGSound's one file holds both splits; as one set of conversations, training would read the test split."""
    (tmp_path / "vggsound.csv").write_text("---g-f_I2yQ,1,marching,test\n--0PQM4-hqg,30,water,train\n")
    words = ["featurize", "plan", tmp_path / "vggsound.csv", "--store", tmp_path / "store", "--unseen"]
    assert python(*words).returncode == 0
    storage = Storage(tmp_path / "store")
    for split in ("train", "test"):
        assert {c.meta["split"] for c in load_conversations(storage, f"vggsound-{split}")} == {split}
    assert storage.names("conversations") == ["vggsound-test.parquet", "vggsound-train.parquet"]


def test_conversations_of_a_name_are_not_lost_to_another_file_of_that_name(python, tmp_path):
    """The same file may be planned again, edited and with more records; one that lacks some has to be asked for."""
    store, other = tmp_path / "store", tmp_path / "alt"
    other.mkdir()

    def plan(file, *words):
        return python("featurize", "plan", file, "--store", store, "--unseen", "--media-root", tmp_path, *words)

    def ids(name="chat"):
        return [each.id for each in load_conversations(Storage(store), name)]

    mine, theirs = tmp_path / "chat.json", other / "chat.json"
    mine.write_text(json.dumps([chat(str(i), f"{i}.mp4") for i in range(4)]))
    theirs.write_text(json.dumps([chat("3", "3.mp4"), chat("9", "9.mp4")]))
    assert plan(mine).returncode == 0
    before = (store / "corpus.parquet").read_bytes()
    for words in ([], ["--dry-run"]):
        refused = plan(theirs, *words)
        assert refused.returncode == 2
        assert refused.stderr.splitlines() == [
            f"error: conversations chat: 3 of the 4 that are there are not in {theirs}; "
            "--name NAME keeps both, --replace lets them go"
        ]
    assert ids() == ["0", "1", "2", "3"]
    assert (store / "corpus.parquet").read_bytes() == before
    mine.write_text(json.dumps([chat(str(i), f"{i}.mp4", "no") for i in range(5)]))
    assert plan(mine).returncode == 0
    assert ids() == ["0", "1", "2", "3", "4"]
    assert plan(theirs, "--name", "both").returncode == 0
    assert (len(ids()), ids("both")) == (5, ["3", "9"])
    assert plan(theirs, "--replace").returncode == 0
    assert ids() == ["3", "9"]
    stored = store / "conversations" / "chat.parquet"
    stored.write_bytes(stored.read_bytes()[:-9])
    assert plan(mine).returncode == 0  # planning again mends a damaged file
    assert len(ids()) == 5
    refused = python("featurize", "plan", mine, "--store", mine, "--unseen")
    assert refused.stderr == f"error: --store {mine}: a file; expected a folder or an fsspec URL\n"


@pytest.mark.parametrize(
    ("text", "tag", "token"),
    [
        ("What? <aud_vis>", "<aud_vis>", "<AUD_VIS>"),
        ("<AV>\nWhat?", "<AV>", "<AUD_VIS>"),
        ("One.\n <Audio> \nWhat?", "<Audio>", "<AUD>"),
        ("<|video|> What?", "<|video|>", "<VIS>"),
        ("What of <AV> receivers?", None, None),
        ("<video> What? <AUD_VIS>", None, None),
        ("<VIDEO>x</VIDEO>", None, None),
        ("Is x <visitor>", None, None),
    ],
)
def test_a_tag_that_is_nearly_a_token_is_named(tmp_path, text, tag, token):
    """Else it stays in the text, and a question about a sound is asked about pictures."""
    record = {**chat("1", "a.mp4"), "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "x"}]}
    (tmp_path / "chat.json").write_text(json.dumps([record]))
    (report,) = join(read_sources([str(tmp_path / "chat.json")], None))
    assert report.lookalikes == ({tag: 1} if tag else {})
    assert tag is None or meant_by(tag) == token
