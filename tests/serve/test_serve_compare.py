"""Two evaluations are compared question by question, or not at all."""

import json
import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from serve.__main__ import app
from serve.evals.answers import Answer
from serve.evals.compare import compare
from serve.evals.folder import RunInfo, claim
from serve.evals.paper_tables import show_tables
from serve.evals.report import write_report
from serve.evals.scores import score
from serve.evals.statistics import bootstrap, p_value, tail
from serve.evals.tasks import TASKS, queries
from store import Conversation, Turn, UserError

ANIMALS = ("cat", "dog", "horse", "bird")
ANSWERS = {
    "music-avqa": (["yes", "no", "yes", "yes", "no", "no"], ["yes", "yes", "yes", "no", "yes", "no"]),
    "vatex": (["a cat", "a dog on a mat", "nothing", "a bird"], ["a cat on a mat", "a dog", "nothing", "a bird"]),
}


def conversations(task, count):
    """Made-up questions, two about each of some videos."""
    for number in range(count):
        meta = {"question": f"q{number}", "answer": "yes", "captions": [f"a {ANIMALS[number % 4]} sits on a mat"]}
        meta = meta if task == "vatex" else {name: meta[name] for name in ("question", "answer")} | {"type": "x"}
        yield Conversation(str(number), f"v{number // 2}", (Turn("q", "visual", "yes"),), meta)


@pytest.fixture
def folder_of(tmp_path):
    """The folder of an evaluation with given replies, by task."""

    def make(name, replies, failed="wrong", questions=None, checkpoint="x"):
        folder, scores = tmp_path / name, []
        run = RunInfo(path=name, checkpoint=checkpoint, columns={}, store="s", engine="e", version="v")
        claim(folder, run)
        for task, said in replies.items():
            made = queries(TASKS[task], conversations(task, questions or len(said)))
            answers = [Answer(reply, 3, "stop") for reply in said]
            scores.append(score(TASKS[task], task, made, list(zip(made, answers, strict=False)), failed))
        write_report(folder, run.model_dump(), scores, {})
        return folder

    return make


def test_differences_are_those_of_the_scores(folder_of, tmp_path):
    """Every metric of both folders, its difference, and what changed; the report shows and holds them."""
    a, b = (folder_of(name, {task: said[side] for task, said in ANSWERS.items()}) for side, name in enumerate("AB"))
    done = CliRunner().invoke(app, ["compare", str(a), str(b), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "comparison.json").read_text())
    found = {task["task"]: task for task in report["tasks"]}
    for folder, side in ((a, "first"), (b, "second")):
        for entry in json.loads((folder / "report.json").read_text())["tasks"]:
            metrics = found[entry["task"]]["metrics"]
            assert set(metrics) == set(entry["metrics"])
            for name, metric in entry["metrics"].items():
                assert metrics[name][side] == pytest.approx(metric["value"])
    for entry in found.values():
        for metric in entry["metrics"].values():
            difference = metric["difference"]
            assert difference["value"] == pytest.approx(metric["second"] - metric["first"])
            assert difference["low"] <= difference["value"] <= difference["high"]
            assert 0 < metric["p"] <= 1
    changed = found["music-avqa"]["changed"]["accuracy"]
    assert [[each["id"] for each in changed[name]] for name in ("up", "down")] == [["1", "4"], ["3"]]
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "From wrong to right: 2, for example" in page
    assert '- `3` "q3", right: ["yes"]; A: "yes"; B: "no"; accuracy 100 and 0' in page
    assert "CIDEr fell: 1" in page
    assert "- A: `A`, weights x" in page
    with Image.open(tmp_path / "out" / "comparison.png") as plot:
        assert len(plot.convert("L").getcolors()) > 8
    same = compare(a, a, ["music-avqa"])[0].metrics["accuracy"]
    assert (same.difference.value, same.p) == (0, 1)
    assert same.difference.low < 0 < same.difference.high  # of three videos, which prove little


