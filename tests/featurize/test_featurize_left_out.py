"""One record, file or name that cannot be used is told, and the rest of the plan goes on."""

import json

import pytest

from featurize.sources import read_sources
from featurize.sources.report import join, show
from store import Storage, Turn, UserError, load_conversations

HUMAN, GPT = {"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}
EXPECTED = "expected {'from': 'human' or 'user', 'value': text}"
ANSWER = "expected {'from': 'gpt' or 'assistant', 'value': text}"
PATHS = "expected a path, or a list of paths; found "


def chat(id, **fields):
    return {"id": id, "conversations": [HUMAN, GPT], **fields}


def read(folder, content, name="a.json", **options):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    (source,) = read_sources([str(folder / name)], None, **options)
    return source


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"conversations": [GPT, HUMAN]}, f"record 2, message 1: {EXPECTED}"),
        ({"conversations": [HUMAN, GPT, HUMAN]}, "record 2: 3 messages; expected a question and an answer in turn"),
        ({"conversations": [HUMAN, HUMAN]}, f"record 2, message 2: {ANSWER}"),
        ({"conversations": [{**HUMAN, "from": "Human"}, GPT]}, f"record 2, message 1: {EXPECTED}"),
        ({"conversations": [{**HUMAN, "value": [{"type": "text", "text": "What?"}]}, GPT]},
         f"record 2, message 1: {EXPECTED}"),
        ({"conversations": [{**HUMAN, "value": None}, GPT]}, f"record 2, message 1: {EXPECTED}"),
        ({"conversations": "What"}, "record 2, field 'conversations': expected a list of {from, value}; found 'What'"),
        ({"videos": [["1.jpg", "2.jpg"]]}, f"record 2, field 'videos': {PATHS}[['1.jpg', '2.jpg']]"),
        ({"images": [{"path": "1.jpg"}]}, f"record 2, field 'images': {PATHS}[{{'path': '1.jpg'}}]"),
        ({"image": 5}, f"record 2, field 'image': {PATHS}5"),
        ({"image": "a.svg"}, "record 2, field 'image': 'a.svg' has no media extension; known are video: 3g2 3gp "),
        ({"conversations": [HUMAN, {**GPT, "value": "half \ud83d"}]}, "record 'bad': its text holds half a character"),
        (7, "record 2: expected an object, found int"),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_used_is_left_out_and_the_rest_goes_on(tmp_path, bad, reason):
    """A file of 600,000 records is not mended one message at a time; `strict` stops at the first all the same."""
    bad = chat("bad", **bad) if isinstance(bad, dict) else bad
    records = [chat("a"), bad, chat("b"), bad]
    source = read(tmp_path, records)
    assert [record.id for record in source.records] == ["a", "b"]
    assert [each.fault for each in source.left_out] == [True, True]
    assert source.left_out[0].id == ("bad" if isinstance(bad, dict) else "2")
    assert source.left_out[0].reason.startswith(reason)
    with pytest.raises(UserError) as error:
        read(tmp_path, records, strict=True)
    assert str(error.value).startswith(f"{tmp_path}/a.json, {reason}")


def test_a_file_none_of_whose_records_can_be_used_is_refused(tmp_path):
    """It is of another form, or of none: an empty plan would hide that."""
    with pytest.raises(UserError) as error:
        read(tmp_path, [chat(id, conversations=[GPT]) for id in "ab"])
    assert str(error.value) == f"{tmp_path}/a.json, record 1, message 1: {EXPECTED} (and 1 more like it)"


def test_records_without_anything_wrong_do_not_stop_a_strict_plan(tmp_path):
    source = read(tmp_path, [chat("a"), chat("b", image=["1.jpg", "2.jpg"])], strict=True)
    assert [(each.id, each.fault) for each in source.left_out] == [("b", False)]


def test_a_line_that_is_not_json_is_one_record(tmp_path):
    lines = [json.dumps({"path": f"{i}.mp4"}) for i in range(3)]
    source = read(tmp_path, "\n".join([lines[0], '{"path": "cut.m', "", *lines[1:]]), "a.jsonl")
    assert [record.id for record in source.records] == ["0.mp4", "1.mp4", "2.mp4"]
    assert [each.reason[:16] for each in source.left_out] == ["line 2: not JSON"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"path": "x.mp4"}\n{"path": "y.mp4"}\n', "with an object on each line, call the file .jsonl"),
        (
            "a.jsonl",
            '[\n{"path": "x.mp4"}\n]',
            "expected a JSON object on each line; found a list: call the file .json",
        ),
    ],
)
def test_a_file_called_by_another_form_is_told_its_own(tmp_path, name, text, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, text, name)
    assert str(error.value).endswith(message)


def test_an_answer_that_cannot_be_used_leaves_out_its_question_alone(tmp_path):
    questions = [{"video_name": "v", "question": "who?", "question_id": id} for id in "123"]
    answers = [{"answer": "a man", "question_id": "1"}, {"answer": None, "question_id": "2"}]
    (tmp_path / "val_a.json").write_text(json.dumps(answers))
    source = read(tmp_path, questions, "val_q.json")
    assert [record.id for record in source.records] == ["1"]
    assert [each.reason for each in source.left_out] == [
        f"{tmp_path}/val_a.json, record 2, field 'answer': expected text; found None",
        "record 3, field 'question_id': no answer to '3'",
    ]


