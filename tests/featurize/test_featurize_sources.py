import json

import pytest

from featurize.sources import read_sources
from store import Turn, UserError
from store.tokens import split_tokens


def read(path, root=None):
    (source,) = read_sources([str(path)], root and str(root))
    return list(source.records.media()), [record for record in source.records if record.turns]


def test_a_folder_gives_its_media_files_by_name(media):
    found, records = read(media)
    assert [c.name for c in found] == sorted(p.name for p in media.iterdir())
    assert {c.kind for c in found} == {"video", "image", "audio"}
    assert records == []


def test_lists_name_files_relative_to_themselves_or_to_a_root(media, tmp_path):
    (tmp_path / "list.csv").write_text("id,path\nfirst,red-loud.mp4\n,gone.mp4\n")
    (tmp_path / "list.jsonl").write_text(json.dumps({"uri": str(media / "low.wav"), "kind": "audio"}) + "\n\n")
    found, _ = read(tmp_path / "list.csv", media)
    assert [(c.name, c.uri, c.bytes is None) for c in found] == [
        ("first", str(media / "red-loud.mp4"), False),
        ("gone.mp4", str(media / "gone.mp4"), True),
    ]
    found, _ = read(tmp_path / "list.jsonl")
    assert [(c.uri, c.kind) for c in found] == [(str(media / "low.wav"), "audio")]


def test_llava_records_become_items_and_turns(tmp_path):
    """VideoLLaMA2 puts stills under `video` too, so the extension decides; each turn may ask by another sense."""
    human, gpt = (lambda text: {"from": "human", "value": text}), (lambda text: {"from": "gpt", "value": text})
    records = [
        {"id": 7, "image": "a.png", "conversations": [human("<image>\nWhat is it?"), gpt("A cat.")]},
        {"id": "b", "video": "b.jpg", "conversations": [human("What is it?"), gpt("A dog. ")], "kind": "sight"},
        {
            "id": "c",
            "video": "c.mp4",
            "conversations": [
                human("See? <VIS>"),
                gpt("yes"),
                human("<AUD> Hear?"),
                gpt("no"),
                human("Sure?"),
                gpt("yes"),
            ],
        },
        {"id": "d", "conversations": [human("Hello"), gpt("Good day")]},
        {"id": "e", "video": "c.mp4", "conversations": [human("<video>\n<audio>\nBoth?"), gpt("yes")]},
    ]
    (tmp_path / "chat.json").write_text(json.dumps(records))
    found, parsed = read(tmp_path / "chat.json")
    assert [c.kind for c in found] == ["image", "image", "video", "video"]
    assert [r.turns for r in parsed] == [
        (Turn("What is it?", "visual", "A cat."),),
        (Turn("What is it?", "visual", "A dog."),),
        (Turn("See?", "visual", "yes"), Turn("Hear?", "audio", "no"), Turn("Sure?", "text", "yes")),
        (Turn("Hello", "text", "Good day"),),
        (Turn("Both?", "audio_visual", "yes"),),
    ]
    assert [r.id for r in parsed] == ["7", "b", "c", "d", "e"]
    assert parsed[1].meta == {"kind": "sight"}


def test_tokens_leave_the_text_clean():
    assert split_tokens("What is  this here?\nTell me. <AUD_VIS>") == ("What is  this here?\nTell me.", "audio_visual")
    assert split_tokens("<audio>\n<video> What?") == ("What?", "audio_visual")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "file\nx.mp4\n", r"a\.csv: no known format; its first record has file; known are list, sharegpt"),
        ("a.csv", 'path\n""\n', r"a\.csv, line 2, field 'path': expected a name or id; found ''"),
        ("a.jsonl", '{"path": "x.mp4"}\n{oops\n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"path": "x.mp4"}\n\n{"path": "x.xyz"}', r"a\.jsonl, line 3: 'x\.xyz' has no media extension"),
        ("a.csv", 'path,note\nx.mp4,"two\nlines"\nx.xyz,\n', r"a\.csv, line 4: 'x\.xyz' has no media extension"),
        (
            "a.csv",
            "path;caption\nx.mp4;A cat.\n",
            r"a\.csv, line 1: expected fields separated by commas, found semicolons",
        ),
        ("a.csv", "path\tcaption\nx.mp4\tA cat.\n", r"a\.csv, line 1: expected fields separated by commas, found tabs"),
        ("a.json", "{", r"a\.json: not JSON: the file ends in the middle of a record, in line 1"),
        ("a.json", '[\n{"path": "x', r"a\.json: not JSON: the file ends in the middle of a record, in line 2"),
        ("a.json", "", r"a\.json: the file is empty; expected a list of records"),
        ("a.json", "[]", r"a\.json: holds no records"),
        ("a.json", "[1]", r"a\.json: expected a list of records, each an object with named fields"),
        ("a.json", "{}", r"a\.json: expected a list of records, found one object with no fields"),
        ("a.txt", "x.mp4", r"expected a folder, or a file that ends in \.json, \.jsonl, \.csv"),
        ("a.jsonl", '{"path": "x.xyz"}', r"line 1: 'x\.xyz' has no media extension; known are"),
        (
            "a.jsonl",
            '{"path": "x.mp4", "kind": "film"}',
            r"line 1, field 'kind': expected one of video, image, audio; found 'film'",
        ),
        (
            "a.json",
            '[{"conversations": [{"from": "gpt", "value": "x"}]}]',
            r"record 1, message 1: expected \{'from': 'human' or 'user', 'value': text\}",
        ),
        (
            "a.json",
            '[{"conversations": [{"from": "human", "value": "x"}]}]',
            r"record 1: 1 messages; expected a question and an answer in turn",
        ),
        ("a.json", '[{"conversations": [], "image": "x"}]', r"record 1, field 'image': 'x' has no media extension"),
        (
            "a.json",
            '[{"conversations": [{"from":"human","value":"<VIS>"},{"from":"gpt","value":""}]}]',
            r"a modality token, but",
        ),
    ],
)
def test_bad_sources_are_one_line_that_names_the_place(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_sources([str(tmp_path / name)], None, strict=True)
    assert "\n" not in str(error.value)


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        read(tmp_path / "none")
