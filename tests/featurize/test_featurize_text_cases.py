"""What users' annotation files did to a plan, by public bug reports: each kind of fault, and the right value."""

import json
from pathlib import Path

import pytest

from featurize.sources import read_sources
from featurize.sources.files import MediaFiles
from store import Turn, UserError

CODE = "Why?\n```python\ndef f(x):\n    if x:\n        return  1\n```"
HTML = "```html\n<video>\n<source src='a.mp4'>\n```\nWhat  is\nwrong?"


def turns(*texts):
    return [{"from": "human" if i % 2 == 0 else "gpt", "value": text} for i, text in enumerate(texts)]


def chat(id, *texts, **fields):
    return {"id": id, **fields, "conversations": turns(*(texts or ("What?", "A cat.")))}


def read(folder, content, name="a.json", **options):
    """The source of one annotation file in `folder`; a text is written as it is."""
    text = content if isinstance(content, str) else json.dumps(content)
    Path(folder, name).write_bytes(text.encode())
    (source,) = read_sources([str(Path(folder, name))], options.pop("root", None), **options)
    return source


def media(source):
    return [record.media and record.media.uri for record in source.records]


def left_out(source):
    return [(each.id, each.reason) for each in source.left_out]


@pytest.mark.parametrize(
    ("fields", "asked", "instruction", "modality"),
    [
        ({}, CODE, CODE, "text"),
        ({"image": "a.jpg"}, f"<image>\n{CODE}", CODE, "visual"),
        ({"image": "a.jpg"}, f"{CODE}\n<image>", CODE, "visual"),
        ({"image": "a.jpg"}, "<image>\n\n    x = 1\n", "    x = 1\n", "visual"),
        ({"image": "a.jpg"}, "Here:\r\n<image>\r\n\tWhat  now?", "Here:\r\n\tWhat  now?", "visual"),
        ({"video": "a.mp4"}, "<video><audio> What?", "What?", "audio_visual"),
        ({"video": "a.mp4"}, "What?  <AUD>", "What?", "audio"),
        ({"video": "a.mp4"}, "<image>\nWhat?", "What?", "visual"),  # as in LLaVA-Video
        ({"video": "a.jpg"}, "<video>\nWhat?", "What?", "visual"),  # as in VideoLLaMA2
        ({"video": "a.mp4"}, "<Video>\nWhat is <VIS> here?", "<Video>\nWhat is <VIS> here?", "visual"),
        (
            {"image": "a.jpg"},
            "Is <image> an <audio> or <video> tag?",
            "Is <image> an <audio> or <video> tag?",
            "visual",
        ),
        ({"image": "a.jpg"}, "Write an HTML tag: <video>", "Write an HTML tag: <video>", "visual"),
        ({"video": "a.mp4"}, f"<audio>\n{HTML}", HTML, "audio"),
        ({"video": "a.mp4"}, "<video>\n</video>\nMend it.", "<video>\n</video>\nMend it.", "visual"),
        ({"video": "a.mp4"}, "<video>\nMend <video></video>.", "Mend <video></video>.", "visual"),
        ({}, "How do I centre a <video> in HTML?", "How do I centre a <video> in HTML?", "text"),
        ({}, "<audio> and <video>: which is older?", "<audio> and <video>: which is older?", "text"),
    ],
)
def test_an_instruction_keeps_its_text_and_loses_only_its_tokens(tmp_path, fields, asked, instruction, modality):
    """Blanks and line breaks are code's meaning, and a tag in a question is part of the question."""
    (record,) = read(tmp_path, [chat("1", asked, "So.", **fields)]).records
    assert record.turns == (Turn(instruction, modality, "So."),)


@pytest.mark.parametrize(
    ("fields", "asked", "reason"),
    [
        ({}, "<image>\nWhat?", "record 2: <image> is a modality token, but the record names no media file"),
        ({}, "What? <AUD>", "record 2: <AUD> is a modality token, but the record names no media file"),
        (
            {"vidoe": "a.mp4", "source": "x", "note": 1},
            "<video>\nWhat?",
            "record 2: <video> is a modality token, but the record names no media file; "
            "not read: 'vidoe', 'note'; did you mean 'video'?",
        ),
        ({"image": "a.jpg"}, "<AUD>\nWhat?", "record 2: <AUD> is a modality token, but a.jpg is of kind image"),
        ({"audio": "a.wav"}, "What?\n<video>", "record 2: <video> is a modality token, but a.wav is of kind audio"),
    ],
)
def test_a_token_that_asks_for_what_is_not_there_leaves_its_record_out(tmp_path, fields, asked, reason):
    source = read(tmp_path, [chat("a", image="a.jpg"), chat("b", asked, "So.", **fields)])
    assert [record.id for record in source.records] == ["a"]
    assert left_out(source) == [("b", reason)]


