"""The whole way of a curation against a scripted server: what is written, whatever happens on the way."""

import collections
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curate.__main__ import app
from curate.ledger import Ledger
from curate.output import SCHEMA, load_verdicts
from curate.prompts import OURS
from curate.tables import say_chosen
from store import (
    Conversation,
    Storage,
    Turn,
    UserError,
    list_conversations,
    load_conversations,
    load_outline,
    save_conversations,
)
from store.table import load_table

KILLS = 50 if os.environ.get("AVLLM_LONG") else 3
PASSING = ("429", "500", "503", "reset", "reset late", "cut", "empty", "wrong form")
MIX = {task: {"audio": 2, "visual": 3, "audio_visual": 2} for task in ("description", "conversation", "reasoning")}


def files_of(storage: Storage) -> dict[str, bytes]:
    """All that a curation writes but its replies."""
    names = ["conversations/test-descriptions.parquet", "conversations/test-instructions.parquet"]
    names += ["curations/test/verdicts.parquet"]
    for column in storage.names("columns"):
        names += [f"columns/{column}/{name}" for name in storage.names(f"columns/{column}")]
    return {name: storage.read(name) for name in names}


def careless(write):
    """A model of which a third of the replies cannot be used or break a rule, known beforehand."""

    def answer(body):
        draw = random.Random(json.dumps(body)).random()
        if draw < 0.12:
            return "I'm sorry, but as an AI I cannot view videos."
        if draw < 0.2:
            return '{"description": "cut'
        if draw < 0.3 and "relevance" in body["messages"][0]["content"]:
            return json.dumps({c: {"quotes": [], "score": 9} for c in ("relevance",)})
        return write(body)

    return answer


