"""Clips with bounds, and folders of stills: what a part of a film or of a sound gives is what the whole gives there."""

import functools
import json
import shutil
import tarfile
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from featurize.__main__ import app
from featurize.grid import frame_indices
from featurize.media import MediaError, read_audio, read_video
from featurize.media.stills import in_order
from store import ColumnReader, Corpus, MediaItem, Part, Storage, UserError, list_columns, load_conversations
from store.corpus import ADDED, SCHEMA
from store.table import save_table

RATE = 48_000
GRIDS = (1, 2, 8, 32)
COUNT, SECONDS = 200, 8  # of the films
FILMS = {
    "bframes.mp4": ("libx264", "aac", {"bf": "3"}),
    "open.mkv": ("libx264", "aac", {"x264-params": "open-gop=1:keyint=40:min-keyint=40:scenecut=0:bframes=3"}),
    "hevc.mp4": ("libx265", "aac", {"x265-params": "log-level=none:open-gop=1:keyint=40:min-keyint=40:scenecut=0"}),
    "stream.ts": ("libx264", "aac", {"bf": "2"}),
    "mpeg.mpg": ("mpeg2video", "mp2", {}),
    "mpeg.avi": ("mpeg4", "libmp3lame", {}),
    "vp9.webm": ("libvpx-vp9", "libopus", {"deadline": "realtime", "cpu-used": "8"}),
    "flash.flv": ("flv", "libmp3lame", {}),
    "windows.wmv": ("wmv2", "wmav2", {}),
    "bare.h264": ("libx264", "", {"bf": "0"}),
    "bare.wav": ("", "pcm_s16le", {}),
    "bare.mp3": ("", "libmp3lame", {}),
    "bare.flac": ("", "flac", {}),
    "bare.opus": ("", "libopus", {}),
}
SOUNDS = [name for name, (_, codec, _) in FILMS.items() if codec]
PARTS = [(0.0, 8.0), (1.0, 3.0), (2.52, 2.88), (0.04, 7.52), (4.0, None), (5.2, 20.0), (None, 2.0), (6.4, 6.44)]


