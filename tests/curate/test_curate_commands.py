"""The commands: an estimate, batch files, the report, and a person's review."""

import csv
import json
import random
import re

import pytest
from typer.testing import CliRunner

from curate.__main__ import app
from curate.curation import CurationSettings
from curate.ledger import Ledger
from store import UserError, load_conversations, load_settings, parse_settings

MIX = {"description": {"visual": 3}, "conversation": {"audio_visual": 2}}
PRICE = {"prompt": 1.0, "completion": 2.0}


@pytest.fixture
def config(captioned, settings_of, tmp_path):
    """A store, and a file of settings that ask a server."""

    def make(server, **more):
        storage = captioned(tmp_path / "store", clips=12)
        settings = settings_of(server, MIX, generator={"price": PRICE}, **more).model_dump(mode="json")
        (tmp_path / "curation.yaml").write_text(json.dumps(settings))
        return storage, ("--store", storage.url, "--config", str(tmp_path / "curation.yaml"))

    return make


def command(*words):
    """Run a command in this process."""
    return CliRunner().invoke(app, [*map(str, words)])


def run_well(*words):
    done = command(*words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


def refused(*words):
    """The line of a command that is refused."""
    with pytest.raises(UserError) as caught:
        CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_estimate_asks_a_sample_that_the_run_uses(config, llm_server, writer):
    with llm_server(writer) as server:
        storage, words = config(server)
        said = run_well("estimate", *words, "--sample", "2", "--dry-run")
        assert re.search(r"generator: \d+ requests can be asked now, for \$0\.\d+ at most", said)
        assert not server.came
        said = run_well("estimate", *words, "--sample", "2")
        sampled = sum(server.came.values())
        assert "100%" in said
        assert re.search(r"generator: \d+ requests, [\d,]+ tokens sent, \d+ generated; \$0\.\d\d", said)
        assert re.search(r"together about \d+ requests, 0\.0 hours", said)
        assert storage.names("conversations") == []
        run_well("run", *words)
        assert max(server.billed.values()) == 1
        assert sum(server.came.values()) > sampled
        said = run_well("run", *words, "--dry-run")
        assert "generator: 0 requests" in said
        assert "judge: 0 requests" in said


def provider(server, files, draw, lost=0.0):
    """What a provider makes of batch files: one file of replies in any order, and some errors."""
    requests = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    draw.shuffle(requests)
    for request in requests:
        assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
        if draw.random() < lost:
            yield json.dumps({"custom_id": request["custom_id"], "response": None, "error": {"code": "batch_expired"}})
        else:
            body = server.completion(request["body"], None)
            answer = {"status_code": 200, "request_id": "x", "body": body}
            yield json.dumps({"id": "y", "custom_id": request["custom_id"], "response": answer, "error": None})


def test_batch_files_make_what_a_run_makes(config, captioned, llm_server, writer, settings_of, curate, tmp_path):
    """Round by round, in any order and with errors among them; none is bought twice, and it costs half."""
    draw, done = random.Random(0), set()
    with llm_server(writer) as server:
        storage, words = config(server)
        batches = tmp_path / "store" / "curations" / "test" / "batches"
        assert "to submit" in run_well("export-batch", *words)
        assert "to submit" not in run_well("export-batch", *words)  # none is written twice
        while files := sorted(set(batches.glob("requests-*.jsonl")) - done):
            assert "requests wait for replies" in refused("run", *words)
            done |= set(files)
            (tmp_path / "output.jsonl").write_text("\n".join(provider(server, files, draw, lost=0.2)) + "\n")
            run_well("import-batch", "--store", storage.url, "test", tmp_path / "output.jsonl")
        assert len(done) > 4
        assert max(server.billed.values()) == 1
        run_well("run", *words)
        assert not server.came
        with Ledger(tmp_path / "store" / "curations" / "test" / "replies.jsonl") as ledger:
            price = load_settings(CurationSettings, tmp_path / "curation.yaml").generator.price
            assert 0 < ledger.committed.cost < server.tokens * price.of(0, 1).cost / 2
        other = captioned(tmp_path / "other", clips=12)
        curate(other, settings_of(server, MIX, generator={"price": PRICE}))
    for name in ("conversations/test-descriptions.parquet", "conversations/test-instructions.parquet"):
        assert storage.read(name) == other.read(name)


@pytest.mark.parametrize("line", ["no json", "[]", '{"custom_id": 1}'])
def test_files_that_are_no_replies_are_one_line(config, llm_server, writer, tmp_path, line):
    with llm_server(writer) as server:
        storage, words = config(server)
        run_well("export-batch", *words)
        (tmp_path / "bad.jsonl").write_text(f"{line}\n")
        said = refused("import-batch", "--store", storage.url, "test", tmp_path / "bad.jsonl")
    assert "not a line of a batch file" in said


def test_a_review_overrides_verdicts_and_is_asked_nothing_for(config, llm_server, writer, tmp_path):
    """What a person drops is replaced by the next that passes; what a person keeps stays, whatever the rules say."""
    with llm_server(writer) as server:
        storage, words = config(server)
        run_well("run", *words)
        named = ("--store", storage.url, "test")
        said = run_well("report", *named, "--out", tmp_path / "page.html")
        assert "page.html" in said
        page = (tmp_path / "page.html").read_text()
        assert "Curation test" in page
        assert "description" in page
        run_well("review", *named, "--out", tmp_path / "review.csv")
        with open(tmp_path / "review.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        kept = [row for row in rows if row["outcome"] == "kept" and row["id"].startswith("description")]
        kept[0]["decision"] = "drop"
        with open(tmp_path / "review.csv", "w", newline="") as file:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(rows)
        run_well("review", *named, "--in", tmp_path / "review.csv")
        came = sum(server.came.values())
        run_well("run", *words)
        assert sum(server.came.values()) == came  # the next in rank was asked for before
        ids = [talk.id for talk in load_conversations(storage, "test-descriptions")]
        assert kept[0]["id"] not in ids
        assert len(ids) == 3
        (tmp_path / "review.csv").write_text("id,written,decision\nx,y,perhaps\n")
        said = refused("review", *named, "--in", tmp_path / "review.csv")
        assert "row 2: field 'decision': 'perhaps'; accepted: keep, drop, or nothing" in said
        said = run_well("status", *named)
        assert "generator: 0 requests can be asked now" in said
        said = refused("status", "--store", storage.url, "other")
        assert "there is no curation 'other'; it has: test" in said


def test_what_is_refused_leaves_nothing_behind(config, llm_server, writer, tmp_path):
    with llm_server(writer) as server:
        storage, words = config(server)
        assert "nothing" in refused("run", *words, "captions.frames=nothing")
        assert "templates" in refused("run", *words, f"templates={tmp_path}/none")
        assert not server.came
    assert storage.names("curations") == []


def test_shipped_settings_are_read():
    paper = load_settings(CurationSettings, "curate/configs/paper.yaml")
    assert sum(paper.mix.of(cell) for cell in paper.mix.cells) == 260_000
    assert load_settings(CurationSettings, "curate/configs/demo.yaml").mix.cells == paper.mix.cells


def test_a_budget_in_dollars_needs_the_price_of_both():
    """A judge without a price would count as free."""
    own = ["generator.price={prompt: 1, completion: 2}", "generator.budget_dollars=5"]
    with pytest.raises(
        UserError, match=r"field 'judge': budget_dollars of generator counts .* give judge\.price \(0 for"
    ):
        load_settings(CurationSettings, "paper", own)
    both = load_settings(CurationSettings, "paper", [*own, "judge.price={prompt: 0, completion: 0}"])
    assert both.generator.budget_dollars == 5
    assert load_settings(CurationSettings, "demo", own).judge is None
    with pytest.raises(UserError, match=r"field 'generator\.model': is required$"):  # the fault that it is, alone
        parse_settings(CurationSettings, both.model_dump(exclude={"generator": {"model"}}), "settings")
