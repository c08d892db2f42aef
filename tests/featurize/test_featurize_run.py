"""The whole of `python -m featurize` on a real local Ray: bad files, kills, resumption, a submitted job."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
import yaml

from store import ColumnReader, Corpus, Storage, column_stats, list_columns
from store.hub import hub_answers

REPO = Path(__file__).parents[2]
CONFIG = {
    "columns": [
        {"encoder": "clip:ViT-S-32/random", "layer": 1, "frames": [2], "batch": 5},
        {"encoder": "clap:HTSAT-tiny/random", "segments": [1], "batch": 2, "stored": "float32"},
    ],
    "workers": 1,
}


def shas(store):
    """The sha256 of every column file."""
    files = sorted(p for p in (Path(store) / "columns").rglob("*") if p.is_file())
    return {str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def work(tmp_path_factory, media, bad_media):
    """A configuration, and a list of good, bad and missing files."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    paths = [*sorted(media.iterdir()), *sorted(bad_media.iterdir()), folder / "gone.mp4"]
    (folder / "list.jsonl").write_text("".join(json.dumps({"path": str(p)}) + "\n" for p in paths))
    return folder


def planned(python, work, store):
    done = python("featurize", "plan", work / "list.jsonl", "--store", store, "--shard-size", 2)
    assert done.returncode == 0, done.stderr
    return ["featurize", "run", "--store", store, "--config", work / "config.yaml"]


@pytest.fixture(scope="module")
def whole(python, work):
    """An uninterrupted run."""
    run = planned(python, work, work / "whole")
    done = python(*run)
    assert done.returncode == 0, done.stdout + done.stderr
    return work / "whole", done.stdout


def test_bad_files_are_records_with_reasons_and_the_run_ends_well(python, whole, bad_media):
    """Nothing is silently replaced by zeros or by another sample, and one bad file stops nobody."""
    storage = Storage(whole[0])
    corpus = Corpus.load(storage)
    by_modality = {column.spec.modality: column for column in list_columns(storage)}
    reader = ColumnReader(by_modality["visual"])
    name = {item.key: Path(item.uri).name for item in corpus.items}
    codes = {name[key]: failure.code for key, failure in reader.failed.items() if failure.code != "absent"}
    assert codes == {
        "truncated.mp4": "truncated",
        "empty.mp4": "empty",
        "text.mp4": "unreadable",
        "broken.png": "truncated",
        "gone.mp4": "missing",
    }
    assert all(failure.reason for failure in reader.failed.values())
    heard = ColumnReader(by_modality["audio"]).failed
    silent = next(key for key, file in name.items() if file == "silent.mp4")
    assert (heard[silent].code, heard[silent].reason) == ("absent", "no audio stream")
    for column in by_modality.values():
        stats = column_stats(column, corpus)
        assert stats.usable + len(stats.failures) == len(corpus) == 14
    assert "gone-mp4" in whole[1]
    stats = python("store", "stats", whole[0])
    assert "no such file" in stats.stdout
    assert python("store", "verify", whole[0]).returncode == 0


def test_plain_webdataset_reads_what_we_read(whole):
    """The promise of the format: any tool that knows WebDataset needs none of our code."""
    for column in list_columns(Storage(whole[0])):
        reader = ColumnReader(column)
        urls = sorted(str(p) for p in (whole[0] / "columns" / column.name).glob("*.tar"))
        samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode())
        assert [sample["__key__"] for sample in samples] == reader.keys()
        for sample in samples:
            for name, array in reader.read(sample["__key__"]).items():
                np.testing.assert_array_equal(sample[f"{name}.npy"], array)


