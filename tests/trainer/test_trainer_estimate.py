"""What a dry run promises: counts, bytes and hours, against real parts and hand computation."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from store import UserError, load_settings, parse_settings
from trainer.flops import forward_flops
from trainer.llm import load_llm
from trainer.model import AudioVisualLM
from trainer.planning.earlier import with_first_llm
from trainer.planning.estimate import device_of, dry_run, forecast, load_of
from trainer.planning.memory import (
    BUCKET,
    Parameters,
    build_shape,
    pass_bytes,
    pass_without_data,
    plain_memory,
    zero_memory,
)
from trainer.planning.shapes import column_widths, llm_shape, paper_conversations
from trainer.settings import TrainConfig
from trainer.trainable import choose_trained

REPO = Path(__file__).parents[2]
CONFIGS = REPO / "trainer" / "configs"
ROWS = re.findall(
    r"^\| `(\S+\.yaml) ?(.*?)` \| (\d+) x (.+?) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \|$",
    (REPO / "docs" / "recipes.md").read_text(),
    re.MULTILINE,
)
SETTINGS = {
    "stage": 2,
    "model": "nothing",
    "sources": [{"store": "nowhere", "conversations": "none"}],
    "visual": "clip-vit-s-32",
    "audio": "clap-htsat-tiny",
    "frames": 4,
    "segments": 1,
    "output": "nowhere",
    "global_batch": 8,
    "steps": 3,
    "lr": 1e-3,
    "batch_tokens": 2048,
}


def settings(**changes):
    return parse_settings(TrainConfig, SETTINGS | changes, "test")


# What the page assumes, as papers and data sheets tell it: width, MLP width, layers, key width, words, tied head.
SHAPES = {
    "lmsys/vicuna-7b-v1.5": (4096, 11008, 32, 4096, 32000, False),
    "lmsys/vicuna-13b-v1.5": (5120, 13824, 40, 5120, 32000, False),
    "HuggingFaceTB/SmolLM2-135M-Instruct": (576, 1536, 30, 192, 49152, True),
}
GPUS = {"H100": (989e12, 80), "A100": (312e12, 80), "L40S": (362e12, 48), "RTX 4090": (165e12, 24)}  # per second, GB
TEXT, ANSWER, MFU, THOUSANDS = 160, 100, 0.4, 1680


def reference(config, ranks, gpu):
    """Weights, trained weights, bytes of a GPU and of a host, hours: by formulas, with none of the planner's code."""
    width, mlp, layers, keys, words, tied = SHAPES[config.model]
    patches, dim, sound = (256, 1024, 768) if config.visual == "clip-vit-l-14" else (49, 384, 768)
    products = 2 * width * width + 2 * width * keys + 3 * width * mlp  # of a layer
    llm = layers * (products + 2 * width) + width + words * width * (1 if tied else 2)
    projectors = width * (2 * (dim + 1) + sound + 1)
    sides = 2 * 2 * width + 2 * (width + keys) + 3 * (width + mlp)  # of a layer's seven linear maps
    adapters = layers * config.lora.rank * sides if config.lora else 0
    total = llm + projectors + adapters
    trained = projectors if config.stage == 1 else total if not config.lora else projectors + adapters

    clip = TEXT + config.frames + patches
    lengths = [(650, TEXT + 1 + patches), (900, clip), (45, TEXT + config.segments), (85, clip + config.segments)]
    rows = sum(count * length for count, length in lengths) / THOUSANDS
    squares = sum(count * length**2 for count, length in lengths) / THOUSANDS
    forward = layers * (2 * products * rows + 2 * width * squares) + 2 * ANSWER * width * words
    conversations = config.steps * config.global_batch if config.steps else THOUSANDS * 1000 * config.epochs
    backward = 2 if trained == total else 1  # a frozen LLM passes gradients on, and has none of its own
    hours = conversations * forward * (1 + backward) / (ranks * GPUS[gpu][0] * MFU * 3600)

    full = min(config.batch_tokens, config.global_batch // ranks * (clip + config.segments))
    of_layer = 2 * full * (10 * width + 5 * mlp)
    kept = 2 * full * width * layers + of_layer if config.gradient_checkpointing else of_layer * layers
    activations = kept + 10 * full * ANSWER / rows * words  # logits in bfloat16, and twice in float32
    saved = 12 * trained if config.save_every else 0
    if config.zero is None:  # trained weights, their gradients and moments in float32
        starting = 2 * (total - trained) + 4 * trained
        return total, trained, starting + 12 * trained + activations, max(starting, saved), hours
    state = 0 if config.zero.offload else 14 * trained / ranks  # originals, moments, gradients
    billion = 2e9 * (config.zero.stage == 3 and ranks > 1) + (3e9 if config.zero.stage == 2 else 2e9)  # its buffers
    weights = 2 * total / (ranks if config.zero.stage == 3 else 1)
    host = max(ranks * (2 * (total - projectors) + 4 * projectors), saved + 18 * trained * config.zero.offload)
    return total, trained, max(2 * total, weights + state + billion + activations), host, hours


def test_every_configuration_that_describes_a_run_is_in_the_table():
    assert {row[0] for row in ROWS} == {p.name for p in CONFIGS.glob("*.yaml") if not p.stem.startswith("ablate")}


def agree(found, weights, trained, gpu, host, hours):
    """Numbers as the reference has them. It counts what a layer keeps roughly, more so where conversations are few."""
    assert found[:2] == (weights, trained)
    assert gpu == pytest.approx(found[2] / 1e9, rel=0.1, abs=0.6)
    assert host == pytest.approx(found[3] / 1e9, rel=0.01, abs=0.6)
    assert hours == pytest.approx(found[4], rel=0.02, abs=0.06)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: " ".join(row[:4]))