@pytest.fixture(scope="module")
def folder(films, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    for name, (encoder, codec, options) in FILMS.items():
        if encoder:
            films.write(folder / name, encoder, COUNT, 40, codec, SECONDS, **options)
        else:
            films.write_sound(folder / name, codec, SECONDS)
    return folder


@functools.cache
def whole_film(number_of, path):
    frames = read_video(str(path), [64], COUNT)
    assert [number_of(frames.pixels[64][row]) for row in frames.index] == list(range(COUNT))
    return frames.times


@functools.cache
def whole_sound(path):
    sound = read_audio(str(path), [RATE], 99)[RATE]
    return sound[0 : len(sound)]


def taken(films, path, count, *part):
    frames = read_video(str(path), [64], count, *part)
    return [films.number_of(frames.pixels[64][row]) for row in frames.index], frames.times


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("name", [name for name, (encoder, _, _) in FILMS.items() if encoder])
def test_a_part_of_a_film_has_the_frames_of_its_seconds(films, folder, name, part):
    """In every container, frames and times are those that decoding all of it gives there."""
    times = whole_film(films.number_of, folder / name)
    lead = lead_of(folder / name, "video")
    start, end = (part[0] or 0.0) - lead, (99.0 if part[1] is None else part[1]) - lead
    inside = [n for n, time in enumerate(times) if start - 1e-3 <= time < end - 1e-3]
    for count in GRIDS:
        got, got_times = taken(films, folder / name, count, *part)
        assert got == [inside[place] for place in frame_indices(len(inside), count)]
        assert got_times[0] == 0
        assert got_times == pytest.approx([times[n] - times[got[0]] for n in got], abs=2e-3)


def lead_of(path, kind):
    """Seconds by which a stream begins after its file."""
    with av.open(str(path)) as container:
        first = next(container.decode(**{kind: 0})).time
        return 0.0 if first is None else first - (container.start_time or 0) / 1e6


@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("name", SOUNDS)
def test_a_part_of_a_sound_is_what_is_heard_in_its_seconds(folder, name, part):
    """Sample by sample, but for the milliseconds that some containers count in."""
    (start, end), whole = part, whole_sound(folder / name)
    clip = read_audio(str(folder / name), [RATE, 16_000], 99, *part)
    lead = lead_of(folder / name, "audio") if start else 0.0
    first = max(0, round(((start or 0) - lead) * RATE))
    heard = whole[first : len(whole) if end is None else min(len(whole), round((end - lead) * RATE))]
    got = clip[RATE][0 : len(clip[RATE])]
    assert len(got) == pytest.approx(len(heard), abs=0.05 * RATE)
    assert len(clip[16_000]) == pytest.approx(len(got) / 3, abs=2)
    assert min(distance(got, heard, shift) for shift in range(-100, 101)) < 0.02


def distance(one, other, shift):
    """The largest difference of two waves, one of them shifted, but for their first and last 100 samples."""
    size = min(len(one), len(other)) - 200
    return float(np.abs(one[100 : 100 + size] - other[100 + shift : 100 + shift + size]).max())


def test_only_what_a_part_needs_is_read(films, tmp_path):
    """A clip of an hour-long film costs what the clip costs."""
    for name in ("long.mp4", "long.mkv", "long.wav", "long.m4a"):
        path, sound = tmp_path / name, {"wav": "pcm_s16le", "m4a": "aac"}.get(name[5:])
        if sound:
            films.write_sound(path, sound, 200.0)
        else:
            write_noise(path, 1500)
        read = [read_video, [64], 8] if not sound else [read_audio, [RATE], 999]
        read[0](str(path), *read[1:])  # so that all code is loaded
        before = bytes_read()
        read[0](str(path), *read[1:], 40.0, 42.0)
        assert bytes_read() - before < path.stat().st_size / 3


def write_noise(path, count):
    """Frames that take some bytes."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 128, 64, "yuv420p", 10
        for number in range(count):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(noise, 3 * number, 1), format="rgb24")))
        film.mux(stream.encode())


def bytes_read():
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize("name", ["bframes.mp4", "open.mkv", "stream.ts", "mpeg.avi", "bare.h264"])
def test_a_part_behind_the_end_is_empty(folder, name):
    with pytest.raises(MediaError, match="nothing from 30 s on") as error:
        read_video(str(folder / name), [64], 4, 30.0, 40.0)
    assert error.value.code == "empty"


@pytest.mark.parametrize("name", ["bframes.mp4", "open.mkv", "stream.ts", "mpeg.avi", "bare.wav", "bare.mp3"])
def test_a_sound_that_ends_before_a_part_is_empty(folder, name):
    with pytest.raises(MediaError, match="nothing from 30 s on") as error:
        read_audio(str(folder / name), [RATE], 99, 30.0, 40.0)
    assert error.value.code == "empty"


def test_a_part_between_two_frames_has_the_one_that_is_shown(films, folder):
    assert taken(films, folder / "bframes.mp4", 4, 2.001, 2.03)[0] == [50] * 4
    assert taken(films, folder / "open.mkv", 4, 2.005, 2.03)[0] == [50] * 4


@pytest.mark.parametrize("name", ["half.mp4", "half.mkv", "half.avi"])
def test_a_part_of_a_cut_film_is_right_before_the_cut_and_truncated_behind_it(films, tmp_path, name):
    container = {"movflags": "faststart"} if name.endswith("mp4") else {}
    encoder = "mpeg4" if name.endswith("avi") else "libx264"
    films.write(tmp_path / f"whole-{name}", encoder, 200, 20, container=container)
    data = (tmp_path / f"whole-{name}").read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 3 // 4])
    numbers, _ = taken(films, tmp_path / name, 4, 1.0, 2.0)
    assert numbers == pytest.approx([25, 31, 37, 43], abs=name.endswith("avi"))  # which keeps no times
    with pytest.raises(MediaError) as error:
        taken(films, tmp_path / name, 4, 7.0, 8.0)
    assert error.value.code == "truncated"


@pytest.fixture(scope="module")
def stills(films, tmp_path_factory):
    """12 stills, whose order by name is not that of their numbers."""
    folder = tmp_path_factory.mktemp("stills") / "clip"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(films.stripes(number)).save(folder / f"frame_{number + 1}.png")
    (folder / "._frame_1.png").write_bytes(b"resource")
    (folder / "notes.txt").write_text("not a still")
    return folder


def test_names_are_ordered_by_their_numbers():
    assert in_order(["b2", "a10", "a9", "a09", "10", "9", "a9b2", "a9b10"]) == [
        "9", "10", "a09", "a9", "a9b2", "a9b10", "a10", "b2",
    ]  # fmt: skip


@pytest.mark.parametrize("count", GRIDS)
def test_a_folder_of_stills_is_a_film(films, stills, count):
    numbers, times = taken(films, stills, count, None, None, 3.0)
    assert numbers == films.grid(range(12), count)
    assert times == pytest.approx([number / 3 for number in numbers])
    frames = read_video(str(stills), [64], count)
    assert (frames.times, frames.facts) == ([], {"stills": 12})
    with pytest.raises(MediaError, match="no sound") as error:
        read_audio(str(stills), [RATE], 99)
    assert error.value.code == "absent"


def test_a_folder_of_stills_has_parts_where_its_rate_is_known(films, stills):
    """Frame k is shown from k / fps on, as in MVBench's own reader, whose first frame is number 1 at 0 s."""
    assert taken(films, stills, 8, 1.0, 3.0, 3.0)[0] == films.grid(range(3, 9), 8)
    assert taken(films, stills, 2, 3.0, 30.0, 3.0)[0] == films.grid(range(9, 12), 2)
    assert taken(films, stills, 2, 1.1, 1.2, 3.0)[0] == [3, 3]
    for fps, code, reason in ((None, "unreadable", "--fps"), (3.0, "empty", "12 stills are 4.0 s")):
        with pytest.raises(MediaError, match=reason) as error:
            read_video(str(stills), [64], 2, 4.0, 5.0, fps)
        assert error.value.code == code


def test_a_still_that_cannot_be_read_is_named(films, stills, tmp_path):
    shutil.copytree(stills, tmp_path / "clip")
    whole = (tmp_path / "clip" / "frame_7.png").read_bytes()
    (tmp_path / "clip" / "frame_7.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(MediaError, match=r"frame_7\.png: ") as error:
        read_video(str(tmp_path / "clip"), [64], 2)
    assert error.value.code == "truncated"
    assert taken(films, tmp_path / "clip", 3)[0] == films.grid(range(12), 3)  # of which the seventh is none


def plan(*words):
    done = CliRunner().invoke(app, ["plan", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_parts_and_folders_are_items_from_the_plan_to_the_column(python, films, stills, tmp_path):
    """What is encoded of them is what is encoded of their frames one by one."""
    films.write(tmp_path / "film.mp4", count=150, sound="aac", gop=30)
    rows = [
        {"path": str(stills), "start": 1, "end": 3, "caption": "a"},
        {"path": str(stills), "caption": "b"},
        {"path": str(stills / "frame_4.png")},
        {"path": str(stills / "frame_7.png")},
        {"path": str(tmp_path / "film.mp4"), "start": 2.0, "end": 4.0, "caption": "c"},
        {"path": str(tmp_path / "film.mp4"), "start": 2.0, "end": 4.0, "caption": "d"},
        {"path": str(tmp_path / "film.mp4"), "start": 4.0, "caption": "e"},
        {"path": str(tmp_path / "film.mp4"), "start": 60.0, "end": 70.0},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    said = plan(tmp_path / "list.json", "--store", tmp_path / "store", "--fps", 3)
    assert "4 parts of files, from `start` to `end`" in said
    assert "7 items in 2 shards" in said
    assert "0 new media files" in plan(tmp_path / "list.json", "--store", tmp_path / "store", "--fps", 3)
    config = {
        "columns": [
            {"encoder": "clip:ViT-S-32/random", "layer": 1, "frames": [2]},
            {"encoder": "clap:HTSAT-tiny/random", "segments": [2]},
        ],
        "workers": 1,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = python("featurize", "run", "--store", tmp_path / "store", "--config", tmp_path / "config.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    storage = Storage(str(tmp_path / "store"))
    keys = {item.part: item.key for item in Corpus.load(storage).items}
    columns = {column.spec.modality: ColumnReader(column) for column in list_columns(storage)}
    seen, heard = columns["visual"], columns["audio"]
    part = keys[Part(str(stills), 1.0, 3.0)]
    for place, name in enumerate(("frame_4.png", "frame_7.png")):
        one = seen.read(keys[Part(str(stills / name))])["temporal"][0]
        assert seen.read(part)["temporal"][place].tobytes() == one.tobytes()
    film = str(tmp_path / "film.mp4")
    facts = {key: facts_of(storage, seen, key) for key in keys.values() if key not in seen.failed}
    assert facts[part] == {"kind": "video", "times": [0.0, 1.0], "stills": 12, "start": 1.0, "end": 3.0}
    assert facts[keys[Part(film, 2.0, 4.0)]] == {"kind": "video", "times": [0.0, 1.0], "start": 2.0, "end": 4.0}
    assert facts_of(storage, heard, keys[Part(film, 4.0)])["seconds"] == pytest.approx(2, abs=0.1)
    assert seen.failed[keys[Part(film, 60.0, 70.0)]].reason == "nothing from 60 s on: the video ends at 6.0 s"
    assert heard.failed[keys[Part(film, 60.0, 70.0)]].code == "empty"
    assert heard.failed[part].code == "absent"
    talks = load_conversations(storage, "list")
    parts = Part(str(stills), 1.0, 3.0), Part(str(stills)), *[Part(film, 2.0, 4.0)] * 2, Part(film, 4.0)
    assert [talk.key for talk in talks] == [keys[part] for part in parts]


def facts_of(storage, reader, key):
    for path in Path(storage.url).glob(f"columns/{reader.column.name}/*.tar"):
        with tarfile.open(path) as tar:
            if f"{key}.json" in tar.getnames():
                return json.load(tar.extractfile(f"{key}.json"))
    raise AssertionError(f"{key} is in no shard")


def test_a_folder_of_folders_of_stills_is_films_where_their_rate_is_given(stills, tmp_path):
    shutil.copytree(stills, tmp_path / "media" / "one")
    shutil.copytree(stills, tmp_path / "media" / "deep" / "two")
    Image.new("RGB", (8, 8)).save(tmp_path / "media" / "photo.jpg")
    said = plan(tmp_path / "media", "--store", tmp_path / "a")
    assert "2 folders of numbered stills are planned as stills: deep/two, one; with --fps each is a film" in said
    assert "25 image" in said
    said = plan(tmp_path / "media", "--store", tmp_path / "b", "--fps", 25)
    assert "3 items" in said
    items = Corpus.load(Storage(str(tmp_path / "b"))).items
    assert [(item.kind, item.fps) for item in items] == [("video", 25.0), ("video", 25.0), ("image", None)]


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"start": 3, "end": 3}, "field 'end': expected seconds after 3"),
        ({"start": -1}, "field 'start': expected seconds from"),
        ({"start": "soon"}, "field 'start': expected seconds"),
    ],
)
def test_bounds_that_are_none_leave_a_record_out(tmp_path, bounds, reason):
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "list.json").write_text(json.dumps([{"path": "a.mp4"}, {"path": "a.mp4", **bounds}]))
    assert reason in plan(tmp_path / "list.json", "--store", tmp_path / "store")


def test_chats_may_be_about_parts_and_folders(stills, tmp_path):
    shutil.copytree(stills, tmp_path / "clips" / "one")
    (tmp_path / "film.mp4").write_bytes(b"x")
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "That."}]
    chats = [
        {"id": 1, "video": "film.mp4", "start": 1.5, "end": 4, "conversations": turns},
        {"id": 2, "video": "film.mp4", "start": "the start", "end": "the end", "conversations": turns},
        {"id": 3, "video": "clips/one", "conversations": turns},
        {"id": 4, "video": "film.mp4", "conversations": turns},
    ]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    plan(tmp_path / "chats.json", "--store", tmp_path / "store", "--format", "llava")
    items = Corpus.load(Storage(str(tmp_path / "store"))).items
    film = str(tmp_path / "film.mp4")
    assert [item.part for item in items] == [Part(film, 1.5, 4.0), Part(film), Part(str(tmp_path / "clips" / "one"))]
    assert [item.key for item in items] == ["film_1-5_4-mp4", "film-mp4", "clips-one"]


