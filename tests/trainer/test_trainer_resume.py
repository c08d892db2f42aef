"""Runs that are stopped at any moment go on as if nothing had happened."""

import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from store import UserError, parse_settings
from trainer.checkpoint.export import export
from trainer.checkpoint.folder import load_checkpoint
from trainer.checkpoint.states import States
from trainer.checkpoint.tensors import SavedTensors
from trainer.launch import alone_in
from trainer.settings import TrainConfig
from trainer.stage import train

KILLS = 20 if os.environ.get("AVLLM_LONG") else 2
STEPS = 10 * KILLS + 4


@pytest.fixture(scope="module")
def base(tiny_run):
    return tiny_run | {"stage": 2, "steps": STEPS, "batch_tokens": 256, "max_tokens": 256, "save_every": 3}


@pytest.fixture
def kill_at(start_ranks):
    """Start the run and `kill -9` all its processes once it has logged a step; False if it ended before."""

    def kill_at(config: Path, processes: int, output: Path, step: int) -> bool:
        running = start_ranks(config, processes)
        deadline = time.monotonic() + 900
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:
            try:
                reached = max((line["step"] for line in logged(output)), default=-1)
            except ValueError:  # a line that is being written
                continue
            if reached >= step:
                for process in running:
                    process.kill()
                for process in running:
                    process.wait()
                return True
            time.sleep(0.01)
        assert not any(process.returncode for process in running), config.with_suffix(".log").read_text()[-5000:]
        return False

    return kill_at


def logged(output: Path) -> list[dict]:
    lines = (output / "log.jsonl").read_text().splitlines() if (output / "log.jsonl").exists() else []
    return [json.loads(line) for line in lines]


def write(folder: Path, name: str, settings: dict) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**settings, "output": str(folder / name)}))
    return path


def weights(output: Path) -> dict[str, torch.Tensor]:
    folder = output / "checkpoint"
    return load_file(folder / "model.safetensors") | load_file(folder / "avllm" / "projectors.safetensors")


