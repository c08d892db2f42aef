"""How far judges can be trusted: anchors with known verdicts, the agreement of several, and judging by batch files."""

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from serve.__main__ import app
from serve.evals.agreement import alpha
from serve.evals.anchors import AnchorFile, load_anchors
from serve.evals.answers import Answer, AnswerFile
from serve.evals.judge import Judging, judge_all
from serve.evals.judge_settings import JudgeFile, JudgeSettings
from serve.evals.plan import plan_tasks
from store import UserError, parse_settings

REPO = Path(__file__).parents[2]


@pytest.fixture
def answered(planned, trained, tmp_path):
    """The words of a command that scores answers on disk, and its folder."""
    out, names = tmp_path / "out", ["msrvtt-qa", "videochatgpt-temporal"]
    with AnswerFile(out, 0, 1) as file:
        for plan in plan_tasks(planned.url, names, None, None):
            for number, query in enumerate(plan.queries):
                file.write(plan.key(query), Answer(f"answer {number}", 3, "stop"))
    run = {"checkpoint": "x", "columns": {}, "store": planned.url, "engine": "x", "version": "x"}
    (out / "run.json").write_text(json.dumps(run))
    checkpoint = str(trained / "run" / "checkpoint")
    return ["evaluate", checkpoint, planned.url, *names, "--out", str(out), "--only", "scores"], out


def run(*words):
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


def report_of(out):
    return {task["task"]: task for task in json.loads((out / "report.json").read_text())["tasks"]}


def said(body):
    return "\n".join(message["content"] for message in body["messages"])


def test_every_kind_of_judgement_has_anchors_that_tell_judges_apart():
    """One that says yes or gives 5 to all is right on half of them, and so is one that does the reverse."""
    anchors = load_anchors()
    counts = Counter(anchor.kind for anchor in anchors)
    assert counts == {
        "judged": 20, "correctness": 4, "detail": 4, "context": 4, "temporal": 4, "consistency": 4
    }  # fmt: skip
    for kind in counts:
        own = [anchor for anchor in anchors if anchor.kind == kind]
        for verdict, score in (("yes", 5), ("no", 0)):
            assert sum(anchor.agrees(verdict, score) for anchor in own) == len(own) / 2
        assert not any(anchor.agrees(None, None) for anchor in own)


def test_anchors_that_lack_what_their_kind_needs_are_refused():
    texts = {"question": "q", "answer": "a", "prediction": "p"}
    for wrong, words in (
        (texts, "verdict"),
        (texts | {"verdict": "yes", "score": [0, 5]}, "score"),
        (texts | {"kind": "detail", "verdict": "yes"}, "verdict"),
        (texts | {"kind": "detail", "score": [3, 9]}, "from 0 to 5"),
        (texts | {"kind": "consistency", "score": [3, 5]}, "question2"),
    ):
        with pytest.raises(UserError, match=words):
            parse_settings(AnchorFile, {"anchors": [wrong]}, "anchors.yaml")


def test_own_anchors_stand_beside_each_score(answered, llm_server, tmp_path):
    """Three of four are judged as known; the judge is asked no anchor of a kind that no task has."""
    words, out = answered
    texts = {"question": "q", "answer": "a"}
    mine = [texts | {"prediction": f"anchor {n}", "verdict": "yes" if n else "no"} for n in range(4)]
    mine.append(texts | {"kind": "detail", "prediction": "no task has this kind", "score": [0, 5]})
    (tmp_path / "anchors.yaml").write_text(yaml.safe_dump({"anchors": mine}))
    with llm_server(answer=lambda body: "{'pred': 'yes', 'score': 5}") as server:
        output = run(*words, "--judge", server.url, "--judge-model", "m", "--anchors", tmp_path / "anchors.yaml")
    tasks = report_of(out)
    assert len(server.bodies) == 3 + 1 + 4
    assert (tasks["msrvtt-qa"]["judge"]["anchors"]["value"], tasks["msrvtt-qa"]["judge"]["anchors"]["judged"]) == (
        75,
        4,
    )
    assert tasks["videochatgpt-temporal"]["judge"]["anchors"] is None
    assert "75.0% (" in output
    assert ") of 4 |" in (out / "report.md").read_text()