@pytest.mark.parametrize(
    "names", [("Start", "End"), ("start_time", "end_time"), ("begin", "finish"), ("from", "to_sec")]
)
def test_fields_that_sound_like_bounds_are_named(tmp_path, names):
    """A caption of two seconds is not to be learnt of a film of an hour."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    row = {"path": "a.mp4", names[0]: 1, names[1]: 3, "caption": "A cup."}
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    chat = {"video": "a.mp4", names[0]: "0:01", names[1]: "0:03", "conversations": turns}
    for value in (row, chat):
        (tmp_path / "some.json").write_text(json.dumps([value]))
        said = plan(tmp_path / "some.json", "--store", tmp_path / "store", "--dry-run")
        assert f"fields of its records that are not read: {', '.join(names)}" in said


def test_bounds_of_chats_may_be_texts(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "That."}]
    bounds = [("1", "3.5"), ("0:01", "0:03"), (1, None)]
    chats = [{"video": "a.mp4", "start": s, "end": e, "conversations": turns} for s, e in bounds]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    said = plan(tmp_path / "chats.json", "--store", tmp_path / "store", "--format", "llava")
    assert "fields of its records that are not read: start, end" in said
    film = str(tmp_path / "a.mp4")
    assert [item.part for item in Corpus.load(Storage(str(tmp_path / "store"))).items] == [
        Part(film, 1, 3.5),
        Part(film),
    ]


def test_the_rate_of_a_folder_can_be_told_later_but_not_changed(stills, tmp_path):
    rows = [
        {"path": str(stills), "start": 1, "end": 2},
        {"path": str(stills)},
        {"path": str(stills / "frame_1.png"), "end": 1},
    ]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    words = tmp_path / "list.json", "--store", tmp_path / "store"
    said = plan(*words)
    assert "a part of a folder of stills; --fps says how many make a second" in said
    assert "a still has no part from 0 s on" in said
    assert [item.fps for item in Corpus.load(Storage(str(tmp_path / "store"))).items] == [None]
    plan(*words, "--fps", 3)
    assert [item.fps for item in Corpus.load(Storage(str(tmp_path / "store"))).items] == [3, 3]
    with pytest.raises(UserError, match="was planned with 3 frames a second"):
        plan(*words, "--fps", 10)


def test_plans_of_earlier_versions_are_read(tmp_path):
    """They have no parts."""
    storage = Storage(str(tmp_path))
    old = pa.schema(list(SCHEMA)[:-ADDED])
    columns = {name: [value] for name, value in zip(old.names, ("k", "/a.mp4", "video", 0, 0, 7), strict=True)}
    save_table(storage, "corpus.parquet", columns, old)
    assert Corpus.load(storage).items == [MediaItem("k", "/a.mp4", "video", 0, 0, 7)]
