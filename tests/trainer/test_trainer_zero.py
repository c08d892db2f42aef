"""Choices under DeepSpeed: two processes train, judge, save and go on as one process does."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from store import ColumnReader, Storage, open_column, parse_settings
from trainer.checkpoint.export import export
from trainer.checkpoint.folder import load_checkpoint, load_projectors
from trainer.checkpoint.states import States
from trainer.checkpoint.tensors import SavedTensors
from trainer.settings import TrainConfig
from trainer.stage import train

LORA = {"rank": 4, "alpha": 8}
SAVED = 4
ALL_RUNS = """
import json, os, shutil, sys, time
from pathlib import Path
from store import parse_settings
from trainer.settings import TrainConfig
from trainer.stage import train
for port, settings, saved in json.load(open(sys.argv[1])):
    os.environ["MASTER_PORT"] = str(port)
    if saved:
        steps = Path(settings["output"], "steps")
        if os.environ["RANK"] == "0":
            shutil.copytree(saved, steps.with_name("copying") / Path(saved).name)
            os.replace(steps.with_name("copying"), steps)
        while not steps.exists():
            time.sleep(0.05)
    train(parse_settings(TrainConfig, settings, "test"))
"""


def in_two_processes(forks, free_port, end_well, runs, folder):
    """Train configurations, each from a saved state if one is named, one after the other in the same two processes.

    Starting processes is what takes time.
    """
    (folder / "all_runs.py").write_text(ALL_RUNS)
    (folder / "runs.json").write_text(json.dumps([(free_port(), *run) for run in runs]))
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(folder)}
    ranks = []
    for rank in range(2):
        env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with open(folder / f"rank{rank}.log", "w") as log:
            ranks.append(forks.start("all_runs", folder / "runs.json", out=log, err=log, env=env))
    assert end_well(ranks), "".join((folder / f"rank{rank}.log").read_text()[-3000:] for rank in range(2))


@pytest.fixture(scope="module")
def choices(tied_stage2, feature_store, tmp_path_factory):
    """Name: settings, and the ZeRO that they are tried with; every LLM has its head tied to its word table."""
    store = shutil.copytree(feature_store, tmp_path_factory.mktemp("hurt") / "store")
    column = open_column(Storage(store), "clip-tiny")
    index = ColumnReader(column).index
    tar = Path(column.storage.path(column.path(f"{index.shard[0]:06d}.tar")))
    content = bytearray(tar.read_bytes())
    content[index.offset[0, -1]] ^= 4
    tar.write_bytes(content)
    hurt = [{"store": str(store), "conversations": "mixed"}]
    base = tied_stage2 | {"save_every": SAVED}
    held_out = {"sources": base["sources"], "every": 3}
    full = base | {"clip": 0.05, "evaluation": held_out | {"limit": 21}}
    lora = base | {"lora": LORA, "evaluation": held_out | {"limit": 1}}
    two, three = {"stage": 2}, {"stage": 3}
    return {
        "full-2": (full, two),
        "full-2-offload": (full, two | {"offload": True}),
        "full-3-offload": (full, three | {"offload": True}),
        "lora-2-offload": (lora, two | {"offload": True}),
        "lora-3": (lora, three),
        "half-2": (base | {"precision": "bfloat16"}, two),
        "half-3-offload": (base | {"precision": "bfloat16"}, three | {"offload": True}),
        "frozen-3": (base | {"freeze": ["projectors.*"]}, three),
        "half-dropout-3": (base | {"precision": "bfloat16", "lora": LORA | {"dropout": 0.2}}, three),
        "hurt-2": (base | {"sources": hurt, "mixture": {"visual": 1}, "steps": 12, "tolerate": 1}, two),
    }


@pytest.fixture(scope="module")
def shared(forks, free_port, end_well, choices, tmp_path_factory):
    """The runs by two processes, and again from the states that they saved on the way."""
    folder = tmp_path_factory.mktemp("zero")
    runs = [(s | {"zero": zero, "output": str(folder / name)}, None) for name, (s, zero) in choices.items()]
    for settings, _ in runs.copy():
        saved = Path(settings["output"], "steps", f"{SAVED:08d}")
        runs.append((settings | {"output": str(folder / "resumed" / saved.parts[-3])}, str(saved)))
    in_two_processes(forks, free_port, end_well, runs, folder)
    return folder


@pytest.fixture(scope="module")
def plain(choices, tmp_path_factory):
    """The same by one process without DeepSpeed."""
    folder = tmp_path_factory.mktemp("plain")
    for kind in ("full", "lora", "half"):
        settings = next(s for name, (s, _) in choices.items() if name.startswith(kind))
        train(parse_settings(TrainConfig, settings | {"output": str(folder / kind)}, "test"))
    return folder


def logged(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


NAMES = ["full-2", "full-2-offload", "full-3-offload", "lora-2-offload", "lora-3", "half-2", "half-3-offload"]


@pytest.mark.parametrize("name", NAMES)
def test_losses_norms_and_held_out_answers_are_those_of_one_process(shared, plain, name):
    """Losses and norms before clipping; a rank that has no held-out conversation left takes part all the same."""
    one, two = logged(plain / name.split("-")[0]), logged(shared / name)
    tolerance = 1e-2 if name.startswith("half") else 1e-4
    for key in ("loss", "grad_norm", *(key for key in one[-1] if key.startswith("eval"))):
        expected = [line[key] for line in one if key in line]
        assert [line[key] for line in two if key in line] == pytest.approx(expected, rel=tolerance), key
        assert expected, key


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("full")])
def test_clipped_gradients_are_those_of_one_process(shared, plain, name):
    """Seen in AdamW's moments: its steps hide a gradient's scale."""
    model, _, _ = load_checkpoint(plain / "full" / "checkpoint", torch.float32)
    one, two = (SavedTensors(States(folder).path(SAVED)) for folder in (plain / "full", shared / name))
    assert min(line["grad_norm"] for line in logged(plain / "full")) > 10 * 0.05
    squares = 0.0
    for parameter, tensor in model.named_parameters():
        a, b = (saved.read(f"exp_avg/{parameter}", 0, tensor.numel()) for saved in (one, two))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6, msg=parameter)
        squares += float((b**2).sum())
    assert 0.01 < squares**0.5 < 0.05


@pytest.mark.parametrize("name", [*NAMES, "frozen-3", "half-dropout-3"])
def test_a_run_goes_on_bit_for_bit(shared, name):
    """Float32 originals and moments are saved wherever they lie; dropout follows from the step."""
    assert logged(shared / "resumed" / name)[0]["step"] == SAVED
    for path in sorted((shared / name / "checkpoint").rglob("*.safetensors")):
        whole, resumed = load_file(path), load_file(shared / "resumed" / path.relative_to(shared))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[key], resumed[key]) for key in whole), path.name
    tail = [[(x["loss"], x["grad_norm"]) for x in logged(o)] for o in (shared / name, shared / "resumed" / name)]
    assert tail[0][SAVED:] == tail[1]


@pytest.mark.parametrize("name", ["half-2", "half-3-offload"])
def test_bfloat16_keeps_originals_and_statistics_in_float32(shared, plain, name):
    """DeepSpeed casts the whole module: steps of lr 2e-5 would vanish, and the columns' means would be off."""
    saved = SavedTensors(States(shared / name).path(SAVED))
    weights = saved.read("weight/llm.model.embed_tokens.weight", 0, 400 * 32)
    assert weights.dtype == torch.float32
    assert not torch.equal(weights, weights.bfloat16().float())
    ours, exact = (load_file(o / "checkpoint" / "avllm" / "projectors.safetensors") for o in
                   (shared / name, plain / "full"))  # fmt: skip
    for statistic in ("temporal.mean", "temporal.deviation", "audio.mean"):
        assert torch.equal(ours[statistic], exact[statistic]), statistic


def test_the_bound_on_damaged_items_is_one_for_all_ranks(shared):
    """In 96 draws of 30 conversations both ranks meet the one that is damaged; it counts once."""
    logs = [(shared / f"rank{rank}.log").read_text() for rank in range(2)]
    assert all("differs from its checksum" in log for log in logs)
    assert (shared / "hurt-2" / "checkpoint").exists()


def test_frozen_projectors_are_saved_whole(shared, tmp_path):
    export(shared / "frozen-3", tmp_path / "exported", "last")
    ours, theirs = (load_projectors(folder) for folder in (tmp_path / "exported", shared / "frozen-3" / "checkpoint"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", ["lora-3", "lora-2-offload"])
def test_sharded_adapters_are_merged_as_peft_does(choices, shared, name):
    from peft import PeftModel

    settings, _ = choices[name]
    base, merged = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (settings["model"], shared / name / "checkpoint")
    )
    adapter = shared / name / "checkpoint" / "avllm" / "adapter"
    by_peft = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    for key, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, by_peft[key], rtol=0, atol=1e-6, msg=key)