def test_plan_tells_what_it_left_out_and_strict_stops(python, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([chat("a"), chat("b", conversations=[GPT]), chat("c", image="c.jpg")]))
    (tmp_path / "c.jpg").write_bytes(b"x")
    words = ["featurize", "plan", tmp_path / "a.json", "--store", tmp_path / "store"]
    strict = python(*words, "--strict")
    reason = f"record 2, message 1: {EXPECTED}"
    assert (strict.returncode, strict.stderr) == (2, f"error: {tmp_path}/a.json, {reason}\n")
    assert not (tmp_path / "store").exists()
    done = python(*words, "--report", tmp_path / "report.json")
    assert done.returncode == 0, done.stderr
    assert f"1 left out: id 'b' ({reason})" in " ".join(done.stdout.split())
    assert "conversations ask: 1 text, 1 visual" in done.stdout
    (report,) = json.loads((tmp_path / "report.json").read_text())
    assert report["left_out"] == [{"id": "b", "reason": reason, "fault": True}]
    assert report["asks"] == {"text": 1, "visual": 1}
    assert [each.id for each in load_conversations(Storage(tmp_path / "store"), "a")] == ["a", "c"]


@pytest.mark.parametrize("name", ["none/report.json", "."])
def test_a_report_that_cannot_be_written_is_told_before_anything_is_planned(python, tmp_path, name):
    (tmp_path / "a.mp4").write_bytes(b"x")
    done = python("featurize", "plan", tmp_path, "--store", tmp_path / "store", "--report", tmp_path / name)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --report {tmp_path / name}: ")
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    assert not (tmp_path / "store").exists()


def test_files_that_a_folder_holds_beside_media_are_counted_and_hidden_ones_never_planned(tmp_path):
    """What macOS and cameras leave behind has the extension of media, but nothing in it."""
    hidden = ["._x.jpg", "__MACOSX/x.jpg", "b/.thumbs/x.jpg", ".x.mp4", "@eaDir/x.mp4"]
    for name in ("x.jpg", "b/y.TS", "a.txt", "b/c.txt", "d.psd", "README", *hidden):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (source,) = read_sources([str(tmp_path)], None)
    assert [record.id for record in source.records] == ["b/y.TS", "x.jpg"]
    assert join([source])[0].passed_over == {"hidden": 5, ".txt": 2, ".psd": 1, "no extension": 1}


def test_hidden_files_do_not_make_a_folder_of_annotations_one_of_media(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([chat("a")]))
    for name in ("._a.json", "._x.jpg"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert [source.url for source in read_sources([str(tmp_path)], None)] == [f"{tmp_path}/a.json"]


def test_a_mistyped_field_is_named_where_records_name_no_media(tmp_path, capsys):
    """Planned as text only, it would train without its media; the only sign was a count of 0."""
    [report] = join([read(tmp_path, [chat("a", vide="a.mp4"), chat("b", vide="b.mp4"), chat("c", image="c.jpg")])])
    assert (report.without_media, report.unread) == (2, {"vide": 2})
    show([report])
    said = " ".join(capsys.readouterr().out.split())
    assert "most conversations, 2 of 3, name no media file: text only" in said
    assert "fields of records without a media file that are not read: vide" in said
    [report] = join([read(tmp_path, [chat("a", image="a.jpg", topic="x"), chat("b", image="b.jpg"), chat("c")])])
    assert (report.without_media, report.unread) == (1, {})


def test_a_report_counts_the_turns_by_the_sense_that_they_ask_by(tmp_path):
    """A turn without a token becomes text only where another turn has one."""
    messages = [HUMAN, GPT, {**HUMAN, "value": "<AUD> Hear?"}, GPT]
    [report] = join([read(tmp_path, [chat("a", video="a.mp4", conversations=messages), chat("b", video="b.mp4")])])
    assert report.asks == {"text": 1, "audio": 1, "visual": 1}


def test_captions_of_a_list_become_conversations(tmp_path):
    text = "path,caption,place\na.jpg,A cat.,here\nb.wav,Rain.,\nc.mp4,,there\n"
    source = read(tmp_path, text, "train.csv")
    asked = ["Describe this image in one sentence.", "Describe this sound in one sentence."]
    turns = [(Turn(asked[0], "visual", "A cat."),), (Turn(asked[1], "audio", "Rain."),), ()]
    assert [record.turns for record in source.records] == turns
    assert source.records[0].meta == {"place": "here", "captions": ["A cat."], "split": "train"}
    own = read(tmp_path, text, "train.csv", instruction="What is it?")
    assert [record.turns[0].instruction for record in own.records if record.turns] == ["What is it?"] * 2


def test_columns_of_a_list_that_are_not_read_are_named(tmp_path):
    assert join([read(tmp_path, "path,label,id\na.jpg,cat,1\nb.jpg,dog,2\n", "a.csv")])[0].unread == {"label": 2}
