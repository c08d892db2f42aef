"""Benchmarks asked and scored: every answer kept once, whatever kills the run, and every score as computed by hand."""

import collections
import json
import math
import os
import random
import shutil
import time

import numpy as np
import pytest

from serve.evals.answers import Answer, AnswerFile, Key, limited, read_answers, share
from serve.evals.folder import RunInfo, claim
from serve.evals.plan import plan_tasks
from serve.evals.run import evaluate, ranks_of
from serve.evals.scores import score
from serve.evals.statistics import bootstrap, percentage
from serve.evals.tasks import TASKS, queries
from serve.evals.words import tokenize
from store import UserError, load_conversations

KILLS = 20 if os.environ.get("AVLLM_LONG") else 3


@pytest.fixture(scope="session")
def featurized(planned, trained, python):
    """The store of all published sets, with the columns that the checkpoint was trained on."""
    done = python("featurize", "run", "--store", planned.url, "--config", trained / "featurize.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return planned


@pytest.fixture(scope="session")
def names(published):
    """All tasks, as the command takes them."""
    return [f"{task}={published.conversations_of(task)}" for task in published.SETS]


@pytest.fixture(scope="session")
def evaluated(featurized, trained, python, names, tmp_path_factory):
    """The folder of an evaluation of every task by one command."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    done = python("serve", "evaluate", trained / "run" / "checkpoint", featurized.url, *names, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


def report_of(out):
    return {task["task"]: task for task in json.loads((out / "report.json").read_text())["tasks"]}


def items_of(out, task):
    return [json.loads(line) for line in (out / f"{task}.items.jsonl").read_text().splitlines()]


def lines_of(out):
    return [json.loads(line) for path in sorted(out.glob("answers*.jsonl")) for line in path.read_text().splitlines()]


def test_every_task_goes_from_its_published_files_to_a_report(evaluated, published):
    """Planned, featurized, asked and, where no judge is needed, scored; each score is computed again from the items."""
    out, said = evaluated
    report = report_of(out)
    assert list(report) == list(published.SETS)
    for name, entry in report.items():
        task, items = TASKS[name], items_of(out, name)
        assert entry["scored"] == entry["questions"] == len(items) > 0, name
        assert not entry["partial"]
        assert bool(entry["metrics"]) == (not task.judged)
        assert task.title in (out / "report.md").read_text()
        if task.scorer in ("exact", "choice"):
            mean = np.mean([item["accuracy"] for item in items])
            assert entry["metrics"]["accuracy"]["value"] == pytest.approx(mean)
        if task.scorer in ("cider", "bleu"):
            assert next(iter(entry["metrics"])) == ("CIDEr" if task.scorer == "cider" else "BLEU-1")
            assert entry["metrics"]["CIDEr"]["value"] == pytest.approx(np.mean([item["CIDEr"] for item in items]))
        for metric in entry["metrics"].values():
            assert metric["low"] <= metric["value"] <= metric["high"]
    assert "needs a judge" in said
    assert (out / "report.png").stat().st_size > 1000
    assert {item["id"] for item in items_of(out, "music-avqa")} == {"9", "10"}
    assert {(item["id"], item["occurrence"]) for item in items_of(out, "music-avqa")} == {
        ("9", 0),
        ("10", 0),
        ("10", 1),
    }
    assert set(report["music-avqa"]["groups"]) >= {"audio", "audio/counting", "visual"}
    assert report["valor"]["expected"] == "3,500 (recalled)"


def test_tasks_that_ask_the_same_share_their_answers(evaluated):
    out, _ = evaluated
    lines = lines_of(out)
    assert len({tuple(line[n] for n in Key._fields) for line in lines}) == len(lines)
    three = [items_of(out, f"videochatgpt-{name}") for name in ("correctness", "detail", "context")]
    assert three[0] == three[1] == three[2]
    assert sum(line["conversations"] == "videochatgpt-generic" for line in lines) == 2


def test_scores_ask_nothing(evaluated, featurized, trained, names, tmp_path, monkeypatch):
    """Another way to score never asks the model again."""
    out, _ = evaluated
    shutil.copytree(out, tmp_path / "out")
    monkeypatch.setattr("serve.assistant.Assistant.load", lambda *_: 1 / 0)
    before = report_of(out)
    (tmp_path / "out" / "report.json").unlink()
    checkpoint = str(trained / "run" / "checkpoint")
    for only in ("scores", None):
        evaluate(checkpoint, featurized.url, names, out=tmp_path / "out", only=only)
        assert report_of(tmp_path / "out") == before
    with pytest.raises(UserError, match="holds no answers to these tasks"):
        evaluate(checkpoint, featurized.url, ["valor=vatex"], out=tmp_path / "out", only="scores")


def given(task, conversations, replies):
    """Queries of a set with replies in turn; a dictionary stands for features that cannot be used."""
    made = queries(TASKS[task], conversations)
    answers = [Answer(failures=r) if isinstance(r, dict) else Answer(r, 3, "stop") for r in replies]
    return made, list(zip(made, answers, strict=False))


def test_right_wrong_invalid_and_failed_answers_by_hand(featurized):
    """MUSIC-AVQA has right, two, more than ten; NExT-QA has A, C, E."""
    made, answers = given(
        "music-avqa", load_conversations(featurized, "music-avqa"), [" Right.", "three", "more_than_ten"]
    )
    scores = score(TASKS["music-avqa"], "music-avqa", made, answers, "wrong")
    assert scores.metrics["accuracy"].value == pytest.approx(0)
    assert scores.metrics["accuracy, lenient"].value == pytest.approx(200 / 3)
    made, answers = given("music-avqa", load_conversations(featurized, "music-avqa"), ["RIGHT .", "Two", ""])
    scores = score(TASKS["music-avqa"], "music-avqa", made, answers, "wrong")
    assert scores.metrics["accuracy"].value == pytest.approx(200 / 3)
    assert {name: (g.count, g.value.value) for name, g in scores.groups.items()} == {
        "audio": (1, 100), "audio/counting": (1, 100), "visual": (1, 0), "visual/counting": (1, 0),
        "audio-visual": (1, 100), "audio-visual/location": (1, 100),
    }  # fmt: skip
    replies = ["A", {"visual": "truncated: half a file"}, "The answer is (B) or (D)"]
    made, answers = given("next-qa", load_conversations(featurized, "next-qa"), replies)
    wrong = score(TASKS["next-qa"], "next-qa", made, answers, "wrong")
    left_out = score(TASKS["next-qa"], "next-qa", made, answers, "left-out")
    assert (wrong.scored, wrong.failed, wrong.invalid) == (3, 1, 1)
    assert (left_out.scored, left_out.failed, left_out.invalid) == (2, 1, 1)
    assert wrong.metrics["accuracy"].value == pytest.approx(100 / 3)
    assert left_out.metrics["accuracy"].value == pytest.approx(50)
    assert not wrong.is_partial
    assert not left_out.is_partial
    assert score(TASKS["next-qa"], "next-qa", made, answers[:2], "wrong").is_partial


def plain_cider(predictions, references):
    """CIDEr-D by its paper, over dictionaries: https://arxiv.org/abs/1411.5726."""

    def grams(words, n):
        return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = []
    for n in range(1, 5):
        frequency = collections.Counter(g for refs in references for g in {g for r in refs for g in grams(r, n)})

        def vector(words, n=n, frequency=frequency):
            return {g: c * math.log(len(references) / max(1, frequency[g])) for g, c in grams(words, n).items()}

        def norm(v):
            return math.sqrt(sum(x * x for x in v.values()))

        row = []
        for words, refs in zip(predictions, references, strict=True):
            mine, total = vector(words), 0.0
            for reference in refs:
                theirs = vector(reference)
                dot = sum(min(x, theirs.get(g, 0)) * theirs.get(g, 0) for g, x in mine.items())
                scale = norm(mine) * norm(theirs)
                total += math.exp(-((len(words) - len(reference)) ** 2) / 72) * (dot / scale if scale else 0)
            row.append(10 * total / len(refs))
        scores.append(row)
    return np.mean(scores, 0)


def test_captions_by_a_plain_reading_and_whole_frequencies_for_a_part(featurized):
    """A limited run keeps the document frequencies of all references, or its score would be of another measure."""
    conversations = load_conversations(featurized, "vatex") * 3
    replies = ["A red screen turns green.", "All is green", "red", "A screen", "Green. A green screen!", ""]
    made, answers = given("vatex", conversations, replies)
    whole = score(TASKS["vatex"], "vatex", made, answers, "wrong")
    predictions = [tokenize(reply) for reply in replies]
    expected = 100 * plain_cider(predictions, [[tokenize(r) for r in query.references] for query in made])
    assert [item["CIDEr"] for item in whole.items] == pytest.approx(expected)
    assert whole.metrics["CIDEr"].value == pytest.approx(expected.mean())
    part = score(TASKS["vatex"], "vatex", made, answers[:4], "wrong")
    assert part.is_partial
    assert [item["CIDEr"] for item in part.items] == pytest.approx(expected[:4])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_kills_lose_and_double_no_question(ranks, evaluated, featurized, trained, names, tmp_path, forks):
    """Ranks are killed at random moments and started again, then all go to their end: the unbroken run's scores."""
    draw, out = random.Random(ranks), tmp_path / "out"
    words = ("serve", "evaluate", trained / "run" / "checkpoint", featurized.url, *names, "--out", out)
    expected = report_of(evaluated[0])
    with open(tmp_path / "log", "wb") as log:

        def start(rank):
            env = {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
            return forks.start(*words, out=log, err=log, env=env)

        kills = 0
        while kills < KILLS:
            before = count_of(out)
            running = [start(rank) for rank in range(ranks)]
            target, deadline = before + draw.randrange(1, 9), time.monotonic() + 120
            while time.monotonic() < deadline and any(process.poll() is None for process in running):
                if count_of(out) >= target:
                    break
                time.sleep(draw.random() / 50)
            for process in running:
                process.kill()
                process.wait()
            kills += 1
            if not before and ranks == 1:
                cut_last_line(out)
        for process in [start(rank) for rank in range(ranks)]:
            assert process.wait(300) == 0, (tmp_path / "log").read_text()[-3000:]
    lines = lines_of(out)
    keys = collections.Counter(tuple(line[n] for n in Key._fields) for line in lines)
    assert max(keys.values()) == 1
    assert set(keys) == {tuple(line[n] for n in Key._fields) for line in lines_of(evaluated[0])}
    assert report_of(out) == expected


def count_of(out):
    """Whole lines, also where a kill has cut the last one."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("answers*.jsonl"))


def cut_last_line(out):
    """What a kill in the middle of a write leaves."""
    path = out / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-5])


def test_a_mended_failure_is_asked_again(featurized, trained, tmp_path):
    """Its last line counts; what was answered is not asked again."""
    out, checkpoint = tmp_path / "out", str(trained / "run" / "checkpoint")
    (planned,) = plan_tasks(featurized.url, ["valor"], None, None)
    first, second = (planned.key(query) for query in planned.queries)
    evaluate(checkpoint, featurized.url, ["valor"], out=out, only="answers")
    (out / "answers.jsonl").unlink()
    with AnswerFile(out, 0, 1) as file:
        file.write(first, Answer(failures={"visual": "truncated: half a file"}))
        file.write(second, Answer("kept", 1, "stop"))
    evaluate(checkpoint, featurized.url, ["valor"], out=out)
    answers = read_answers(out)
    assert answers[first].reply
    assert answers[second].reply == "kept"
    assert len(lines_of(out)) == 3


def test_questions_without_features_are_told_and_counted(featurized, trained, tmp_path, capsys):
    """A clip without sound cannot be asked by it; one that is not in the column was not featurized."""
    out = tmp_path / "out"
    evaluate(
        str(trained / "run" / "checkpoint"),
        featurized.url,
        ["seen-and-heard=vatex"],
        out=out,
        tasks_file=_both(tmp_path),
    )
    (entry,) = report_of(out).values()
    assert (entry["failed"], entry["scored"]) == (1, 2)
    assert "1 could not be asked, counted as wrong" in capsys.readouterr().out
    assert [item.get("failures") for item in items_of(out, "seen-and-heard")] == [
        None, {"audio": "absent: no audio stream"}
    ]  # fmt: skip


def test_what_cannot_be_evaluated_is_one_line(evaluated, featurized, trained, tmp_path, python):
    out, checkpoint = evaluated[0], str(trained / "run" / "checkpoint")
    for tasks, message in (
        (["msrvtt"], r"no task 'msrvtt'; did you mean 'msrvtt-qa'\?; there are: msrvtt-qa"),
        (["vatex=nothing"], "has no conversations 'nothing'; it has: "),
        (["next-qa=vatex"], "field 'meta.options': expected a list of texts"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(checkpoint, featurized.url, tasks, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    info = json.loads((out / "run.json").read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text(json.dumps(info | {"checkpoint": "another"}))
    shutil.copy(out / "answers.jsonl", tmp_path / "other")
    with pytest.raises(UserError, match=r"holds answers of another checkpoint: .*checkpoint \(another\), not .*--out"):
        evaluate(checkpoint, featurized.url, ["vatex"], out=tmp_path / "other")
    done = python("serve", "evaluate", checkpoint, featurized.url, "vatex", "--out", tmp_path / "other")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    (tmp_path / "other" / "answers.jsonl").write_text('{"id": "x"}\n')
    with pytest.raises(UserError, match="line 1: not an answer"):
        read_answers(tmp_path / "other")


def test_a_dry_run_tells_questions_hours_and_leaks_and_writes_nothing(featurized, trained, tmp_path, python):
    out = tmp_path / "out"
    words = ("serve", "evaluate", trained / "run" / "checkpoint", featurized.url, "next-qa", "valor", "msvd-qa")
    judge = ("--judge", "http://127.0.0.1:9", "--judge-model", "m", "--judge-set", "price={prompt: 1, completion: 1}")
    done = python(*words, "--dry-run", "--out", out, *judge)
    assert done.returncode == 0, done.stderr
    assert "7 questions to ask" in done.stdout
    assert "dollars" in done.stdout
    assert [cell.strip() for cell in done.stdout.split("│ all")[1].split("│")[1:5:3]] == ["22", "440"]
    assert "hours" in done.stdout
    assert "leaks were not checked: talk, of training, are not in this store" in " ".join(done.stdout.split())
    assert not out.exists()


def test_media_that_were_trained_on_are_told(trained, python, tmp_path):
    """The checkpoint knows what it was trained on."""
    out, own = tmp_path / "out", tmp_path / "own.yaml"
    own.write_text(
        "tasks: [{name: own, title: own, form: question, prompt: '{question}', modality: visual, scorer: exact}]"
    )
    words = ("serve", "evaluate", trained / "run" / "checkpoint", trained / "store", "own=talk", "--tasks", own)
    done = python(*words, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "the checkpoint was trained on conversations talk" in done.stdout.replace("\n", " ")


def test_ranks_are_both_given_or_neither():
    assert ranks_of({}) == (0, 1)
    assert ranks_of({"RANK": "2", "WORLD_SIZE": "3"}) == (2, 3)
    of_two = [{"RANK": rank, "WORLD_SIZE": "2"} for rank in ("2", "x", "-1")]
    for wrong in ({"RANK": "0"}, {"WORLD_SIZE": "2"}, *of_two):
        with pytest.raises(UserError, match="set both, as torchrun does"):
            ranks_of(wrong)


def test_a_folder_without_answers_takes_another_engine(tmp_path):
    """A server that could not be reached leaves nothing that binds."""
    run = RunInfo(checkpoint="c", columns={}, store="s", engine="vllm", version="1")
    other = run.model_copy(update={"engine": "transformers"})
    claim(tmp_path, run)
    claim(tmp_path, other)
    with AnswerFile(tmp_path, 0, 1) as file:
        file.write(Key("c", "1", 0, "p"), Answer("yes", 1, "stop"))
    with pytest.raises(UserError, match="holds answers of another engine: transformers, not vllm"):
        claim(tmp_path, run)
    claim(tmp_path, other)


def test_what_is_all_right_or_all_wrong_still_has_an_interval():
    """Wilson's, over clusters: twenty of twenty are about 84 to 100 percent."""
    clusters = [str(n) for n in range(20)]
    right, wrong = (percentage(np.full(20, value), clusters) for value in (100.0, 0.0))
    assert (right.value, right.low, right.high) == (100, pytest.approx(83.9, abs=0.1), 100)
    assert (wrong.value, wrong.low, wrong.high) == (0, 0, pytest.approx(16.1, abs=0.1))
    assert percentage(np.full(40, 100.0), clusters * 2) == right
    mixed = np.array([100.0] * 15 + [0.0] * 5)
    assert percentage(mixed, clusters) == bootstrap(mixed, np.ones(20), clusters)


def test_one_process_writes_a_file_and_all_ranks_agree_on_their_number(tmp_path):
    key = Key("c", "1", 0, "p")
    with AnswerFile(tmp_path, 0, 2) as file:
        file.write(key, Answer("yes", 1, "stop"))
        with pytest.raises(UserError, match="another process is writing it"):
            AnswerFile(tmp_path, 0, 2)
        with pytest.raises(UserError, match="2 processes share these questions"):
            AnswerFile(tmp_path, 0, 1)
        with AnswerFile(tmp_path, 1, 2):
            pass
    with AnswerFile(tmp_path, 0, 1):
        assert read_answers(tmp_path) == {key: Answer("yes", 1, "stop")}


def test_shares_and_limits_cover_every_question_once():
    for count in (0, 1, 7, 100):
        for ranks in (1, 2, 3, 8):
            assert [n for rank in range(ranks) for n in share(count, rank, ranks)] == list(range(count))
        assert list(limited(count, None)) == list(limited(count, count + 5)) == list(range(count))
    assert list(limited(10, 4)) == [0, 2, 5, 7]


def test_replies_of_any_characters_are_kept(tmp_path):
    replies = ["", " two\nlines\r\u2028", '"quotes" \\ {}', "\ud800 half a pair", "\x00\x1f", "汉字🙂"]
    with AnswerFile(tmp_path, 0, 1) as file:
        for number, reply in enumerate(replies):
            file.write(Key("c", str(number), 0, "p"), Answer(reply, 1, "stop"))
    assert [answer.reply for answer in read_answers(tmp_path).values()] == replies


def _both(folder):
    path = folder / "tasks.yaml"
    path.write_text(
        "tasks: [{name: seen-and-heard, title: t, form: caption, prompt: Describe it., modality: audio_visual, "
        "max_new_tokens: 4, scorer: cider}]"
    )
    return path