def test_what_cannot_be_compared_is_refused_and_said(folder_of, tmp_path):
    a = folder_of("A", {"music-avqa": ["yes"] * 4, "vatex": ["a cat"] * 4})
    others = {
        r"fewer: has no task 'vatex'; it has: music-avqa": folder_of("fewer", {"music-avqa": ["yes"] * 4}),
        r"another questions, prompts or references": folder_of("more", {"music-avqa": ["yes"] * 6, "vatex": ["a"] * 4}),
        r"2 of its questions are scored in one of": folder_of(
            "part", {"music-avqa": ["yes"] * 2, "vatex": ["a"] * 2}, questions=4
        ),
        r"another way to count": folder_of("left", {"music-avqa": ["yes"] * 4, "vatex": ["a"] * 4}, "left-out"),
        r"no run\.json": tmp_path,
    }
    for message, folder in others.items():
        with pytest.raises(UserError, match=message):
            compare(a, folder, [])
    assert [each.task for each in compare(a, folder_of("fewer", {"music-avqa": ["no"] * 4}), ["music-avqa"])] == [
        "music-avqa"
    ]
    for field, value, message in (
        ("protocol", "video-chatgpt", "another judge's protocol: avllm"),
        ("model", "second", "another judge: first in .*, second in"),
        ("served", {"first-0615": 3}, r"another judge as served: \['first'\]"),
    ):
        judge = {"protocol": "avllm", "prompts": "p", "model": "first", "served": {"first": 4}}
        for name, own in (("A", judge), ("fewer", judge | {field: value})):
            path = tmp_path / name / "report.json"
            report = json.loads(path.read_text())
            report["tasks"][0]["judge"] = own
            path.write_text(json.dumps(report))
        with pytest.raises(UserError, match=message):
            compare(a, tmp_path / "fewer", ["music-avqa"])


def test_evaluations_are_rows_of_the_papers_tables(folder_of, tmp_path):
    """Scores that were not made in the same way stand in no table together."""
    a, b = (folder_of(name, {task: said[side] for task, said in ANSWERS.items()}) for side, name in enumerate("AB"))
    done = CliRunner().invoke(app, ["table", str(a), str(b), "--out", str(tmp_path / "table.md")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "table.md").read_text()
    for title, task, metric, figure in (
        ("Questions", "music-avqa", "accuracy", 47.9),
        ("Captions", "vatex", "CIDEr", 51.4),
    ):
        heads, _, *rows = page.partition(f"## {title}\n\n")[2].partition("\n\n")[0].splitlines()
        assert heads == f"| evaluation | {task} {metric} |"
        for folder, row in zip((a, b), rows, strict=False):
            value = json.loads((folder / "report.json").read_text())["tasks"][task == "vatex"]["metrics"][metric][
                "value"
            ]
            assert row.startswith(f"| {folder} | {value:.1f} (")
        assert rows[2:] == [f"| the paper | {figure} |"]
    assert "its row is no measure of ours" in page
    with pytest.raises(UserError, match="another questions, prompts or references"):
        show_tables([a, folder_of("more", {"music-avqa": ["yes"] * 8})], None)
    for name, protocol in (("A", "avllm"), ("B", "video-chatgpt")):
        path = tmp_path / name / "report.json"
        report = json.loads(path.read_text())
        report["tasks"] = [report["tasks"][name == "B"]]
        report["tasks"][0]["judge"] = {"protocol": protocol}
        path.write_text(json.dumps(report))
    with pytest.raises(UserError, match=r"two judging protocols .*avllm \(music-avqa in .*A\), video-chatgpt \(vatex"):
        show_tables([a, b], None)


def ratio(sums):
    return sums[..., 0] / sums[..., 1]


def test_p_is_that_of_all_ways_to_swap_whole_videos():
    """Against the plain reading: every one of the 2^8 ways to swap, and the share of differences as large."""
    draw = np.random.default_rng(0)
    ours, theirs = (np.stack([draw.integers(0, 6, 20), np.ones(20)], 1).astype(float) for _ in range(2))
    clusters = np.array([str(number % 8) for number in range(20)])
    measured = abs(ratio(ours.sum(0)) - ratio(theirs.sum(0)))
    extreme = 0
    for swaps in product((False, True), repeat=8):
        swapped = np.array([swaps[int(name)] for name in clusters])[:, None]
        mine, other = np.where(swapped, theirs, ours), np.where(swapped, ours, theirs)
        extreme += abs(ratio(mine.sum(0)) - ratio(other.sum(0))) >= measured - 1e-12
    assert p_value(ours, theirs, ratio, clusters) == pytest.approx(extreme / 2**8, abs=0.02)


@pytest.mark.parametrize(("count", "quantile"), [(10, 2.2622), (50, 2.0096), (200, 1.9720)])
def test_percentiles_are_as_wide_as_students_t(count, quantile):
    """By a table of its quantiles."""
    assert tail(count) == pytest.approx(NormalDist().cdf(-quantile * math.sqrt(count / (count - 1))), rel=0.02)


def test_intervals_cover_what_they_should():
    """Of 300 samples of clustered answers some 95% of the intervals hold the truth (benchmarks/intervals.py)."""
    draw, held = np.random.default_rng(1), 0
    clusters = np.repeat(np.arange(150), 4).astype(str)
    for _ in range(300):
        chance = draw.beta(2, 2, 150)
        right = (draw.random((150, 4)) < chance[:, None]).ravel().astype(float)
        found = bootstrap(right, np.ones(600), clusters)
        held += found.low <= 0.5 <= found.high
    assert 0.91 <= held / 300 <= 0.985