@pytest.mark.parametrize("asked", ["<image>What?", "What?"])
def test_media_are_found_in_whichever_record_names_them(tmp_path, asked):
    """Only the second record has `images`, the third is of another form: each is read as what it is."""
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": "b"}]
    records = [
        chat(1),
        chat(2, asked, "b", images=["a.jpg"]),
        {"messages": messages, "videos": ["b.mp4"], "images": []},
    ]
    source = read(tmp_path, records)
    assert source.format == "sharegpt"
    assert media(source) == [None, f"{tmp_path}/a.jpg", f"{tmp_path}/b.mp4"]
    assert [record.turns[0].modality for record in source.records] == ["text", "visual", "visual"]


@pytest.mark.parametrize("odd", [{}, {"path": "x.mp4"}, {"conversations": []}, None])
@pytest.mark.parametrize("place", [0, 2])
def test_one_odd_record_does_not_tell_what_a_file_is(tmp_path, odd, place):
    records = [{"video_id": "v", "q": "What?", "a": "A cat."}] * 3
    source = read(tmp_path, [*records[:place], odd, *records[place:]])
    assert source.format == "videoinstruct"
    assert len(source.records) == 3
    assert [each.id for each in source.left_out] == [str(place + 1)]


@pytest.mark.parametrize("source", [{"source": "mine"}, {}])
def test_absolute_paths_and_paths_out_of_the_root_are_not_put_below_it(tmp_path, source):
    """Also where the form is Valley's, whose other videos lie in a folder `source`."""
    for name in ("root/x.mp4", "y.mp4", "z.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [f"{tmp_path}/y.mp4", "../y.mp4", f"{tmp_path}/gone.mp4", "../gone.mp4", "x.mp4"]
    records = [chat(name, video=name, **source) for name in names]
    found = read(tmp_path, records, root=str(tmp_path / "root"))
    gone = f"{tmp_path}/gone.mp4"
    assert media(found) == [f"{tmp_path}/y.mp4", f"{tmp_path}/y.mp4", gone, gone, f"{tmp_path}/root/x.mp4"]
    assert [record.media.bytes for record in found.records] == [1, 1, None, None, 1]


def test_an_absolute_path_in_a_task_of_mvbench_is_taken_as_it_is(tmp_path):
    (tmp_path / "y.mp4").write_bytes(b"x")
    question = {"question": "What?", "candidates": ["a", "b"], "answer": "a"}
    records = [{"video": f"{tmp_path}/{name}.mp4", **question} for name in ("y", "gone")]
    source = read(tmp_path, records, "moving_count.json", root=str(tmp_path / "media"))
    assert media(source) == [f"{tmp_path}/y.mp4", f"{tmp_path}/gone.mp4"]


def test_a_path_out_of_a_root_behind_a_url_is_resolved():
    files = MediaFiles("memory://clips/a")
    assert files.at("../b/x.mp4", "video").uri == "memory://clips/b/x.mp4"
    assert files.at("/disk/x.mp4", "video").uri == "/disk/x.mp4"


def test_a_missing_valley_video_is_missing_though_its_thumbnail_is_there(tmp_path):
    (tmp_path / "webvid").mkdir()
    for name in ("night.jpg", "day.jpg", "day.mp4", "still.jpg"):
        (tmp_path / "webvid" / name).write_bytes(b"x")
    records = [chat(name, video=name) for name in ("night", "night.mp4", "day", "still.jpg")]
    source = read(tmp_path, records)
    assert source.format == "valley"
    names = ["night.mp4", "night.mp4", "day.mp4", "still.jpg"]
    assert media(source) == [f"{tmp_path}/webvid/{name}" for name in names]
    assert [record.media.bytes for record in source.records] == [None, None, 1, 1]


WIDE = "found {}; a comma or line break in a field needs quotes"
CUT = "cut by a line break without quotes"


@pytest.mark.parametrize(
    ("rows", "captions", "faults"),
    [
        ('1,a,0,"Rain, wind"\n2,b,0,Rain', ["Rain, wind", "Rain"], []),
        ('1,a,0,"Rain\nand wind"\n\n2,b,0,Rain\n', ["Rain\nand wind", "Rain"], []),
        ("1,a,0,Rain, wind\n2,b,0,Rain", ["Rain"], ["line 2: expected 4 fields, " + WIDE.format(5)]),
        ("1,a,0\n2,b,0,Rain", ["Rain"], ["line 2: expected 4 fields, " + WIDE.format(3)]),
        ("1,a,0,Rain\n2,b,0,Rain\nand wind\n3,c,0,Sun", ["Rain", "Sun"],
         [f"line 3: {CUT}", "line 4: expected 4 fields, " + WIDE.format(1)]),
        ("1,a,0,Rain\n2\n3,c,0,Sun", ["Rain", "Sun"], ["line 3: expected 4 fields, " + WIDE.format(1)]),
        ('1,a,0,"Rain\n2,b,0,"Sun, wind"\n3,c,0,Ice', ["Sun, wind", "Ice"],
         ["line 2: not CSV: ',' expected after '\"'"]),
        ('1,a,0,Ice\n2,b,0,"Rain', ["Ice"], ["line 3: not CSV: unexpected end of data"]),
        ('1,a,0,Ice\n2,b,0,"So "it" is"', ["Ice"], ["line 3: not CSV: ',' expected after '\"'"]),
        ("1,a,0,Ice\n2,b,0,", ["Ice"], ["line 3, field 'caption': expected a name or id; found ''"]),
    ],
)  # fmt: skip
def test_a_row_of_another_width_is_left_out_and_named_by_its_line(tmp_path, rows, captions, faults):
    """Neither is its caption cut at the comma, nor is the file refused; and no row swallows the next."""
    text = f"audiocap_id,youtube_id,start_time,caption\n{rows}\n"
    source = read(tmp_path, text, "train.csv")
    assert [record.turns[0].response for record in source.records] == captions
    assert [reason for _, reason in left_out(source)] == faults
    if faults:
        with pytest.raises(UserError, match=r"train\.csv, (line|row) [0-9]") as error:
            read(tmp_path, text, "train.csv", strict=True)
        assert str(error.value) == f"{tmp_path}/train.csv, {faults[0]}"


def test_rows_without_a_header_are_as_wide_as_their_form(tmp_path):
    source = read(tmp_path, "---g-f_I2yQ,1,marching, slowly,test\n--0PQM4-hqg,30,water,train\n", "vggsound.csv")
    assert [record.turns[0].response for record in source.records] == ["water"]
    assert left_out(source) == [("1", "line 1: expected 4 fields, " + WIDE.format(5))]


@pytest.mark.parametrize("nothing", ["NaN", "null", "Infinity"])
def test_what_is_not_there_is_no_text(tmp_path, nothing):
    """As pandas writes it."""
    question = [{"video_id": "v", "q": "What?", "a": answer} for answer in ("NO", "yes")]
    source = read(tmp_path, json.dumps(question).replace('"NO"', nothing))
    assert [record.turns[0].response for record in source.records] == ["yes"]
    assert left_out(source) == [("1", "record 1, field 'a': expected text; found None")]
    (tmp_path / "a.jpg").write_bytes(b"x")
    text = json.dumps([chat(id, image="IT") for id in ("NO", "NO", "0", "b")]).replace('"NO"', nothing)
    for value in (nothing, f"[{nothing}]"):
        source = read(tmp_path, text.replace('"IT"', value))
        assert media(source) == [None] * 4
        assert [record.id for record in source.records] == ["record-0", "1", "0", "b"]


def test_an_id_that_is_null_is_the_place_where_a_data_set_has_ids_as_labels(tmp_path):
    question = {"video_id": 1, "question": "who?", "answer": "a man"}
    assert [r.id for r in read(tmp_path, [{**question, "id": id} for id in (None, 7)]).records] == ["0", "7"]


def test_captions_and_seconds_that_are_not_there(tmp_path):
    source = read(tmp_path, '[{"videoID": "v", "enCap": [NaN, "A man."]}, {"videoID": "w", "enCap": [NaN]}]')
    assert [record.meta["captions"] for record in source.records] == [["A man."]]
    assert left_out(source) == [("2", "record 2, field 'enCap': expected a list of texts; found [None]")]
    source = read(tmp_path, "videoID,start,end\na,1,2\nb,nan,2\n", "a.csv")
    assert left_out(source) == [("3", "line 3, field 'start': expected seconds; found 'nan'")]