def test_recipes_are_what_the_papers_shapes_take_and_fit(row):
    """Each number of the page against formulas that share no code with the planner that printed it."""
    file, words, ranks, gpu, weights, trained, memory, host, hours = row
    config = load_settings(TrainConfig, CONFIGS / file, words.split())
    counts = (int(number.replace(",", "")) for number in (weights, trained))
    agree(reference(config, int(ranks), gpu), *counts, float(memory), float(host), float(hours))
    assert float(memory) < 0.92 * GPUS[gpu][1]


@pytest.mark.parametrize(
    ("file", "words", "ranks", "gpu"),
    [
        ("paper-stage1.yaml", [], 8, "A100"),
        ("paper-stage2.yaml", ["model=lmsys/vicuna-7b-v1.5"], 8, "H100"),
        ("paper-stage2.yaml", ["model=lmsys/vicuna-13b-v1.5", "zero.offload=true"], 1, "H100"),
        ("paper-lora.yaml", ["model=lmsys/vicuna-7b-v1.5"], 1, "L40S"),
    ],
    ids=str,
)
def test_a_dry_run_says_what_the_papers_shapes_take(file, words, ranks, gpu):
    config = load_settings(TrainConfig, CONFIGS / file, words)
    found = forecast(config, ranks, gpu, MFU, THOUSANDS * 1000)
    memory = found.estimate.memory
    host = ranks * max(memory.starting, memory.training) / 1e9
    counts = found.parameters.all, found.parameters.trained
    agree(reference(config, ranks, gpu), *counts, max(memory.totals) / 1e9, host, found.estimate.hours)


@pytest.mark.parametrize(("size", "count"), [("7b", 6_738_415_616), ("13b", 13_015_864_320)])
def test_vicuna_has_the_published_number_of_weights(size, count):
    config = load_settings(TrainConfig, CONFIGS / "paper-stage1.yaml", [f"model=lmsys/vicuna-{size}-v1.5"])
    assert Parameters.of(build_shape(config, llm_shape(config.model), column_widths(config))).llm == count


@pytest.mark.parametrize(
    "changes",
    [{"stage": 1}, {}, {"gradient_checkpointing": True}, {"lora": {"rank": 4}}, {"precision": "float32"}],
    ids=str,
)
def test_a_pass_without_data_takes_what_a_real_one_takes(tiny_llm, changes):
    config = settings(model=str(tiny_llm), **changes)
    shape, widths = AutoConfig.from_pretrained(tiny_llm), column_widths(config)
    batch = load_of([paper_conversations(config, 8)], config, shape, widths, 1).fullest
    dtype = torch.float32 if config.precision == "float32" else torch.bfloat16
    model = AudioVisualLM(load_llm(str(tiny_llm), dtype)[0], widths)
    choose_trained(config, model)
    real = pass_bytes(model, batch, config.precision == "bfloat16")
    assert pass_without_data(config, shape, widths, batch, False, on_gpu=False) == pytest.approx(real, rel=0.01)


