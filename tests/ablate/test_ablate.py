"""An ablation trains each thing once, calls no encoder, survives `kill -9`, and its tables are what was answered."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from ablate.outcomes import averaged, of_held_out, read_outcome
from ablate.paper import paper_accuracy
from ablate.plan import Ablation, Evaluation, Point
from ablate.run import ablate, dry_run
from ablate.settings import AblateConfig, base_stages
from featurize.settings import FeaturizeConfig
from serve.evals.judge_settings import JudgeSettings
from serve.evals.statistics import bootstrap
from serve.evals.tasks import TASKS
from store import Storage, UserError, load_conversations, load_settings, parse_settings, save_conversations
from store.settings import find_config
from trainer.settings import TrainConfig
from trainer.stage import train

REPO = Path(__file__).parents[2]
CONFIGS = sorted((REPO / "ablate" / "configs").glob("*.yaml"))
LONG = bool(os.environ.get("AVLLM_LONG"))
STEPS = 60 if LONG else 30
TRAINED = {"frames": 4, "strategy": "pt1"} if LONG else {"strategy": "pt1"}  # axes of the killed ablation, and a value
# Each Python process notes what it imports of these, so that calls of encoders can be counted.
WATCH = """
import os, sys
def note(event, args):
    if event == "import" and args[0] in ("featurize", "open_clip", "laion_clap", "ray", "trainer"):
        with open(os.environ["IMPORTS"], "a") as file:
            file.write(f"{args[0]}\\n")