class Weather:
    """Failures and latencies of a server, drawn as they come."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def fault(self, text: str, tries: int) -> str | None:
        return self.draw.choice(PASSING) if tries < 3 and self.draw.random() < 0.2 else None

    def wait(self, text: str, tries: int) -> float:
        return self.draw.random() / 100


@pytest.fixture(scope="module")
def clean(captioned, llm_server, writer, settings_of, curate, tmp_path_factory):
    """What a run wrote that nothing disturbed, and how many of its items were kept."""
    storage = captioned(tmp_path_factory.mktemp("clean") / "store", clips=12, silent=2)
    with llm_server(careless(writer)) as server:
        chosen, curation = curate(storage, settings_of(server, MIX))
    outcomes = collections.Counter(row["outcome"] for row in load_verdicts(curation))
    assert outcomes["kept"] == sum(len(one.kept) for one in chosen.values()) > 10
    assert outcomes["dropped"] > 5
    return files_of(storage)


@pytest.mark.parametrize("concurrency", [1, 8, 64])
def test_what_is_written_is_the_same_whatever_the_latencies_and_failures(
    captioned, llm_server, writer, settings_of, curate, tmp_path, clean, concurrency
):
    """And a second run asks nothing."""
    storage, weather = captioned(tmp_path / "store", clips=12, silent=2), Weather(concurrency)
    with llm_server(careless(writer), weather.fault, weather.wait) as server:
        settings = settings_of(server, MIX, generator={"concurrency": concurrency, "stop_after": 1000})
        curate(storage, settings)
        assert files_of(storage) == clean
        came = sum(server.came.values())
        curate(storage, settings)
        assert sum(server.came.values()) == came
    assert files_of(storage) == clean


def test_kills_change_nothing_and_cost_at_most_what_is_in_flight(
    captioned, llm_server, writer, settings_of, forks, tmp_path, clean
):
    """Killed at any moment, then run to its end: the same bytes; what a rerun finds is not asked again."""
    storage, draw, log = captioned(tmp_path / "store", clips=12, silent=2), random.Random(0), tmp_path / "log"
    log.touch()
    with llm_server(careless(writer), wait=lambda text, tries: draw.random() / 50) as server, open(log, "wb") as out:
        settings = settings_of(server, MIX, generator={"concurrency": 8}).model_dump(mode="json")
        (tmp_path / "curation.yaml").write_text(json.dumps(settings))
        words = ("curate", "run", "--store", storage.url, "--config", tmp_path / "curation.yaml")

        def start():
            return forks.start(*words, out=out, err=out)

        for _ in range(KILLS):
            before, process = sum(server.came.values()), start()
            target = before + draw.randrange(1, 25)
            while process.poll() is None and sum(server.came.values()) < target:
                time.sleep(0.005)
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
        assert start().wait(240) == 0, log.read_text()
        assert files_of(storage) == clean
        with Ledger(storage_path(storage)) as ledger:
            assert ledger.unsettled <= 2 * 8 * KILLS
            assert sum(server.billed.values()) <= len(ledger) + ledger.unsettled
            assert ledger.committed.tokens >= server.tokens
        came = sum(server.came.values())
        assert start().wait(240) == 0
        assert sum(server.came.values()) == came
    assert files_of(storage) == clean


def storage_path(storage: Storage) -> Path:
    return Path(storage.path("curations/test/replies.jsonl"))


def test_a_changed_threshold_asks_nothing_and_a_changed_template_only_its_own(
    captioned, llm_server, writer, settings_of, curate, task_of, tmp_path
):
    storage, mix = captioned(tmp_path / "store", clips=12), {"description": {"visual": 3}, "reasoning": {"visual": 3}}
    with llm_server(writer) as server:
        curate(storage, settings_of(server, mix))
        came = sum(server.came.values())
        curate(storage, settings_of(server, mix, thresholds={"relevance": 0.1, "judge": 2}, language="en"))
        assert sum(server.came.values()) == came
        (tmp_path / "mine").mkdir()
        ours = (OURS / "reasoning-visual.md").read_text()
        (tmp_path / "mine" / "reasoning-visual.md").write_text(ours.replace("# CONTEXT", "- Be brief.\n\n# CONTEXT"))
        _, curation = curate(storage, settings_of(server, mix, templates=tmp_path / "mine"))
        asked = [task_of(body) for body in server.bodies[came:]]
        before = [task_of(body) for body in server.bodies[:came]]
        assert asked == ["question"] * before.count("question")  # the same replies are judged as before
    rows = load_verdicts(curation)
    templates = {receipt["template"] for row in rows if row["task"] == "reasoning" for receipt in row["receipts"]}
    assert f"reasoning-visual:{curation.templates['reasoning-visual'].digest}" in templates


@pytest.mark.parametrize("good", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("clips", "silent", "uses"), [(3, 3, 1), (12, 6, 1), (12, 0, 2)])
def test_cells_are_exact_or_their_shortfall_is_told(
    captioned, llm_server, writer, settings_of, curate, task_of, tmp_path, capsys, good, clips, silent, uses
):
    """Few clips, some or all without sound, and a model of which none, some or all replies are good."""

    def answer(body):
        is_bad = task_of(body) not in ("fusion", "judge") and random.Random(json.dumps(body)).random() >= good
        return "I cannot help with that." if is_bad else writer(body)

    storage, mix = captioned(tmp_path / "store", clips, silent), {"description": {"audio": 2, "visual": 4}}
    with llm_server(answer) as server:
        chosen, curation = curate(storage, settings_of(server, mix, uses=uses))
    say_chosen(chosen)
    table = capsys.readouterr().out
    rows = load_verdicts(curation)
    for cell, one in chosen.items():
        kept = [row for row in rows if row["outcome"] == "kept" and row["modality"] == cell.modality]
        assert [row["rank"] for row in kept] == one.kept == sorted(one.kept)
        assert len(kept) <= mix["description"][cell.modality]
        assert one.available == uses * (clips - (silent if cell.modality == "audio" else 0))
        assert one.is_full or one.looked_at == one.available
        assert one.is_full or "clips used up" in table
    if good == 1 and clips == 12:
        assert all(one.is_full for one in chosen.values())
    assert sum(row["outcome"] == "kept" for row in rows) == len(load_conversations(storage, "test-descriptions"))


@pytest.mark.parametrize("tokens", [1000, 4000, 12_000])
def test_a_budget_ends_a_run_and_is_never_passed(captioned, llm_server, writer, settings_of, curate, tmp_path, tokens):
    storage, mix = captioned(tmp_path / "store", clips=12), {"description": {"visual": 6}}
    with llm_server(writer) as server:
        for _ in range(2):
            with pytest.raises(UserError, match="the budget is reached"):
                curate(storage, settings_of(server, mix, generator={"budget_tokens": tokens}))
        assert server.tokens <= tokens
        chosen, _ = curate(storage, settings_of(server, mix))
        assert all(one.is_full for one in chosen.values())


def test_what_could_not_be_asked_is_neither_kept_nor_dropped(captioned, llm_server, writer, settings_of, tmp_path):
    """The run says so and writes nothing; the same command asks again; --give-up writes without it."""
    storage, mix = captioned(tmp_path / "store", clips=8), {"description": {"visual": 4}}

    def fault(text, tries):
        return "500" if "The questions and answers" in text and server.is_ill else None

    with llm_server(writer, fault) as server:
        server.is_ill = True
        settings = settings_of(server, mix).model_dump(mode="json")
        settings["judge"] |= {"tries": 1, "stop_after": 100}
        (tmp_path / "curation.yaml").write_text(json.dumps(settings))
        words = ["run", "--store", storage.url, "--config", str(tmp_path / "curation.yaml")]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 1
        assert "items are undecided" in done.output
        assert list_conversations(storage) == []
        assert CliRunner().invoke(app, [*words, "--give-up"]).exit_code == 0
        assert load_conversations(storage, "test-descriptions") == []
        rows = load_table(storage, "curations/test/verdicts.parquet", SCHEMA).to_pylist()
        assert {row["outcome"] for row in rows} == {"undecided"}
        server.is_ill = False
        assert CliRunner().invoke(app, words).exit_code == 0
        assert len(load_conversations(storage, "test-descriptions")) == 4


@pytest.mark.parametrize("useless", ["of the sound of one clip", "of the frames of one clip"])
def test_an_item_may_fail_by_one_of_two_captions_while_the_other_is_asked_for(
    captioned, llm_server, writer, settings_of, curate, tmp_path, useless
):
    """Nothing waits for it any more, whichever reply comes first."""

    def answer(body):
        return '{"no": "caption"}' if useless in body["messages"][0]["content"] else writer(body)

    storage = captioned(tmp_path / "store", clips=6)
    with llm_server(answer) as server:
        chosen, curation = curate(storage, settings_of(server, {"description": {"audio_visual": 4}}, asks=1))
    assert [one.kept for one in chosen.values()] == [[]]
    assert {row["reason"].partition(":")[0] for row in load_verdicts(curation)} == {"no usable reply"}
    assert sum(server.came.values()) == 12


def test_writer_and_judge_work_at_the_same_time(captioned, llm_server, writer, task_of, settings_of, curate, tmp_path):
    """The first instructions are judged before the last are written; and few are on their way at once."""
    storage = captioned(tmp_path / "store", clips=60)
    with llm_server(writer) as server:
        settings = settings_of(server, {"description": {"visual": 60}}, generator={"concurrency": 1}, first_yield=1.0)
        curate(storage, settings.model_copy(update={"judge": settings.generator}), write_it=False)
    asked = [task_of(body) for body in server.bodies]
    judged = [number for number, task in enumerate(asked) if task == "judge"]
    written = [number for number, task in enumerate(asked) if task == "description"]
    assert len(judged) >= 50
    assert all(judged[n] < written[n + 40] for n in range(len(written) - 40))


def test_one_run_at_a_time(captioned, llm_server, settings_of, curate, tmp_path):
    storage = captioned(tmp_path / "store", clips=4)
    with llm_server() as server, Ledger(storage_path(storage)), pytest.raises(UserError, match="another process asks"):
        curate(storage, settings_of(server, {"description": {"visual": 1}}))


def test_clips_of_evaluation_are_refused(captioned, llm_server, writer, settings_of, curate, tmp_path):
    """By their split or by name; as another file of the same name too. Nothing is asked."""
    storage, mix = captioned(tmp_path / "store", clips=6), {"description": {"visual": 2}}

    def talk(number, split):
        return Conversation(str(number), f"clip-{number}", (Turn("What?", "visual", "It."),), {"split": split})

    save_conversations(storage, "vggsound-train", [talk(n, "train") for n in range(3)])
    save_conversations(storage, "vggsound-test", [talk(n, "test") for n in range(3, 6)])
    save_conversations(storage, "mine", [talk(1, "")])
    with llm_server(writer) as server:
        for more in ({}, {"clips_of": ["vggsound-test"]}):
            with pytest.raises(
                UserError, match=r"3 of \d clips are also in the evaluation conversations vggsound-test"
            ):
                curate(storage, settings_of(server, mix, **more))
        with pytest.raises(UserError, match="evaluation conversations mine"):
            curate(storage, settings_of(server, mix, clips_of=["vggsound-train"], evaluation=["mine"]))
        assert not server.came
        curate(storage, settings_of(server, mix, clips_of=["vggsound-train"]))
    assert load_outline(storage, "test-descriptions").keys <= {"clip-0", "clip-1", "clip-2"}


def test_equal_captions_are_asked_once_and_their_repeats_dropped(
    captioned, llm_server, writer, settings_of, curate, task_of, tmp_path
):
    """Clips that look alike share their fusion; what is written about them differs, or is dropped."""
    storage = captioned(tmp_path / "store", clips=6, captions=lambda number: (["a dog on a beach"], ["Waves crash"]))
    with llm_server(writer) as server:
        chosen, _ = curate(storage, settings_of(server, {"description": {"visual": 2}}))
        assert [task_of(body) for body in server.bodies].count("fusion") == 1
    (one,) = chosen.values()
    assert len(one.kept) == 1
    assert len(one.repeats) == 5