def test_memory_by_hand():
    """A model of 1,000 weights in bfloat16, 400 of them trained, a pass of 50 bytes, batches of 7."""
    found = Parameters(projectors=100, llm=900, adapters=0, trained=400, bytes=2_800)
    plain = plain_memory(settings(), found, 50, 7)
    assert plain.totals == [2_800, 2_800 + 3_200 + 1_600 + 50 + 14, 2_800 + 3_200 + 1_600 + 14]
    two = zero_memory(settings(zero={"stage": 2}), found, 50, 7, 2, 1)
    assert two.totals == [2_000, 2_000 + 2_400 + 400 + 4 * BUCKET + 800 + 50 + 14, 2_000 + 2_400 + 400 + 1_200 + 14]
    three = zero_memory(settings(zero={"stage": 3}), found, 50, 7, 2, 1)
    assert three.totals == [
        2_000,
        1_000 + 2_000 + 2_400 + 400 + 2 * BUCKET + 800 + 50 + 14,
        1_000 + 2_400 + 400 + 1_200 + 2 * BUCKET + 14,
    ]
    offloaded = zero_memory(settings(zero={"stage": 2, "offload": True}), found, 50, 7, 2, 1)
    assert offloaded.totals[2] == 2_000 + 14
    assert offloaded.training == 2_400 + 800 + 400


def test_operations_are_those_that_torch_counts(tiny_llm):
    """Of all matrix products; kernels of attention are counted apart."""
    config = settings(model=str(tiny_llm), precision="float32")
    shape, widths = AutoConfig.from_pretrained(tiny_llm), column_widths(config)
    batch = load_of([paper_conversations(config, 8)], config, shape, widths, 1).fullest
    model = AudioVisualLM(load_llm(str(tiny_llm), torch.float32)[0], widths)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.llm(
            input_ids=batch.ids[None], position_ids=batch.positions[None], packing=batch.packing, logits_to_keep=1
        )
    by_kind = counter.get_flop_counts()["Global"]
    products = sum(count for kind, count in by_kind.items() if "attention" not in str(kind))
    ours = forward_flops(shape, batch.packing.lengths, 1)
    squares = sum(n * n for n in batch.packing.lengths)
    attention = shape.num_hidden_layers * 2 * shape.hidden_size * squares
    assert ours - attention == products


def test_an_unknown_gpu_and_an_unknown_column_are_named():
    with pytest.raises(UserError, match="--device H900: known are H200"):
        device_of("H900", torch.bfloat16)
    with pytest.raises(UserError, match="clip-other"):
        column_widths(SimpleNamespace(visual="clip-other", audio=None))


def test_a_dry_run_reads_the_store_and_writes_nothing(feature_store, tiny_llm, tmp_path, capsys):
    source = {"store": str(feature_store), "conversations": "mixed"}
    columns = {"visual": "clip-tiny", "audio": "clap-tiny", "segments": 2}
    out = tmp_path / "run"
    dry_run(settings(model=str(tiny_llm), sources=[source], output=str(out), **columns), device="A40")
    said = capsys.readouterr().out
    assert "usable conversations" in said
    assert "fits:" in said
    assert "left out" in said
    assert not out.exists()


@pytest.mark.parametrize("file", ["paper-stage2.yaml", "paper-lora.yaml", "demo-stage2.yaml"])
def test_stage_2_is_planned_before_stage_1_has_run(file, tmp_path, monkeypatch):
    """With the LLM that its stage 1 starts from, whatever else lies beside the two."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CONFIGS, tmp_path / "configs")
    (tmp_path / "configs" / "a.yaml").write_text("columns: []")
    first = load_settings(TrainConfig, CONFIGS / ("demo-stage1.yaml" if "demo" in file else "paper-stage1.yaml"))
    config = load_settings(TrainConfig, tmp_path / "configs" / file)
    assert with_first_llm(config, f"configs/{file}") == config.model_copy(update={"model": first.model})
    Path(config.model).mkdir(parents=True)
    assert with_first_llm(config, f"configs/{file}") == config


def test_a_checkpoint_of_an_unknown_stage_is_refused_with_the_override_to_give():
    elsewhere = settings(model="runs/elsewhere/checkpoint")
    with pytest.raises(
        UserError, match=r"^field 'model': runs/elsewhere/checkpoint: no such folder here; .*: model=NAME$"
    ):
        with_first_llm(elsewhere, str(CONFIGS / "paper-stage2.yaml"))
    assert with_first_llm(settings(), str(CONFIGS / "paper-stage2.yaml")) == settings()