sys.addaudithook(note)
"""


@pytest.fixture(scope="module")
def settings(feature_store, tiny_llm):
    stage = {
        "model": str(tiny_llm),
        "sources": [{"store": "elsewhere", "conversations": "mixed"}],
        "visual": "clip-tiny",
        "audio": "clap-tiny",
        "frames": 2,
        "segments": 2,
        "global_batch": 8,
        "steps": STEPS,
        "lr": 5e-3,
        "precision": "float32",
        "save_every": 5,
    }
    return {
        "store": str(feature_store),
        "stages": [stage | {"stage": 1}, stage | {"stage": 2}],
        "benchmarks": {"mixed": {"conversations": "mixed", "limit": 60}},
        "axes": {"frames": [2, 4], "strategy": ["mat", "pt1"], "llm": ["./no-such-llm"], "ask": ["visual"]},
    }


def of(settings, output, **changes):
    return parse_settings(AblateConfig, {**settings, "output": str(output), **changes}, "test")


class Command:
    """`python -m ablate`, as a user starts it, with a count of what its processes import."""

    def __init__(self, folder: Path, settings: dict) -> None:
        self.folder, self.config = folder, folder / "config.yaml"
        self.output, self.log, self.imports = folder / "out", folder / "said.log", folder / "imports"
        self.config.write_text(yaml.safe_dump({**settings, "output": str(self.output)}))
        (folder / "sitecustomize.py").write_text(WATCH)
        self.imports.touch()

    def start(self, *overrides: str) -> subprocess.Popen:
        path = os.pathsep.join([str(self.folder), str(REPO)])
        env = {**os.environ, "PYTHONPATH": path, "IMPORTS": str(self.imports)}
        words = [sys.executable, "-m", "ablate", str(self.config), *overrides]
        with open(self.log, "wb") as log:
            return subprocess.Popen(words, cwd=REPO, env=env, stdout=log, stderr=log, start_new_session=True)

    def finish(self, *overrides: str) -> int:
        return self.start(*overrides).wait(timeout=900)

    def imported(self, name: str) -> int:
        return self.imports.read_text().splitlines().count(name)


def wait_until(true, seconds=600) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def logged(folder: Path) -> int:
    path = folder / "log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def child_of(process: subprocess.Popen) -> int:
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def contents(folder: Path) -> dict[str, tuple[int, str]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p): (p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files}


@pytest.fixture(scope="module")
def killed(settings, feature_store, tmp_path_factory):
    """An ablation that was killed twice and then went to its end."""
    before = contents(feature_store / "columns")
    axes = {axis: values for axis, values in settings["axes"].items() if axis in (*TRAINED, "llm", "ask")}
    command = Command(tmp_path_factory.mktemp("ablate"), settings | {"axes": axes})
    ablation = Ablation(of(settings, command.output, axes=axes))
    stage1, stage2 = ablation.runs(Point(), 0)

    first = command.start()  # killed alone: the stage that it started lives on
    wait_until(lambda: logged(stage1.folder) >= 10)
    stage = child_of(first)
    os.kill(stage, signal.SIGSTOP)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = command.start()
    wait_until(lambda: "at work in" in command.log.read_text())
    os.kill(stage, signal.SIGCONT)
    wait_until(lambda: logged(stage2.folder) >= 20)  # killed with the stage that it started
    os.killpg(second.pid, signal.SIGKILL)
    second.wait()
    assert not stage2.checkpoint.exists()
    status = command.finish()
    return command, ablation, status, before, contents(feature_store / "columns")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoint / "model.safetensors") | load_file(checkpoint / "avllm" / "projectors.safetensors")


def test_killed_ablations_go_on_to_the_same_weights(killed, tmp_path):
    """Neither kill leaves a trace: no stage is begun twice at once, and both end as if nobody had killed them."""
    _, ablation, *_ = killed
    stage1, stage2 = ablation.runs(Point(), 0)
    assert (stage1.folder / "train.log").read_text().count("$ python -m trainer train") == 1
    assert "going on at step" in (stage2.folder / "train.log").read_text()
    for number, run in enumerate((stage1, stage2)):
        model = str(tmp_path / "0" / "checkpoint") if number else run.config.model
        train(run.config.model_copy(update={"output": str(tmp_path / str(number)), "model": model}))
        undisturbed, found = weights(tmp_path / str(number) / "checkpoint"), weights(run.checkpoint)
        assert all(torch.equal(undisturbed[name], found[name]) for name in undisturbed), run.folder.name
        assert not (run.folder / "steps").exists()


def test_no_encoder_is_called(killed):
    """Columns are read, not made: no process imports the featurizer or an encoder, and no byte of a column changes."""
    command, _, _, before, after = killed
    assert before
    assert before == after
    stages, asked = 5 + 2 * LONG, 3 + LONG
    assert (
        command.imported("trainer") >= 3 + stages + asked
    )  # the commands, the stages, the questions: the count does count
    assert {name: command.imported(name) for name in ("featurize", "open_clip", "laion_clap", "ray")} == {
        "featurize": 0,
        "open_clip": 0,
        "laion_clap": 0,
        "ray": 0,
    }


def test_a_failed_run_is_recorded_and_the_others_go_on(killed):
    command, ablation, status, *_ = killed
    assert status == 1
    (failure,) = json.loads((command.output / "results.json").read_text())["failed"]
    assert "no-such-llm" in failure["what"]
    assert failure["said"].startswith("error: field 'model': ./no-such-llm: no such folder here; accepted: ")
    assert f"failed: {failure['what']}" in command.log.read_text()
    assert "no-such-llm: no such folder here" in (command.output / "results.md").read_text()
    first, second = ablation.runs(Point("llm", "./no-such-llm"), 0)
    assert not second.folder.exists()
    assert (first.folder / "train.log").exists()


def test_points_share_the_stages_that_they_do_not_change(killed):
    command, ablation, *_ = killed
    runs = {str(point): ablation.runs(point, 0) for point in ablation.points()}
    assert list(runs) == ["base", *["frames=4"] * LONG, "llm=./no-such-llm", "strategy=pt1"]
    assert runs["base"][0] == runs["strategy=pt1"][0]
    folders = {run.folder for stages in runs.values() for run in stages}
    assert len(folders) == 5 + 2 * LONG
    assert sum((folder / "checkpoint").exists() for folder in folders) == 3 + 2 * LONG
    there = sorted((command.output / "runs").iterdir())
    assert there == sorted(folder for folder in folders if folder.exists())


def test_tables_and_plots_say_what_was_answered(killed):
    """Each number is computed again from the answers to the single conversations."""
    command, ablation, *_ = killed
    results = json.loads((command.output / "results.json").read_text())
    numbers = {(n["axis"], n["value"], n["asked"]): n for n in results["numbers"]}
    assert set(numbers) == {
        ("base", None, "as asked"), ("base", None, "sight only"),
        *((axis, value, "as asked") for axis, value in TRAINED.items()),
    }  # fmt: skip
    judged = {}
    for (axis, value, asked), number in numbers.items():
        run = ablation.runs(Point() if axis == "base" else Point(axis, value), 0)[-1]
        assert (number["config_digest"], number["checkpoint"]) == (run.digest, str(run.checkpoint))
        judged[axis, value, asked] = answers = json.loads(Path(number["report"]).read_text())["judged"]
        assert number["n"] == len(answers)
        assert number["score"]["value"] == pytest.approx(100 * np.mean([a["exact"] for a in answers]))
        assert number["loss"]["value"] == pytest.approx(
            sum(a["loss"] for a in answers) / sum(a["tokens"] for a in answers)
        )
        assert number["score"]["low"] <= number["score"]["value"] <= number["score"]["high"]
        assert number["columns"]["visual"].startswith("clip-tiny.")
    tables = {table["axis"]: table["rows"] for table in results["tables"]}
    assert {axis: [row["value"] for row in rows] for axis, rows in tables.items()} == {
        **{axis: [ablation.base_value(axis), value] for axis, value in TRAINED.items()},
        "llm": [str(ablation.base_value("llm"))],
        "ask": ["as asked", "sight only"],
    }
    base = judged["base", None, "as asked"]
    for axis, value in TRAINED.items():
        here = {a["id"]: a["exact"] for a in judged[axis, value, "as asked"]}
        own, other = tables[axis]
        assert own["difference"] is None
        assert own["score"] == numbers["base", None, "as asked"]["score"]
        assert other["score"] == numbers[axis, value, "as asked"]["score"]
        assert other["difference"]["value"] == pytest.approx(100 * np.mean([here[a["id"]] - a["exact"] for a in base]))
    by_sight = {a["id"]: a["exact"] for a in judged["base", None, "sight only"]}
    by_both = {a["id"]: a["exact"] for a in base if a["id"] in by_sight}
    whole, sight = tables["ask"]
    assert whole["n"] == sight["n"] == len(by_both) > 10
    assert whole["score"]["value"] == pytest.approx(100 * np.mean(list(by_both.values())))
    assert sight["score"]["value"] == pytest.approx(100 * np.mean([by_sight[id_] for id_ in by_both]))

    page = (command.output / "results.md").read_text()
    assert "Base point: frames 2, segments 2, visual clip-tiny, audio clap-tiny, llm " in page
    for axis, rows in tables.items():
        for row in rows:
            score = f"{row['score']['value']:.1f}"
            assert f"| {row['value']} | mixed | exact answers | {row['n']} | 1 | {score} (" in page
            assert f"| {row['value']} | {score} |" in page
        with Image.open(command.output / f"{axis}.png") as plot:
            assert len(plot.convert("L").getcolors()) > 8  # something is drawn


def test_the_same_command_starts_nothing_that_is_done(killed):
    command, *_ = killed
    before, imported = contents(command.output / "runs"), command.imported("trainer")
    assert command.finish("axes.llm=[]") == 0
    assert contents(command.output / "runs") == before
    assert command.imported("trainer") == imported + 1
    assert json.loads((command.output / "results.json").read_text())["failed"] == []


KINDS = ("judged", "exact", "choice", "cider") if LONG else ("judged",)


def test_tasks_are_asked_and_judged_through_a_kill(killed, settings, feature_store, llm_server, tmp_path):
    """A task for each kind of scorer, at the base point and by sight alone; scores are those of the answers on disk.

    Killed while it asks, it goes on: no question and no judgement is asked twice. Another judge asks the model nothing.
    """
    store = Storage(shutil.copytree(feature_store, tmp_path / "store"))
    meta = {"question": "What?", "answer": "red", "options": ["red", "green"], "answer_index": 0, "captions": ["red"]}
    needed = {"judged": ("question", "answer"), "exact": ("question", "answer"), "cider": ("captions",)}
    benchmarks, tasks = {}, []
    for kind in KINDS:
        own = {name: meta[name] for name in needed.get(kind, ("question", "options", "answer_index"))}
        both = [c for c in load_conversations(store, "mixed") if c.modality == "audio_visual"]
        save_conversations(store, kind, [replace(c, turns=c.turns[:1], meta=own) for c in both])
        form = {"choice": "choice", "cider": "caption"}.get(kind, "question")
        prompt = {"choice": "{question} {options}", "caption": "Describe."}.get(form, "{question}")
        tasks.append({"name": f"my-{kind}", "title": kind, "form": form, "prompt": prompt, "scorer": kind})
        tasks[-1] |= {"modality": "audio_visual", "max_new_tokens": 4}
        benchmarks[kind] = {"task": f"my-{kind}", "conversations": kind, "failed": "left-out"}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    command, *_ = killed
    mine = Command(tmp_path, {})
    mine.output = shutil.copytree(command.output, tmp_path / "out")
    changes = {"store": str(store.root), "benchmarks": benchmarks, "tasks": str(tmp_path / "tasks.yaml")}
    with llm_server(answer=lambda body: json.dumps({"pred": "yes", "score": 4})) as server:

        def configure(judge):
            axes = {"axes": {"ask": ["visual"]}, "judge": {"urls": [server.url], "model": judge}}
            mine.config.write_text(yaml.safe_dump({**settings, **changes, **axes, "output": str(mine.output)}))
            return Ablation(load_settings(AblateConfig, mine.config)).evaluations(Point(), 0)

        evaluations = configure("first")
        assert [(e.benchmark, e.sense) for e in evaluations] == [
            (k, s) for k in sorted(KINDS) for s in (None, "visual")
        ]
        first = mine.start()
        answers = evaluations[0].file.parent / "answers.jsonl"
        wait_until(lambda: answers.exists() and answers.read_bytes().count(b"\n") >= 3)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        assert mine.finish() == 0, mine.log.read_text()
        assert max(server.billed.values()) == 1
        results = json.loads((mine.output / "results.json").read_text())
        asked = [line for e in evaluations for line in (e.file.parent / "answers.jsonl").read_text().splitlines()]
        came = sum(server.came.values())
        assert configure("second")[0].file == evaluations[0].file
        assert "incomplete" not in (mine.output / "results.md").read_text().lower()
        assert mine.finish() == 0, mine.log.read_text()
        assert sum(server.came.values()) > came
    again = [line for e in evaluations for line in (e.file.parent / "answers.jsonl").read_text().splitlines()]
    assert again == asked
    for number, evaluation in zip(results["numbers"], evaluations, strict=True):
        (entry,) = json.loads(evaluation.file.read_text())["tasks"]
        assert (number["n"], number["metric"]) == (entry["scored"], next(iter(entry["metrics"])))
        assert number["score"]["value"] == pytest.approx(entry["metrics"][number["metric"]]["value"])
        assert number["judge"] == ("first, protocol avllm" if number["benchmark"] == "judged" else None)
    judged = next(evaluation for evaluation in evaluations if evaluation.benchmark == "judged")
    assert "judged by second" in (judged.file.parent / "report.md").read_text()
    with Image.open(mine.output / "ask.png") as plot:
        assert len(plot.convert("L").getcolors()) > 8


def test_what_a_command_says_is_repeated_while_it_runs(settings, tmp_path, capsys, monkeypatch):
    """A launcher that says one thing, works on, says another and fails: both are shown, with where its log is."""
    monkeypatch.setattr("ablate.work.SECONDS_BETWEEN_LINES", 0.05)
    work = "import sys, time; print('half way', flush=True); time.sleep(1); sys.exit('out of memory')"
    only = {"axes": {"frames": [2]}, "launcher": [sys.executable, "-c", work]}
    with pytest.raises(SystemExit):
        ablate(of(settings, tmp_path / "out", **only))
    (log,) = (tmp_path / "out" / "runs").glob("*/train.log")
    said = capsys.readouterr().out.replace("\n", "")
    assert f"log: {log}" in said
    assert said.index("half way") < said.index("out of memory") < said.index("failed: ")


def test_a_shared_run_that_failed_is_recorded_for_each_point(settings, tmp_path):
    """It is started once, and no point lacks results without a reason."""
    only = {"axes": {"strategy": ["mat", "pt1"]}, "launcher": [sys.executable, "-c", "raise SystemExit(3)"]}
    with pytest.raises(SystemExit):
        ablate(of(settings, tmp_path / "out", **only))
    (log,) = (tmp_path / "out" / "runs").glob("*/train.log")
    assert log.read_text().count("$ ") == 1
    failed = json.loads((tmp_path / "out" / "results.json").read_text())["failed"]
    assert [f["what"].partition(", ")[0] for f in failed] == ["base", "strategy=pt1"]
    assert {(f["status"], f["log"]) for f in failed} == {(3, str(log))}


def test_an_ablation_that_waited_plans_anew(settings, feature_store, tmp_path, monkeypatch):
    """What it trains is that of the store as it is when its turn comes."""
    storage = Storage(shutil.copytree(feature_store, tmp_path / "store"))
    only = {"axes": {}, "launcher": [sys.executable, "-c", "raise SystemExit(3)"], "store": str(storage.root)}
    config = of(settings, tmp_path / "out", **only)
    before = Ablation(config).runs(Point(), 0)[0]

    @contextlib.contextmanager
    def alone(folder):
        save_conversations(storage, "mixed", load_conversations(storage, "mixed")[:-1])
        with open(tmp_path / "lock", "w") as lock:
            yield lock.fileno()

    monkeypatch.setattr("ablate.run._alone", alone)
    with pytest.raises(SystemExit):
        ablate(config)
    after = Ablation(config).runs(Point(), 0)[0]
    assert before.digest != after.digest
    assert (before.folder.exists(), after.folder.exists()) == (False, True)


def test_scores_of_another_wording_of_the_judge_are_not_taken(tmp_path):
    judge = JudgeSettings(urls=("http://127.0.0.1:1",), model="m")
    evaluation = Evaluation(Point(), 0, "x", None, None, TASKS["msrvtt-qa"], tmp_path / "report.json")
    item = {"id": "q", "occurrence": 0, "cluster": "v", "accuracy": 100.0}
    (tmp_path / "items.jsonl").write_text(json.dumps(item) + "\n")
    now = {"model": "m", "protocol": judge.protocol, "prompts": judge.asked_by.digest, "undecided": 0}
    for changes, metrics, value in (
        ({}, {"accuracy": {}}, 100),
        ({"prompts": "older"}, {"accuracy": {}}, None),
        ({"model": "other"}, {"accuracy": {}}, None),
        ({}, {}, None),
    ):
        entry = {"judge": now | changes, "metrics": metrics, "items": "items.jsonl"}
        (tmp_path / "report.json").write_text(json.dumps({"tasks": [entry]}))
        outcome = read_outcome(evaluation, judge)
        assert (outcome and outcome.score.value) == value
    assert read_outcome(evaluation, None) is None


def test_a_dry_run_shows_and_starts_nothing(settings, tmp_path, capsys):
    """It exits with 1 where a run would fail, so that a script does not start the ablation."""
    with pytest.raises(SystemExit) as stop:
        dry_run(of(settings, tmp_path / "out"))
    assert stop.value.code == 1
    said = capsys.readouterr().out
    for words in (
        "spatial.t2",
        "spatial.t4",
        "audio.k2",
        "4 of 4",
        "there",
        "2 to run",
        "1 to run, 1 shared",
        "visual only",
        "minutes on 1 x this processor at an assumed MFU of 0.4",
        "./no-such-llm: no such folder here",
    ):
        assert words in said
    dry_run(of(settings, tmp_path / "out", axes=settings["axes"] | {"llm": []}))
    assert "will fail" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_what_changes_a_run_and_what_does_not(settings, feature_store, tmp_path):
    """A finished run is taken for another's only if nothing that its weights follow from differs."""
    shutil.copytree(feature_store, tmp_path / "store")
    here = settings | {"store": str(tmp_path / "store")}

    def digests(stage: dict | None = None, **changes) -> list[str]:
        stages = [fields | (stage or {}) for fields in settings["stages"]]
        ablation = Ablation(of(here, tmp_path / "out", stages=stages, **changes))
        return [run.digest for run in ablation.runs(Point(), ablation.config.seeds[0])]

    first = digests()
    assert first == digests({"save_every": 50, "log_every": 7, "batch_tokens": 4096})
    weighed = {"sources": [settings["stages"][0]["sources"][0] | {"weight": 2.0}]}
    for change in ({"lr": 1e-3}, {"steps": 3}, {"frames": 4}, {"precision": "bfloat16"}, weighed):
        assert not set(first) & set(digests(change)), change
    assert not set(first) & set(digests(seeds=[1]))
    storage = Storage(tmp_path / "store")
    save_conversations(storage, "mixed", load_conversations(storage, "mixed")[:-1])
    assert not set(first) & set(digests())


