import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from store import ColumnReader, Storage, UserError, load_settings, open_column, parse_settings
from trainer.checkpoint.folder import load_checkpoint, load_projectors
from trainer.checkpoint.info import read_info
from trainer.curves import plot_losses
from trainer.data import TrainingData
from trainer.llm import load_llm
from trainer.optim import lr_factor
from trainer.settings import TrainConfig
from trainer.stage import train

REPO = Path(__file__).parents[2]
CONFIGS = sorted(p for p in (REPO / "trainer" / "configs").glob("*.yaml") if not p.stem.startswith("ablate"))


@pytest.fixture(scope="module")
def base(tiny_run):
    return tiny_run | {"stage": 1, "steps": 10}


def run(settings, output):
    train(parse_settings(TrainConfig, {**settings, "output": str(output)}, "test"))
    return losses(output)


def losses(output):
    return [json.loads(line)["loss"] for line in (Path(output) / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def stage1(base, tmp_path_factory):
    output = tmp_path_factory.mktemp("stage1")
    return output, run(base, output)


@pytest.fixture(scope="module")
def stage2(base, stage1, tmp_path_factory):
    output = tmp_path_factory.mktemp("stage2")
    return output, run({**base, "stage": 2, "model": str(stage1[0] / "checkpoint")}, output)


def test_stage_1_trains_the_projectors_alone(base, stage1):
    """The paper's first stage leaves the LLM as it is."""
    before = AutoModelForCausalLM.from_pretrained(base["model"], dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(stage1[0] / "checkpoint", dtype=torch.float32).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert stage1[1][-1] < stage1[1][0]


@pytest.mark.parametrize("held_out", [False, True])
def test_losses_are_drawn(stage1, held_out, tmp_path):
    assert (stage1[0] / "loss.png").exists()
    lines = [{"step": n, "loss": 1 / (n + 1)} for n in range(90)]
    for line in lines[::30] if held_out else []:
        line["eval_loss"] = 0.5
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_losses(tmp_path)
    with Image.open(tmp_path / "loss.png") as plot:
        colours = {colour for _, colour in plot.convert("RGB").getcolors(1 << 20)}
    assert (31, 119, 180) in colours
    assert ((255, 127, 14) in colours) == held_out


def test_stage_2_goes_on_where_stage_1_ended_and_trains_the_llm_too(base, stage1, stage2):
    first, second = (
        {**load_file(o / "checkpoint" / "avllm" / "projectors.safetensors")} for o in (stage1[0], stage2[0])
    )
    assert any(not torch.equal(first[name], second[name]) for name in first)
    before = AutoModelForCausalLM.from_pretrained(base["model"], dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(stage2[0] / "checkpoint", dtype=torch.float32).state_dict()
    assert all(not torch.equal(before[n], after[n]) for n in before if n.endswith("q_proj.weight"))
    assert stage2[1][0] < stage1[1][0]
    assert stage2[1][-1] < stage2[1][0]


def test_a_checkpoint_is_an_ordinary_folder_that_says_what_it_was_trained_on(stage2):
    folder = stage2[0] / "checkpoint"
    AutoTokenizer.from_pretrained(folder)
    info = read_info(folder)
    assert {m: spec.name for m, spec in info.columns.items()} == {"visual": "clip-tiny", "audio": "clap-tiny"}
    model, _, _ = load_checkpoint(folder, torch.float32)
    assert model.widths == {"temporal": 6, "spatial": 6, "audio": 7}
    assert not list(folder.rglob("*.bin")) + list(folder.rglob("*.pt"))


def test_the_same_run_gives_the_same_losses(base, stage1, tmp_path):
    assert run(base, tmp_path / "again") == stage1[1]


def test_a_finished_run_is_not_overwritten_unasked(base, stage1):
    """A typo in a learning rate must not cost last week's checkpoint."""
    with pytest.raises(UserError, match=r"field 'output'.*holds a checkpoint"):
        run(base, stage1[0])


def test_the_budget_of_a_pass_changes_nothing_but_rounding(base, stage1, tmp_path):
    """Losses are means over the response tokens of the global batch, however it is cut into passes."""
    cut = {**base, "batch_tokens": 128, "max_tokens": 128}
    assert run(cut, tmp_path / "cut") == pytest.approx(stage1[1], rel=1e-4)


def test_bfloat16_trains_like_float32_up_to_its_precision(base, stage1, tmp_path):
    """The default precision, on features stored in float16."""
    assert run({**base, "precision": "bfloat16"}, tmp_path / "half") == pytest.approx(stage1[1], rel=0.02)


def test_gradient_checkpointing_changes_nothing_but_memory(base, stage1, stage2, tmp_path):
    again = {**base, "stage": 2, "model": str(stage1[0] / "checkpoint"), "gradient_checkpointing": True}
    assert run(again, tmp_path / "frugal") == pytest.approx(stage2[1], rel=1e-4)


def test_a_stage_refuses_columns_that_its_checkpoint_was_not_trained_on(base, stage1, feature_store, tmp_path):
    """Features of another encoder in a trained projector give confident nonsense."""
    config = stage1[0] / "checkpoint" / "avllm" / "config.json"
    info = json.loads(config.read_text())
    info["columns"]["visual"]["numerics"] = {"version": 2}
    original = config.read_text()
    config.write_text(json.dumps(info))
    try:
        with pytest.raises(UserError, match=r"field 'visual'.*was trained on clip-tiny"):
            run({**base, "model": str(stage1[0] / "checkpoint")}, tmp_path / "x")
    finally:
        config.write_text(original)


def column_moments(store, name, array):
    """Mean and deviation of all rows of a column."""
    reader = ColumnReader(open_column(Storage(store), name))
    keys = reader.keys()
    rows = np.concatenate([reader.read(key)[array] for key in keys]).astype(np.float64)
    return torch.from_numpy(rows.mean(0)).float(), torch.from_numpy(rows.std(0)).float()


def test_statistics_are_of_the_column_whatever_is_drawn(base, feature_store, tmp_path):
    """Seen only in stage 1, sounds are still standardized by what sounds are: a mean of 3, not 0, for good."""
    run(base | {"mixture": {"visual": 1}, "steps": 2}, tmp_path / "seen")
    run(base | {"steps": 2}, tmp_path / "all")
    seen, both = (load_projectors(tmp_path / name / "checkpoint") for name in ("seen", "all"))
    for name in ("audio.mean", "audio.deviation", "temporal.mean", "spatial.deviation"):
        assert torch.equal(seen[name], both[name])
    for feature, column, array in (("audio", "clap-tiny", "audio.k2"), ("spatial", "clip-tiny", "spatial.t4")):
        mean, deviation = column_moments(feature_store, column, array)
        torch.testing.assert_close(seen[f"{feature}.mean"], mean)
        torch.testing.assert_close(seen[f"{feature}.deviation"], deviation)
    assert seen["audio.mean"].mean() == pytest.approx(3, abs=0.2)


def test_a_column_that_first_comes_in_stage_2_has_its_projector_started(base, feature_store, tmp_path, capsys):
    """With its own statistics, as in a stage 1; the projectors that were trained go on."""
    run(base | {"audio": None, "steps": 2}, tmp_path / "first")
    capsys.readouterr()
    second = {**base, "stage": 2, "steps": 1, "model": str(tmp_path / "first" / "checkpoint"), "lr": 1e-20}
    run(second, tmp_path / "second")
    assert "was trained without audio: this run starts to read clap-tiny" in capsys.readouterr().out
    first, found = (load_projectors(tmp_path / name / "checkpoint") for name in ("first", "second"))
    assert first.keys() == {name for name in found if not name.startswith("audio")}
    assert all(torch.equal(tensor, found[name]) for name, tensor in first.items())
    mean, deviation = column_moments(feature_store, "clap-tiny", "audio.k2")
    torch.testing.assert_close(found["audio.mean"], mean)
    torch.testing.assert_close(found["audio.deviation"], deviation)
    assert found["audio.weight"].std() > 0
    assert read_info(tmp_path / "second" / "checkpoint").columns.keys() == {"visual", "audio"}


def test_a_global_batch_that_ranks_do_not_divide_is_refused(base, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"field 'global_batch': 8 is not divisible by 3 ranks; 6 or 9 would be$"):
        run({**base, "zero": {"stage": 2}}, tmp_path / "x")
    with pytest.raises(UserError, match=r"field 'zero': 3 processes"):
        run(base, tmp_path / "x")


def launch(config, *launchers):
    """Train under launchers that run side by side, as on so many nodes."""
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    scripts = Path(sys.executable).parent
    started = []
    for number, (script, *words) in enumerate(launchers):
        with open(config.with_suffix(f".{number}.log"), "w") as log:
            call = [scripts / script, *words, "trainer", "train", str(config)]
            started.append(subprocess.Popen(call, env=env, stdout=log, stderr=log, cwd=config.parent))
    ended = [launcher.wait(timeout=600) for launcher in started]
    assert not any(ended), "".join(log.read_text() for log in config.parent.glob("*.log"))


def torchrun_nodes(port):
    """Two nodes with a process each."""
    words = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "-m"]
    return [["torchrun", *words]] * 2


def deepspeed(port):
    """A machine with two processes."""
    return [["deepspeed", "--num_accelerators=2", f"--master_port={port}", "--module"]]


@pytest.fixture
def port(free_port):
    return free_port()


@pytest.mark.parametrize(("zero", "launchers"), [(2, deepspeed), (3, torchrun_nodes)])
def test_two_zero_processes_train_as_one_process_without(base, stage1, stage2, zero, launchers, port, tmp_path):
    """ZeRO shares out the work; neither it nor who starts the processes must change the run."""
    settings = {**base, "stage": 2, "model": str(stage1[0] / "checkpoint"), "output": str(tmp_path / "zero")}
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**settings, "zero": {"stage": zero}}))
    launch(config, *launchers(port))
    assert losses(tmp_path / "zero") == pytest.approx(stage2[1], rel=1e-3)
    plain, sharded = (load_checkpoint(f / "checkpoint", torch.float32)[0] for f in (stage2[0], tmp_path / "zero"))
    for (name, a), (_, b) in zip(plain.named_parameters(), sharded.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3, msg=name)