def test_several_judges_and_how_far_they_agree(answered, llm_server, tmp_path):
    """The first gives the scores; each of the others, and their agreement, as computed by hand."""
    words, out = answered

    def answer(body):
        is_first = body["model"] == "first" or "answer 0" not in said(body)
        return f"{{'pred': '{'yes' if is_first else 'no'}', 'score': {4 if is_first else 2}}}"

    with llm_server(answer=answer) as server:
        judges = [{"urls": [server.url], "model": name} for name in ("first", "second", "third")]
        (tmp_path / "judges.yaml").write_text(yaml.safe_dump({"judges": judges}))
        output = run(*words, "--judges", tmp_path / "judges.yaml")
    entry = report_of(out)["msrvtt-qa"]
    assert entry["metrics"]["accuracy"]["value"] == 100
    assert [other["model"] for other in entry["judge"]["others"]] == ["second", "third"]
    assert [other["metrics"]["accuracy"]["value"] for other in entry["judge"]["others"]] == pytest.approx([200 / 3] * 2)
    agreement = entry["judge"]["agreement"]
    assert (agreement["count"], agreement["exact"]["value"]) == (3, pytest.approx(200 / 3))
    # 9 verdicts, 7 of them yes; of 3 answers one has one yes and two no
    observed, by_chance = (2 * 1 * 2 / 2) / 9, 2 * 7 * 2 / (9 * 8)
    assert agreement["alpha"]["value"] == pytest.approx(1 - observed / by_chance)
    assert "3 judges say the same of 66.7% (" in output
    assert "judged by second" in (out / "report.md").read_text()
    agreement = report_of(out)["videochatgpt-temporal"]["judge"]["agreement"]
    assert (agreement["count"], agreement["exact"]["value"]) == (1, 0)


def test_judges_of_two_protocols_stand_in_no_report():
    judge = {"urls": ["http://127.0.0.1:9"], "model": "a"}
    for second, words in (
        ({"model": "b", "protocol": "video-chatgpt"}, "two protocols cannot be compared"),
        ({}, "stands twice"),
    ):
        with pytest.raises(UserError, match=words):
            parse_settings(JudgeFile, {"judges": [judge, judge | second]}, "judges.yaml")


def plain_alpha(values, difference):
    """Krippendorff's alpha by its definition, over all pairs of values."""
    pooled = [value for row in values for value in row]
    m = len(values[0])
    observed = sum(difference(a, b) for row in values for a in row for b in row) / (m - 1) / len(pooled)
    chance = sum(difference(a, b) for a in pooled for b in pooled) / (len(pooled) * (len(pooled) - 1))
    return 1 - observed / chance