def test_only_what_is_asked_by_both_senses_is_asked_by_one(settings, feature_store, tmp_path):
    """A benchmark that nothing can be withheld from is no failure."""
    shutil.copytree(feature_store, tmp_path / "store")
    storage = Storage(tmp_path / "store")
    save_conversations(storage, "seen", [c for c in load_conversations(storage, "mixed") if c.modality == "visual"])
    benchmarks = {name: {"conversations": name} for name in ("mixed", "seen")}
    ablation = Ablation(of(settings, tmp_path / "out", store=str(tmp_path / "store"), benchmarks=benchmarks))
    asked = {point: [(a.benchmark, a.sense) for a in ablation.evaluations(point, 0)] for point in ablation.points()[:2]}
    assert asked[Point()] == [("mixed", None), ("mixed", "visual"), ("seen", None)]
    assert asked[Point("frames", 4)] == [("mixed", None), ("seen", None)]


def test_missing_columns_are_refused_before_anything_starts(settings, tmp_path):
    for axes, word in (
        ({"frames": [8]}, r"spatial\.t8 of column clip-tiny"),
        ({"audio": ["whisper-tiny"]}, "whisper-tiny"),
    ):
        with pytest.raises(UserError, match=rf"field 'featurize': .* does not hold all of .*{word}.*name the YAML"):
            ablate(of(settings, tmp_path / "out", axes=axes))
    with pytest.raises(UserError, match=r"there are no conversations 'tests'; it has: mixed"):
        Ablation(of(settings, tmp_path / "out", benchmarks={"x": {"conversations": "tests"}}))
    with pytest.raises(UserError, match=r"field 'stages\.0': unknown field 'batch'"):
        Ablation(of(settings, tmp_path / "out", stages=[settings["stages"][0] | {"batch": 3}]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("encoder", "axes", "said"),
    [
        ({"encoder": "clip:big/random", "frames": [8]}, {"frames": [8]}, "makes clip-big, not clip-tiny"),
        (
            {"encoder": "clip:tiny/random", "frames": [4]},
            {"frames": [8]},
            r"makes spatial\.t4 of clip-tiny, not spatial\.t8",
        ),
        ({"encoder": "clap:tiny/random"}, {"segments": [7]}, r"makes audio\.k4 of clap-tiny, not audio\.k7"),
        (
            {"encoder": "clip:tiny/random", "frames": [2, 8]},
            {"frames": [8]},
            r"makes spatial\.t2 again, which clip-tiny\.",
        ),
        ({"encoder": "clip:tiny/random", "depth": 3}, {"frames": [8]}, "unknown field 'columns.0.depth'"),
    ],
)
def test_a_yaml_that_does_not_make_what_is_missing_is_refused_before_anything_starts(
    settings, tmp_path, capfd, encoder, axes, said
):
    """Hours of featurizing would end without the array, or with two columns that hold it."""
    file = tmp_path / "clip.yaml"
    file.write_text(yaml.safe_dump({"columns": [encoder]}))
    named = {"featurize": {name: str(file) for name in ("clip-tiny", "clap-tiny")}}
    with pytest.raises(UserError, match=said) as refused:
        ablate(of(settings, tmp_path / "out", axes=axes, **named))
    assert str(file) in str(refused.value)
    assert "to be featurized:" not in capfd.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_shipped_yaml_is_suggested_only_if_it_makes_what_is_missing(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(REPO)
    for axes, suggestion in (
        ({"audio": ["whisper-tiny"]}, "featurize.whisper-tiny=ablations"),
        ({"visual": ["clip-vit-s-32"]}, "featurize.clip-vit-s-32=FILE"),  # the demo's has no T = 2
        ({"frames": [8]}, "featurize.clip-tiny=FILE"),
    ):
        config = of(settings, tmp_path / "out", axes=axes)
        with pytest.raises(UserError) as refused:
            ablate(config)
        assert str(refused.value).endswith(suggestion)


def test_a_dry_run_fails_if_the_cost_of_a_missing_column_cannot_be_measured(settings, tmp_path):
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump({"columns": [{"encoder": "clip:tiny/none", "frames": [8]}]}))
    named = {"axes": {"frames": [8]}, "featurize": {"clip-tiny": str(tmp_path / "clip.yaml")}}
    with pytest.raises(SystemExit):
        dry_run(of(settings, tmp_path / "out", **named))


def test_a_column_with_a_missing_shard_is_not_taken_for_whole(settings, feature_store, tmp_path):
    """Points would be compared on different conversations."""
    shutil.copytree(feature_store, tmp_path / "store")
    next((tmp_path / "store" / "columns").glob("clip-tiny.*/000001.json")).unlink()
    with pytest.raises(UserError, match=r"does not hold all of spatial\.t2 of column clip-tiny"):
        dry_run(of(settings, tmp_path / "out", store=str(tmp_path / "store")))


def test_a_missing_column_is_featurized_first(media, tiny_llm, tmp_path, python):
    """By the command and the cost that the plan shows; the trainer itself still imports no encoder."""
    chat = [
        {"id": name, "image" if name[-1] == "g" else "video": name, "conversations": [
            {"from": "human", "value": "What colour? <image>"}, {"from": "gpt", "value": name[:3]}]}
        for name in ("red-loud.mp4", "blue-loud.mp4", "silent.mp4", "blue.png", "red.jpg")
    ]  # fmt: skip
    (tmp_path / "chat.json").write_text(json.dumps(chat))
    done = python("featurize", "plan", tmp_path / "chat.json", "--media-root", media, "--store", tmp_path / "store")
    assert done.returncode == 0, done.stderr
    column = {"encoder": "clip:ViT-S-32/random", "layer": 1, "frames": [2]}
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump({"columns": [column], "workers": 1}))
    stage = {
        "stage": 2, "model": str(tiny_llm), "sources": [{"store": "", "conversations": "chat"}], "audio": None,
        "visual": "clip-vit-s-32", "frames": 2, "global_batch": 4, "steps": 2, "lr": 1e-3, "precision": "float32",
    }  # fmt: skip
    command = Command(
        tmp_path,
        {
            "store": str(tmp_path / "store"),
            "stages": [stage],
            "benchmarks": {"chat": {"conversations": "chat"}},
            "featurize": {"clip-vit-s-32": str(tmp_path / "clip.yaml")},
        },
    )
    assert command.finish() == 0, command.log.read_text()
    said = command.log.read_text()
    assert f"featurize run --store {tmp_path}/store --config {tmp_path}/clip.yaml" in said
    assert "worker-hours" in said
    assert command.imported("featurize") >= 2  # the estimate and the run: the count sees encoders where there are some
    (number,) = json.loads((command.output / "results.json").read_text())["numbers"]
    assert number["n"] == 5
    before = command.imported("featurize")
    assert command.finish() == 0
    assert command.imported("featurize") == before