def test_a_second_run_encodes_nothing(python, whole, work):
    before = {p: p.stat().st_mtime_ns for p in (whole[0] / "columns").rglob("*.*")}
    done = python("featurize", "run", "--store", whole[0], "--config", work / "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "0 shards to encode, 7 finished already" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in (whole[0] / "columns").rglob("*.*")} == before


def test_a_killed_run_goes_on_to_the_same_bytes(python, whole, work):
    """kill -9 of the driver in the middle of a corpus, then the same command again, with more cores for the worker."""
    run = planned(python, work, work / "killed")
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    driver = subprocess.Popen([sys.executable, "-m", *map(str, run)], env=env, stdout=subprocess.DEVNULL, cwd=REPO)
    deadline = time.monotonic() + 120
    while len(list((work / "killed").rglob("0*.json"))) < 3:
        assert time.monotonic() < deadline
        assert driver.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert len(list((work / "killed").rglob("0*.json"))) < 14
    done = python(*run, "cpus=2")
    assert done.returncode == 0, done.stderr
    assert shas(work / "killed") == shas(whole[0])


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_submitted_job_fills_the_same_store(only_cluster, python, whole, work, tmp_path, free_port):
    """The same command under `ray job submit` on a running cluster gives the same digests and bytes."""
    run = planned(python, work, work / "submitted")
    bin_folder = str(Path(sys.executable).parent)
    env = {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "RAY_AUTH_MODE": "token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": "/tmp/avllm-ray-test",
    }

    def ray(*words, timeout=300):
        return subprocess.run(
            [f"{bin_folder}/ray", *map(str, words)],
            env=env,
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start():
        """A head node. Its ports are given: Ray's node gives up if its agents take 15 s to say theirs."""
        words = ["--node-ip-address", "127.0.0.1", "--num-cpus", 2]
        words += ["--dashboard-port", dashboard, "--dashboard-agent-listen-port", agent]
        for option in ("", "dashboard-agent-grpc-", "runtime-env-agent-", "metrics-export-"):
            words += [f"--{option}port", free_port()]
        return subprocess.Popen(
            [f"{bin_folder}/ray", "start", "--head", "--block", *map(str, words)],
            env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def submit(*words):
        address = f"http://127.0.0.1:{dashboard}"
        return ray("job", "submit", "--address", address, "--working-dir", REPO, "--", "python", "-m", *words)

    assert ray("get-auth-token", "--generate").returncode == 0
    dashboard, agent = free_port(), free_port()
    head = start()
    try:
        for port in (dashboard, agent):
            while not listens(port):
                assert head.poll() is None, "the cluster ended"
                time.sleep(0.2)
        for _ in range(60):  # until the dashboard knows its agent
            done = submit(*run)
            if not any(word in done.stderr for word in ("No available agent", "ConnectionError", "Failed to connect")):
                break
            assert head.poll() is None, "the cluster ended"
            time.sleep(2)
        assert done.returncode == 0, done.stdout + done.stderr
        relative = submit("featurize", "run", "--store", "relative", "--config", work / "config.yaml")
        assert relative.returncode != 0
        assert "give an absolute path" in relative.stdout + relative.stderr
    finally:
        head.terminate()  # with --block it takes the whole cluster down with it
        head.wait(60)
    assert shas(work / "submitted") == shas(whole[0])


def test_mended_files_are_encoded_again_when_asked(python, work, media, tmp_path):
    """A file that was missing on the first day is not lost for ever; and asking costs nothing and writes nothing."""
    folder = tmp_path / "late"
    folder.mkdir()
    shutil.copy(media / "blue.png", folder / "here.png")
    (tmp_path / "list.csv").write_text("path\nlate/here.png\nlate/late.png\n")
    plan = ["featurize", "plan", tmp_path / "list.csv", "--store", tmp_path / "store", "--shard-size", 2]
    run = ["featurize", "run", "--store", tmp_path / "store", "--config", work / "config.yaml"]
    said = python(*plan).stdout
    assert "late/late.png" in said
    assert "1 of them not found when last planned; their conversations stay" in said
    dry = python(*run, "--dry-run")
    assert [line.split(": ")[-1] for line in dry.stdout.splitlines()[:2]] == ["1 of 1 shards to encode, 2 items"] * 2
    assert dry.stdout.startswith("clip-vit-s-32 (new): ")
    assert not (tmp_path / "store" / "columns").exists()
    python(*run)
    shutil.copy(media / "blue.png", folder / "late.png")
    assert "not found when last planned" not in python(*plan).stdout
    assert "0 of 1 shards to encode" in python(*run, "--dry-run").stdout
    done = python(*run, "--retry")
    assert done.returncode == 0, done.stderr
    column = next(c for c in list_columns(Storage(tmp_path / "store")) if c.spec.modality == "visual")
    assert ColumnReader(column).keys() == ["late-here-png", "late-late-png"]
    assert python("store", "verify", tmp_path / "store").returncode == 0


def test_a_column_of_failures_alone_ends_with_1_and_says_what_to_do(python, work, media, tmp_path):
    """All files have moved since they were planned: each is named once, and the run has not gone well."""
    folder = tmp_path / "films"
    folder.mkdir()
    shutil.copy(media / "red-loud.mp4", folder / "a.mp4")
    store = tmp_path / "store"
    python("featurize", "plan", folder, "--store", store)
    folder.rename(tmp_path / "elsewhere")
    run = ["featurize", "run", "--store", store, "--config", work / "config.yaml"]
    for said in ("1 items failed: mend the files", "1 failed items stay failed; --retry encodes them again"):
        done = python(*run)
        assert done.returncode == 1, done.stderr
        assert said in done.stdout
        assert done.stdout.count("no such file") == 1
        assert done.stdout.count(": holds no usable item") == 2
    (tmp_path / "elsewhere").rename(folder)
    done = python(*run, "--retry")
    assert done.returncode == 0, done.stderr
    assert "failed items" not in done.stdout


def test_more_than_this_machine_has_is_refused_with_what_it_has(python, work, whole):
    run = ["featurize", "run", "--store", whole[0], "--config", work / "config.yaml", "columns.0.layer=2"]
    done = python(*run, "workers=null", "cpus=999", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"say cpus={len(os.sched_getaffinity(0))}")
    done = python(*run, "workers=null", "gpus=1", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.stderr.strip().endswith("and 0 GPUs: say gpus=0")


def test_without_a_hub_published_weights_are_one_line(python, work, whole, tmp_path):
    """The hub's packages would try again and again for a minute, in every worker, with a line each time."""
    run = ["featurize", "run", "--store", whole[0], "--config", work / "config.yaml"]
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "", "HF_HOME": str(tmp_path)}
    done = python(*run, "columns.0.encoder=clip:ViT-B-32/openai", env=env, timeout=60)
    assert done.returncode == 2
    assert done.stderr == (
        "error: field 'columns.0.encoder': clip:ViT-B-32/openai: no hub answers, and the weights are not in its cache; "
        "without a hub: clip:ViT-B-32/random or the path of a checkpoint\n"
    )


def test_a_hub_answers_where_something_listens(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub_answers()
    assert not hub_answers()
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # which alone may know the way
    assert hub_answers()


def test_a_wrong_media_root_does_not_spoil_the_store(python, work, media, tmp_path):
    """A plan cannot be undone, so a source of which nothing can be seen is refused."""
    (tmp_path / "list.csv").write_text("path\nred-loud.mp4\nsilent.mp4\n")
    plan = ["featurize", "plan", tmp_path / "list.csv", "--store", tmp_path / "store"]
    for root, said in (
        (f"{media}-typo", "no such folder"),
        (tmp_path, "none of its media files was found, for example"),
    ):
        done = python(*plan, "--media-root", root)
        assert done.returncode == 2
        assert said in done.stderr
        assert not (tmp_path / "store").exists()
    assert python(*plan, "--media-root", media).returncode == 0


def test_too_many_failures_stop_the_run(python, work, bad_media):
    store = work / "bound"
    python("featurize", "plan", bad_media, "--store", store, "--shard-size", 2)
    done = python("featurize", "run", "--store", store, "--config", work / "config.yaml", "max_failed=0.2")
    assert done.returncode == 2
    assert "more than max_failed=0.2" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")


def test_a_bad_configuration_stops_before_anything_starts(python, work):
    done = python("featurize", "run", "--store", work / "x", "--config", work / "config.yaml", "columns.0.layr=3")
    assert done.returncode == 2
    assert "unknown field 'columns.0.layr'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