@pytest.mark.parametrize("judges", [2, 3])
def test_alpha_is_that_of_its_definition(judges):
    draw = np.random.default_rng(judges)
    names = draw.integers(0, 3, (40, judges))
    groups = [str(number // 2) for number in range(40)]
    found = alpha(np.eye(3)[names], groups)
    assert found.value == pytest.approx(plain_alpha(names.tolist(), lambda a, b: a != b))
    scores = draw.integers(0, 6, (40, judges))
    found = alpha(scores[..., None].astype(float), groups)
    assert found.value == pytest.approx(plain_alpha(scores.tolist(), lambda a, b: (a - b) ** 2))
    assert found.low < found.value < found.high
    assert alpha(np.ones((5, judges, 1)), list("abcde")) is None
    same = np.repeat(scores[:, :1, None], judges, 1).astype(float)
    assert alpha(same, groups).value == 1


def test_a_judge_by_batch_files_scores_as_one_that_is_asked(answered, llm_server, tmp_path):
    """Out, in by halves, shuffled; invalid replies go out again; the scores are those of a judge that is asked."""
    words, out = answered
    batch, texts = (
        tmp_path / "batch",
        {"0": "{'pred': 'yes', 'score': 3}", "1": "who knows", "2": "{'pred': 'no', 'score': 1}"},
    )

    def reply(body):
        return next(text for number, text in texts.items() if f"answer {number}" in said(body) or number == "2")

    def give(entries, name):
        lines = []
        for entry in entries:
            message = {"message": {"content": reply(entry["body"])}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 9, "completion_tokens": 9}
            body = {"model": "m", "choices": [message], "usage": usage}
            response = {"status_code": 200, "body": body}
            lines.append(json.dumps({"custom_id": entry["custom_id"], "response": response, "error": None}))
        random.Random(0).shuffle(lines)
        (batch / name).write_text("\n".join(lines) + "\n")

    def asked():
        lines = [line for path in batch.glob("requests-*") for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    by_files = [
        *words,
        "--judge",
        "http://127.0.0.1:9",
        "--judge-model",
        "m",
        "--protocol",
        "video-chatgpt",
        "--batch",
        batch,
    ]
    output = run(*by_files)
    assert "is not in" in output.replace("\n", " ")
    assert len(asked()) == 3 + 1 + 24
    given = 0
    while len(asked()) > given:
        left = asked()[given:]
        given += max(1, len(left) // 2)
        give(asked()[:given], "out.jsonl")
        output = run(*by_files)
    assert "undecided" not in output
    assert len(asked()) == 28 + 4  # one reply could not be read in five tries
    found = report_of(out)["msrvtt-qa"]
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(100 / 3)
    assert found["invalid"] == 1
    with llm_server(answer=reply) as server:
        asking = ["--judge", server.url, "--judge-model", "m", "--protocol", "video-chatgpt"]
        run(*words, *asking, "--ledger", tmp_path / "other.jsonl")
        assert report_of(out)["msrvtt-qa"] == found
        run(*words, *asking)
        assert len(server.bodies) == 32


def test_scores_through_every_fault_are_those_of_a_clean_server(answered, llm_server, tmp_path):
    """Whatever a server does wrong now and then, the report is the same, and a second run asks nothing."""
    words, out = answered
    faults = (
        "429",
        "429 after 1",
        "429 date",
        "500",
        "503",
        "reset",
        "reset late",
        "cut",
        "empty",
        "wrong form",
        "hang",
    )

    def answer(body):
        return f"{{'pred': '{'yes' if 'answer 1' in said(body) else 'no'}', 'score': {len(said(body)) % 6}}}"

    def now_and_then(text, tries):
        draw = random.Random(f"{text} {tries}")
        return draw.choice(faults) if tries < 3 and draw.random() < 0.5 else None

    reports = []
    for name, fault in (("clean", lambda text, tries: None), ("faulty", now_and_then)):
        with llm_server(answer=answer, fault=fault) as server:
            silent = f"silent_seconds={0.3 if name == 'faulty' else 30}"  # a busy machine is no faulty server
            limits = [f"--judge-set={limit}" for limit in (silent, "longest_pause=0.02", "stop_after=99")]
            asking = [*words, "--judge", server.url, "--judge-model", "m", *limits, "--ledger", tmp_path / name]
            run(*asking)
            came = sum(server.came.values())
            reports.append(report_of(out))
            run(*asking)
            assert sum(server.came.values()) == came
            assert (came > 28) == (name == "faulty")
    assert reports[0] == reports[1]


def test_scoring_answers_needs_no_torch(answered):
    """A judge is asked from a machine without a GPU, in a second."""
    words, out = answered
    code = (
        "import sys; from serve.__main__ import app; app(sys.argv[1:], standalone_mode=False); "
        "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (out / "report.md").exists()


@pytest.mark.parametrize("fault", ["refusal", "other model", "same"])
def test_what_casts_doubt_on_a_judge_is_told(planned, published, llm_server, tmp_path, fault):
    """Refusals, another model than the one that was asked, and one reply for all."""
    from serve.evals.report import _judge_remarks
    from serve.evals.scores import score

    (plan,) = plan_tasks(planned.url, [f"msrvtt-qa={published.conversations_of('msrvtt-qa')}"], None, None)
    pairs = [(query, Answer(f"reply {n}", 1, "stop")) for n, query in enumerate(plan.queries * 8)]
    pairs = [
        (query if n < 3 else type(query)(**{**vars(query), "occurrence": n}), a) for n, (query, a) in enumerate(pairs)
    ]
    with llm_server(answer=lambda body: "{'pred': 'no', 'score': 0}", fault=lambda text, tries: fault) as server:
        judge = JudgeSettings(urls=(server.url,), model="m", longest_pause=0)
        ((found,),) = judge_all(Judging((judge,)), [(plan.task, pairs)], tmp_path)
    scores = score(plan.task, plan.conversations, plan.queries, pairs, "wrong", found)
    remarks = " ".join(_judge_remarks(scores, is_first=True))
    expected = {
        "refusal": "24 judgements were refused",
        "other model": "served as another-model (24)",
        "same": "said the same of all 24 answers",
    }
    assert expected[fault] in remarks
    assert scores.invalid == (0 if fault == "other model" else 24)