def test_intervals_are_those_of_the_mean_and_draw_what_belongs_together():
    rng = np.random.default_rng(1)
    exact = (rng.random(400) < 0.3).astype(float)
    found = bootstrap(exact, np.ones(400), [str(i) for i in range(400)])
    half = 1.96 * np.sqrt(found.value * (1 - found.value) / 400)
    assert found.value == exact.mean()
    assert [found.low, found.high] == pytest.approx([found.value - half, found.value + half], abs=0.01)
    clustered = bootstrap(np.repeat(exact, 4), np.ones(1600), [str(i // 4) for i in range(1600)])
    assert clustered.high - clustered.low == pytest.approx(found.high - found.low, abs=0.01)  # copies tell nothing new
    assert found == bootstrap(exact, np.ones(400), [str(i) for i in range(400)])


def test_seeds_are_averaged_and_differences_are_paired():
    def outcome(exact):
        judged = [{"id": f"c{i}", "key": None, "exact": value, "loss": 2, "tokens": 4} for i, value in enumerate(exact)]
        return of_held_out({"judged": judged})

    one, two = outcome([1, 0, 1, 0]), outcome([1, 1, 1, 0])
    assert averaged([one, two]).parts[:, 0].tolist() == [100, 50, 100, 0]
    assert two.minus(one).value == 25
    assert two.minus(outcome([1, 1])).value == 0  # only what both were asked
    assert averaged([one, two]).mean_loss.value == 0.5


def test_where_all_is_wrong_the_interval_has_a_width():
    """Four wrong answers leave open what a fifth would be; Wilson's bound of 0 of 4 is 49%."""

    def outcome(exact):
        judged = [{"id": f"c{i}", "key": None, "exact": value, "loss": 2, "tokens": 4} for i, value in enumerate(exact)]
        return of_held_out({"judged": judged})

    wrong, right = outcome([0] * 4), outcome([1] * 4)
    bound = 100 * 1.96**2 / (4 + 1.96**2)
    assert (wrong.score.low, wrong.score.high) == (0, pytest.approx(bound))
    assert (right.score.low, right.score.high) == (pytest.approx(100 - bound), 100)
    assert (right.minus(wrong).low, right.minus(wrong).high) == (pytest.approx(100 - bound), 100)
    assert (wrong.minus(wrong).low, wrong.minus(wrong).high) == (pytest.approx(-bound), pytest.approx(bound))
    assert outcome([0, 1, 0, 1]).score.low > 0 - bound


def test_the_papers_numbers_stand_beside_its_own_benchmarks_only():
    assert paper_accuracy("strategy", "pt1", "MSRVTT-QA") == 56.7
    assert paper_accuracy("visual", "clip-vit-h-14.3fa9c1", "MUSIC-AVQA") == 48.4
    assert paper_accuracy("audio", "whisper-small", "AVSSD") == 49.1
    assert paper_accuracy("llm", "lmsys/vicuna-13b-v1.5", "ActivityNet-QA") == 51.9
    assert paper_accuracy("strategy", "pt1", "heldout") is None
    assert paper_accuracy("frames", 8, "MSRVTT-QA") is None
    assert paper_accuracy("ask", "sight only", "AVSSD") == 36.2


def test_a_task_that_is_not_there_is_refused_before_anything_starts(settings, tmp_path):
    for benchmark, message in (
        (
            {"task": "msrvtt", "conversations": "mixed"},
            r"no task 'msrvtt'; did you mean 'msrvtt-qa'\?; there are: msrvtt-qa",
        ),
        ({"task": "msrvtt-qa"}, "there are no conversations 'msrvtt-qa'"),
        ({"limit": 3}, "give conversations, or a task"),
    ):
        with pytest.raises(UserError, match=message):
            Ablation(of(settings, tmp_path / "out", benchmarks={"x": benchmark}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_ablation_loads(path, monkeypatch):
    monkeypatch.chdir(REPO)
    config = load_settings(AblateConfig, path)
    assert all(isinstance(stage, TrainConfig) for stage in base_stages(config))
    assert all(find_config(FeaturizeConfig, file).is_file() for file in config.featurize.values())


def test_the_papers_axes():
    axes = load_settings(AblateConfig, REPO / "ablate" / "configs" / "paper.yaml").axes
    assert axes.frames == (4, 8, 16, 32, 64)
    assert axes.segments == (1, 2, 4, 8, 16)
    assert axes.strategy == ("mat", "pt1", "pt2")
    assert len(axes.visual) == 3
    assert len(axes.audio) == 4
    assert len(axes.llm) == 2