@pytest.mark.parametrize(("processes", "zero"), [(1, None), (2, 2), (2, 3)])
def test_kill_9_at_any_step_leaves_no_trace_in_the_weights(base, finish_ranks, kill_at, processes, zero, tmp_path):
    """The loss curve and the final weights are those of a run that nobody killed, bit for bit."""
    settings = base | ({"zero": {"stage": zero}} if zero else {})
    undisturbed, killed = (write(tmp_path, name, settings) for name in ("undisturbed", "killed"))
    finish_ranks(undisturbed, processes)
    chance = random.Random(zero or 0)
    kills = 0
    for step in sorted(chance.sample(range(STEPS - 3), KILLS)):
        kills += kill_at(killed, processes, tmp_path / "killed", step)
    finish_ranks(killed, processes)
    assert kills >= KILLS - 1  # a run may go on to its end between a line of the log and the signal
    whole, resumed = (weights(tmp_path / name) for name in ("undisturbed", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    curves = [[(line["step"], line["loss"], line["grad_norm"]) for line in logged(tmp_path / n)] for n in
              ("undisturbed", "killed")]  # fmt: skip
    assert curves[0] == curves[1]
    assert [step for step, *_ in curves[0]] == list(range(STEPS))
    print(f"{kills} kills, {processes} processes, ZeRO {zero}: {len(whole)} tensors equal, {STEPS} losses equal")


def run(settings, output):
    train(parse_settings(TrainConfig, {**settings, "output": str(output)}, "test"))


def test_a_run_goes_on_with_another_number_of_ranks(base, finish_ranks, kill_at, tmp_path):
    """Saved by one process, gone on with by two (ZeRO-3), then by one again: the same run up to rounding."""
    settings = base | {"steps": 60}
    run(settings, tmp_path / "whole")
    path = write(tmp_path, "moved", settings)
    assert kill_at(path, 1, tmp_path / "moved", 10)
    path = write(tmp_path, "moved", settings | {"zero": {"stage": 3}})
    assert kill_at(path, 2, tmp_path / "moved", 20)
    assert States(tmp_path / "moved").state(States(tmp_path / "moved").steps()[-1]).ranks == 2
    path = write(tmp_path, "moved", settings)
    finish_ranks(path, 1)
    curves = [[line["loss"] for line in logged(tmp_path / name)] for name in ("whole", "moved")]
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)


@pytest.fixture(scope="module")
def stopped(base, tmp_path_factory):
    """A run that has saved states and no checkpoint, as after a kill."""
    folder = tmp_path_factory.mktemp("stopped")
    run(base | {"steps": 6, "save_every": 2}, folder / "run")
    for path in sorted((folder / "run" / "checkpoint").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "run" / "checkpoint").rmdir()
    return folder / "run"


def test_a_stopped_run_refuses_other_settings_and_other_data(base, stopped):
    """A curve that changes its learning rate halfway is nobody's experiment."""
    changed = base | {"steps": 6, "save_every": 2, "lr": 1.0}
    with pytest.raises(UserError, match=r"field 'lr': 1\.0, but the run in .* stopped at step 4 with 0\.005"):
        run(changed, stopped)
    state = stopped / "steps" / "00000004" / "state.json"
    original = state.read_text()
    state.write_text(original.replace(json.loads(original)["identity"], "0" * 32))
    with pytest.raises(UserError, match=r"field 'sources': conversations or columns are not those"):
        run(base | {"steps": 6, "save_every": 2}, stopped)
    state.write_text(original)


def test_two_runs_do_not_share_a_folder(base, tmp_path):
    with alone_in(tmp_path / "run"), pytest.raises(UserError, match=r"another run writes into .*run; let it end"):
        run(base, tmp_path / "run")
    (tmp_path / "file").touch()
    for output, words in (
        (tmp_path / "file", "file is a file; expected a folder"),
        (tmp_path / "file" / "x", "is a file"),
    ):
        with pytest.raises(UserError, match=f"field 'output': .*{words}"):
            run(base, output)


def other_weights(folder, to):
    """The same LLM with other weights of the same names and shapes."""
    shutil.copytree(folder, to)
    changed = load_file(to / "model.safetensors")
    changed["model.layers.1.mlp.up_proj.weight"][3, 5] += 1
    save_file(changed, to / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
def test_a_run_and_its_adapters_belong_to_the_weights_that_they_began_with(base, tmp_path, capsys, lora):
    """Adapters on other weights, or a run that goes on with another LLM, give a model that nobody trained."""
    shutil.copytree(base["model"], tmp_path / "llm")
    settings = base | {"steps": 4, "save_every": 2, "model": str(tmp_path / "llm"), "lora": lora}
    run(settings, tmp_path / "run")
    whole = weights(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    other_weights(base["model"], tmp_path / "other")
    (tmp_path / "llm").rename(tmp_path / "kept")
    (tmp_path / "other").rename(tmp_path / "llm")
    said = r"field 'model': .*llm: its weights are not those that the run in .* began with"
    with pytest.raises(UserError, match=said):
        run(settings, tmp_path / "run")
    with pytest.raises(UserError, match=said):
        export(tmp_path / "run", tmp_path / "exported", "2")
    shutil.rmtree(tmp_path / "llm")
    (tmp_path / "llm").mkdir()
    for file in (tmp_path / "kept").glob("*.json"):
        shutil.copy(file, tmp_path / "llm")
    torch.save(load_file(tmp_path / "kept" / "model.safetensors"), tmp_path / "llm" / "pytorch_model.bin")
    state = States(tmp_path / "run").path(2) / "state.json"
    old = json.loads(state.read_text())
    assert old.pop("base").startswith("float32:")
    state.write_text(json.dumps(old))
    export(tmp_path / "run", tmp_path / "exported", "2")
    assert "whether" in capsys.readouterr().out
    run(settings, tmp_path / "run")  # the same weights in another file; the state of an earlier version
    resumed = weights(tmp_path / "run")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_whose_llm_was_replaced_is_refused(base, tmp_path):
    """Its projectors were trained with another one: a stage that begins there, and answers, would be nonsense."""
    run(base | {"stage": 1, "steps": 2, "save_every": None, "precision": "bfloat16"}, tmp_path / "first")
    folder = tmp_path / "first" / "checkpoint"
    for dtype in (torch.bfloat16, torch.float32):
        load_checkpoint(folder, dtype)
    other_weights(folder, tmp_path / "changed")
    for dtype in (torch.bfloat16, torch.float32):
        with pytest.raises(UserError, match="the LLM's weights are not those that this checkpoint was written with"):
            load_checkpoint(tmp_path / "changed", dtype)
    with pytest.raises(UserError, match="the LLM's weights are not those"):
        run(base | {"steps": 2, "model": str(tmp_path / "changed")}, tmp_path / "second")


def test_half_written_states_are_not_taken_for_states(base, stopped):
    (stopped / "steps" / ".tmp-00000005").mkdir()
    (stopped / "steps" / "00000005").mkdir()
    assert States(stopped).steps() == [2, 4]
    States(stopped).clear()
    assert not list((stopped / "steps").glob(".tmp-*"))
    (stopped / "steps" / "00000005").rmdir()


def test_newest_and_best_states_are_kept(base, feature_store, tmp_path):
    """`keep` newest, and the one that did best on held-out conversations; each can be exported."""
    held_out = {"sources": [{"store": str(feature_store), "conversations": "mixed"}], "every": 2, "limit": 24}
    run(base | {"steps": 12, "save_every": 1, "keep": 3, "lr": 0.5, "evaluation": held_out}, tmp_path / "run")
    losses = {line["step"] + 1: line["eval_loss"] for line in logged(tmp_path / "run") if "eval_loss" in line}
    states = States(tmp_path / "run")
    best = min(losses, key=losses.get)
    assert states.best() == best
    newest = [10, 11, 12] if best == 12 else [9, 10, 11]  # the end is a checkpoint, and a state only if it is best
    assert states.steps() == sorted({best, *newest})
    export(tmp_path / "run", tmp_path / "best", "best")
    exported, _, info = load_checkpoint(tmp_path / "best", torch.float32)
    assert info.steps == best
    saved = SavedTensors(states.path(best))
    for name, parameter in exported.named_parameters():
        assert torch.equal(parameter.flatten(), saved.read(f"weight/{name}", 0, parameter.numel())), name
    with pytest.raises(UserError, match=r"--step 7: .* saved steps: .*accepted: a step, last, best"):
        export(tmp_path / "run", tmp_path / "other", "7")


def test_losses_on_other_held_out_conversations_are_not_compared(base, feature_store, tmp_path):
    """Asked something harder after a stop, a run neither stops early for it nor calls an old state the best."""
    asked = {"sources": [{"store": str(feature_store), "conversations": "mixed"}], "every": 1, "limit": 24}
    settings = base | {"steps": 4, "save_every": 1, "lr": 1e-20, "evaluation": asked}
    run(settings, tmp_path / "run")
    states = States(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    for step in states.steps():  # as if what was asked had been easy
        path = states.path(step) / "state.json"
        easy = states.state(step).model_copy(update={"loss": 0.0, "best": (0.0, 1)})
        path.write_text(easy.model_dump_json())
    then = states.steps()[-1]
    run(settings | {"evaluation": asked | {"limit": 23, "patience": 3}}, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoint").exists()
    assert states.best() == states.state(states.steps()[-1]).best[1] == 4 > then


def test_training_stops_early_when_held_out_loss_no_longer_falls(base, feature_store, tmp_path):
    held_out = {"sources": [{"store": str(feature_store), "conversations": "mixed"}], "every": 1, "limit": 8}
    hopeless = {"steps": 30, "lr": 1.0, "save_every": None, "evaluation": held_out | {"patience": 3}}
    run(base | hopeless, tmp_path / "run")
    losses = [line["eval_loss"] for line in logged(tmp_path / "run")]
    assert len(losses) == losses.index(min(losses)) + 1 + 3 < 30