def test_a_rank_that_never_hears_does_not_hang_the_others(base, finish_ranks, tmp_path):
    """ZeRO-3, two processes, 50 steps: one gets sights only, the other sounds only; the run is that of one process."""
    mixture = {"visual": 1, "audio": 1}
    settings = {**base, "stage": 2, "mixture": mixture, "global_batch": 2, "steps": 50, "zero": {"stage": 3}}
    data = TrainingData(
        parse_settings(TrainConfig, {**settings, "output": "x"}, "test"), load_llm(base["model"], torch.float32)[1]
    )
    shares = [{pool for step in range(50) for pool, _ in data.draw(step, rank, 2)} for rank in range(2)]
    assert shares == [{"0.visual"}, {"0.audio"}]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**settings, "output": str(tmp_path / "zero")}))
    finish_ranks(config, 2)
    alone = run(settings, tmp_path / "alone")
    assert losses(tmp_path / "zero") == pytest.approx(alone, rel=1e-3)
    assert losses(tmp_path / "zero")[-1] < losses(tmp_path / "zero")[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path):
    load_settings(TrainConfig, path)


@pytest.mark.parametrize(
    ("name", "lr", "batch", "epochs"), [("paper-stage1", 2e-3, 256, 3), ("paper-stage2", 2e-5, 128, 1)]
)
def test_the_papers_settings(name, lr, batch, epochs):
    config = load_settings(TrainConfig, REPO / "trainer" / "configs" / f"{name}.yaml")
    assert (config.lr, config.global_batch, config.epochs) == (lr, batch, epochs)
    assert config.betas == (0.9, 0.98)
    assert config.warmup_ratio == 0.03
    assert (config.frames, config.segments) == (32, 4)


def test_the_schedule_warms_up_then_falls_as_a_cosine():
    factors = [lr_factor(step, 100, 0.03) for step in range(100)]
    assert factors[:4] == [1 / 3, 2 / 3, 1.0, 1.0]
    assert factors[3:] == sorted(factors[3:], reverse=True)
    assert factors[3 + 97 // 2] == pytest.approx(0.5, abs=0.02)
    assert factors[-1] < 1e-3
    assert not math.isnan(factors[-1])
