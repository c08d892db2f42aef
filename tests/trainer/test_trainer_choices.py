"""What a user may choose: adapters, freezing, clipping, held-out questions, tracking; each does what it says."""

import json
import shutil
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig

import serve.__main__
import trainer.__main__
from serve.assistant import Assistant, Question
from serve.engine import Limits
from store import Storage, UserError, load_conversations, parse_settings, save_conversations
from trainer.batch import pack
from trainer.checkpoint.export import export
from trainer.checkpoint.folder import load_checkpoint, load_projectors, model_card
from trainer.checkpoint.info import read_info
from trainer.checkpoint.states import States
from trainer.checkpoint.tensors import SavedTensors
from trainer.data import TrainingData
from trainer.engine import PlainEngine
from trainer.evaluation import _judge
from trainer.planning.estimate import dry_run
from trainer.settings import TrainConfig
from trainer.stage import describe, train

LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def base(tied_stage2):
    return tied_stage2 | {"steps": 5}


def run(settings, output):
    train(parse_settings(TrainConfig, {**settings, "output": str(output)}, "test"))
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def llm_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def cli(monkeypatch, capsys, *words):
    """What `python -m trainer ...` prints, and its exit status, without a process of its own; so for `serve`."""
    package = serve.__main__ if words[0] == "heldout" else trainer.__main__
    monkeypatch.setattr(sys, "argv", [package.__package__, *map(str, words)])
    try:
        package.main()
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    output = tmp_path_factory.mktemp("adapted") / "run"
    run(base | {"lora": LORA | {"dropout": 0.2}, "save_every": 3}, output)
    return output


def test_adapters_are_merged_as_peft_does_and_nothing_else_of_the_llm_is_trained(base, adapted):
    """The checkpoint is the base with scaling * B A added, an ordinary LLM; the adapter alone is peft's own form."""
    from peft import PeftModel

    plain, merged = llm_of(base["model"]).state_dict(), llm_of(adapted / "checkpoint").state_dict()
    alone = PeftModel.from_pretrained(llm_of(base["model"]), adapted / "checkpoint" / "avllm" / "adapter").eval()
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(alone(ids).logits, llm_of(adapted / "checkpoint")(ids).logits, rtol=0, atol=1e-5)
    by_peft = alone.merge_and_unload().state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, by_peft[name], rtol=0, atol=1e-6, msg=name)
        assert torch.equal(tensor, plain[name]) == (not name.endswith("_proj.weight")), name
    start = adapted.parent / "start"
    run(base | {"lora": LORA, "lr": 1e-12, "steps": 1}, start)
    first, last = (load_file(o / "checkpoint" / "avllm" / "projectors.safetensors") for o in (start, adapted))
    assert all(not torch.equal(first[name], last[name]) for name in first if name.endswith("weight"))


def test_dropout_of_adapters_goes_on_bit_for_bit(base, adapted, tmp_path):
    """From a run's folder that was moved, too."""
    shutil.copytree(adapted / "steps", tmp_path / "moved" / "steps")
    assert States(tmp_path / "moved").steps() == [3]
    run(base | {"lora": LORA | {"dropout": 0.2}, "save_every": 3}, tmp_path / "moved")
    for file in ("model.safetensors", "avllm/projectors.safetensors", "avllm/adapter/adapter_model.safetensors"):
        whole, resumed = (load_file(o / "checkpoint" / file) for o in (adapted, tmp_path / "moved"))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), file


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lora", LORA | {"targets": ["lm_head"]}, r"field 'lora.targets': lm_head is an embedding or tied to one"),
        ("lora", LORA | {"targets": ["embed_tokens"]}, r"field 'lora.targets': model.embed_tokens is an embedding"),
        ("lora", LORA | {"targets": ["q_prj"]}, r"field 'lora.targets': .*q_prj.* not found"),
        ("freeze", ["llm.model.layers.7.*"], r"field 'freeze': .*7.\* matches no trained .* llm.model.embed_tokens"),
        ("freeze", ["*"], r"field 'freeze': nothing is left to train"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_a_line(base, field, value, message, tmp_path):
    """An adapter on a tied head would be lost when merged."""
    with pytest.raises(UserError, match=message) as refused:
        run(base | {field: value}, tmp_path / "x")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("dry", [True, False])
def test_held_out_conversations_that_are_trained_on_are_counted(base, feature_store, tmp_path, capsys, dry):
    """A loss on what was learnt says nothing about what is new; of the same clips it says little."""
    shutil.copytree(feature_store, tmp_path / "store")
    storage = Storage(tmp_path / "store")
    talk = load_conversations(storage, "mixed")
    about = [c for c in talk if c.key in ("clips-1-mp4", "clips-2-mp4", "clips-4-mp4")]  # three of each
    rest = [c for c in talk if c not in about]
    again = [
        replace(c, id="again", turns=c.turns[:1]) for c in rest[6:11]
    ]  # other words about media that are trained on
    for name, conversations in {"rest": rest, "mixed": about + again + rest[12:14], "new": about}.items():
        save_conversations(storage, name, conversations)
    source = {"store": str(tmp_path / "store")}
    for name, said in (
        ("mixed", "of 16 held-out conversations 2 are also trained on, of 5 others the media are"),
        ("new", None),
    ):
        asked = {"sources": [source | {"conversations": name}], "every": 5, "limit": None}
        own = {"sources": [source | {"conversations": "rest"}], "evaluation": asked, "output": str(tmp_path / name)}
        (dry_run if dry else train)(parse_settings(TrainConfig, base | own | {"steps": 1}, "test"))
        out = capsys.readouterr().out
        assert said in out if said else "held-out conversations" not in out


@pytest.mark.parametrize("dry", [True, False])
def test_another_grid_than_the_checkpoints_is_said(base, tmp_path, capsys, dry):
    """Projectors learnt what one of four frames shows; nothing tells that they know one of two."""
    run(base | {"stage": 1, "steps": 1}, tmp_path / "first")
    for frames in (2, 4):
        own = {"model": str(tmp_path / "first" / "checkpoint"), "frames": frames, "output": str(tmp_path / f"{frames}")}
        capsys.readouterr()
        (dry_run if dry else train)(parse_settings(TrainConfig, base | own | {"steps": 1}, "test"))
        said = "was trained with frames 4 (now 2); its projectors know that grid" in capsys.readouterr().out
        assert said == (frames == 2)


@pytest.mark.parametrize("targets", ["all-linear", ["gate"]])
def test_adapters_in_a_mixtures_experts_are_refused_for_what_they_are(base, tiny_llm, tmp_path, targets):
    """Experts are parameters without a layer; what can be adapted is named, and is."""
    torch.manual_seed(0)
    sizes = json.loads((tiny_llm / "config.json").read_text())
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "eos_token_id",
    )
    mixture = MixtralConfig(**{n: sizes[n] for n in names}, num_key_value_heads=2, num_local_experts=4)
    AutoModelForCausalLM.from_config(mixture).save_pretrained(tmp_path / "llm")
    for file in tiny_llm.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "llm")
    settings = base | {"model": str(tmp_path / "llm"), "steps": 2}
    said = r"is a mixture's router or experts, which are no linear layers; accepted: k_proj, o_proj, q_proj, v_proj$"
    with pytest.raises(UserError, match=said):
        run(settings | {"lora": LORA | {"targets": targets}}, tmp_path / "x")
    run(settings | {"lora": LORA | {"targets": ["k_proj", "o_proj", "q_proj", "v_proj"]}}, tmp_path / "adapted")


@pytest.mark.parametrize("lora", [None, LORA])
def test_a_checkpoint_says_in_which_precision_it_is(base, tmp_path, lora):
    """Else whoever loads it as it says gets twice the memory, and a float32 that never was."""
    run(base | {"steps": 1, "precision": "bfloat16", "lora": lora}, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoint"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}


def test_frozen_parameters_stay_as_they_are(base, tmp_path):
    frozen = ["llm.model.embed_tokens.*", "*.layers.0.mlp.*", "projectors.audio.bias"]
    run(base | {"freeze": frozen}, tmp_path / "run")
    before, after = llm_of(base["model"]).state_dict(), llm_of(tmp_path / "run" / "checkpoint").state_dict()
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {"model.embed_tokens.weight", "lm_head.weight"} | {n for n in before if ".layers.0.mlp." in n}
    projectors = load_file(tmp_path / "run" / "checkpoint" / "avllm" / "projectors.safetensors")
    assert not projectors["audio.bias"].any()
    assert projectors["temporal.bias"].any()


def test_frozen_projectors_are_exported_as_they_are(base, tmp_path):
    run(base | {"freeze": ["projectors.*"], "save_every": 4}, tmp_path / "run")
    export(tmp_path / "run", tmp_path / "exported", "last")
    ours, theirs = (load_projectors(tmp_path / at) for at in ("exported", "run/checkpoint"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_modality_may_be_left_out_after_a_stage(base, tmp_path, capsys):
    run(base, tmp_path / "both")
    sight = {"audio": None, "mixture": {"visual": 1}, "model": str(tmp_path / "both" / "checkpoint"), "lr": 1e-20}
    run(base | sight, tmp_path / "sight")
    assert "also reads clap-tiny" in capsys.readouterr().out.split("this run leaves that out")[0].splitlines()[-1]
    before, after = (load_projectors(tmp_path / at / "checkpoint") for at in ("both", "sight"))
    assert {name.split(".")[0] for name in after} == {"temporal", "spatial"}
    assert all(torch.equal(before[name], after[name]) for name in after)


def test_a_training_that_diverges_stops_and_keeps_what_is_sound(base, tmp_path):
    with pytest.raises(UserError, match=r"training diverged: loss .*Try a lower lr \(now 1e\+30\)") as refused:
        run(base | {"lr": 1e30, "warmup_ratio": 0, "save_every": 1, "steps": 6}, tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "checkpoint").exists()
    assert States(tmp_path / "run").steps() == [1]


def test_the_gradient_is_clipped_to_a_norm(base, tmp_path):
    """AdamW hides the scale of a gradient from the loss; its first moments do not."""
    norms = {}
    for clip in (0.01, None):
        logged = run(base | {"clip": clip, "steps": 2, "save_every": 1}, tmp_path / str(clip))
        model, _, _ = load_checkpoint(tmp_path / str(clip) / "checkpoint", torch.float32)
        saved = SavedTensors(States(tmp_path / str(clip)).path(1))
        moments = [saved.read(f"exp_avg/{name}", 0, p.numel()) for name, p in model.named_parameters()]
        norms[clip] = torch.cat(moments).norm().item() / 0.1  # 1 - beta_1, after one step
        assert logged[0]["grad_norm"] > 1
    assert norms[0.01] == pytest.approx(0.01, rel=1e-3)
    assert norms[None] == pytest.approx(logged[0]["grad_norm"], rel=1e-3)


@pytest.fixture(scope="module")
def taught(base, tmp_path_factory):
    """A run that has learnt some of its answers, with the evaluation of its last step."""
    output = tmp_path_factory.mktemp("taught") / "run"
    held_out = {"sources": base["sources"], "every": 20, "limit": None}
    return output, run(base | {"steps": 50, "evaluation": held_out, "lr": 1e-2, "keep": 1}, output)


def conversations(base, output):
    """Every usable conversation with its turns, tokens and arrays."""
    config = parse_settings(TrainConfig, {**base, "output": str(output)}, "test")
    tokenizer = AutoTokenizer.from_pretrained(output / "checkpoint")
    data = TrainingData(config, tokenizer)
    for pool in data.pools:
        numbers = range(len(pool))
        yield from zip(pool.conversations(numbers), pool.samples(numbers, tokenizer, config.prompt), strict=True)


def test_evaluation_is_what_a_plain_reading_and_greedy_decoding_say(base, taught, tmp_path, monkeypatch, capsys):
    """Loss: each conversation alone through the Hugging Face model. Exact: what `serve` answers, word for word."""
    output, logged = taught
    out = tmp_path / "new" / "judged.json"
    words = ("heldout", output / "checkpoint", base["sources"][0]["store"], "mixed", "--out", out)
    status, printed, _ = cli(monkeypatch, capsys, *words)
    assert status == 0
    assert "audio_visual" in printed
    report = json.loads(out.read_text())
    assert report["attention"].startswith("by conversation (torch")
    for name, value in report["summary"].items():
        assert logged[-1][name] == pytest.approx(value, rel=1e-4), name
    judged = {each["id"]: each for each in report["judged"]}
    model, _, _ = load_checkpoint(output / "checkpoint", torch.float32, "sdpa")
    assistant = Assistant.load(str(output / "checkpoint"))
    exact = []
    for conversation, sample in conversations(base, output):
        batch = pack([sample], model.widths, 4096)
        with torch.no_grad():
            logits = model.llm(inputs_embeds=model.embed(batch)[None]).logits[0, :-1]
        answers = torch.tensor(sample.tokens.answers[1:])
        loss = F.cross_entropy(logits[answers], torch.tensor(sample.tokens.ids[1:])[answers], reduction="sum")
        found = judged.pop(conversation.id)
        assert found["tokens"] == int(answers.sum())
        assert found["loss"] == pytest.approx(loss.item(), rel=1e-3, abs=1e-4)
        turns = conversation.turns
        questions = [Question(turns[: n + 1], sample.arrays) for n in range(len(turns))]
        said = [reply.text for reply in assistant.answer(questions, Limits(20))]
        assert found["exact"] == (said == [turn.response for turn in turns]), (conversation.id, said)
        exact.append(found["exact"])
    assert not judged
    assert 5 < sum(exact) < len(exact) - 5
    assert sum(exact) / len(exact) == pytest.approx(report["summary"]["eval_exact"])


def test_audio_visual_questions_asked_by_one_sense(base, taught, monkeypatch, capsys, tmp_path):
    """The paper's modality ablation: the same model asked with sight only."""
    out = tmp_path / "judged.json"
    words = ("heldout", taught[0] / "checkpoint", base["sources"][0]["store"], "mixed", "--ask", "visual")
    status, printed, _ = cli(monkeypatch, capsys, *words, "--limit", 12, "--out", out)
    judged = json.loads(out.read_text())["judged"]
    assert (status, {each["modality"] for each in judged}, len(judged)) == (0, {"visual"}, 12)
    assert all(each["id"].endswith("audio_visual") for each in judged)
    assert " 12 " in printed


def test_a_conversation_that_is_cut_is_not_exact_and_leaves_its_neighbours_alone(base, taught):
    """A bound of length must not make a model look better, nor write one item's rows into another conversation."""
    model, _, _ = load_checkpoint(taught[0] / "checkpoint", torch.float32)
    samples = {conversation.id: sample for conversation, sample in conversations(base, taught[0])}
    clip, words = samples["0-audio_visual"], samples["words"]
    cut = len(words.tokens.ids)
    (_, first), *_ = clip.tokens.media
    assert cut < first + sum(len(rows) for rows in clip.arrays.values())
    both = model.embed(pack([clip, words], model.widths, cut))
    assert torch.equal(both[cut:], model.embed(pack([words], model.widths, cut)))
    engine = PlainEngine(model)
    assert [exact for *_, exact in _judge(engine, [words, clip], 4096)] == [True, True]
    assert [exact for *_, exact in _judge(engine, [words, clip], cut)] == [True, False]


def test_a_stopped_runs_state_becomes_the_checkpoint_it_would_have_written(
    base, adapted, monkeypatch, capsys, tmp_path
):
    """`export` merges adapters and writes a card, from nothing but what the run had saved."""
    shutil.copytree(adapted / "steps", tmp_path / "stopped" / "steps")
    words = ("export", tmp_path / "stopped", tmp_path / "three", "--step", 3)
    status, printed, _ = cli(monkeypatch, capsys, *words)
    assert (status, printed) == (0, f"saved {tmp_path / 'three'}: step 3 of {tmp_path / 'stopped'}\n")
    assert read_info(tmp_path / "three").steps == 3
    card = (tmp_path / "three" / "README.md").read_text()
    assert "stage 2, 3 steps" in card
    assert read_info(tmp_path / "three").columns["visual"].fingerprint in card
    run(base | {"lora": LORA | {"dropout": 0.2}, "model": str(tmp_path / "three"), "steps": 1}, tmp_path / "on")
    assert (tmp_path / "three" / "avllm" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("export {run} {new} --step 4", "--step 4: {run} has no such state; saved steps: 3; accepted: a step, last"),
        ("export {run} {new} --step best", "--step best: {run} has no such state; saved steps: 3; accepted: a step"),
        ("export {run}/nowhere {new}", "{run}/nowhere: no such folder; expected the 'output' of a run"),
        ("export {store} {new}", "{store} has no saved states: a run with save_every=N saves some"),
        ("export {run} {run}", "{run}: exists; name a folder that does not"),
        ("heldout {run}/checkpoint {store} mixed --ask smell", "--ask smell: accepted: visual, audio"),
        ("heldout {run} {store} mixed", "{run}: not a checkpoint of avllm"),
        ("heldout {run}/checkpoint {store} nothing", "nothing"),
        ("heldout {run}/checkpoint {run} mixed", "{run}: no store is there"),
        ("heldout {run}/checkpoint {store} mixed --out {run}", "--out {run}: is a folder"),
    ],
)  # fmt: skip
def test_mistakes_cost_a_line(base, adapted, words, message, monkeypatch, capsys, tmp_path):
    names = {"run": adapted, "new": tmp_path / "new", "store": base["sources"][0]["store"]}
    status, printed, error = cli(monkeypatch, capsys, *words.format(**names).split())
    assert status == 2
    assert error.count("\n") == 1, error
    assert message.format(**names) in error
    assert not printed


def test_a_damaged_state_is_named(adapted, monkeypatch, capsys, tmp_path):
    shutil.copytree(adapted / "steps", tmp_path / "run" / "steps")
    part = tmp_path / "run" / "steps" / "00000003" / "part-00000-of-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-7])
    status, _, error = cli(monkeypatch, capsys, "export", tmp_path / "run", tmp_path / "new")
    assert (status, error.count("\n")) == (2, 1)
    assert f"{part}: cannot be read" in error


def test_the_conversations_that_are_left_out_are_named(adapted):
    lines = [json.loads(line) for line in (adapted / "left_out.jsonl").read_text().splitlines()]
    fault = {"key": "clips-3-mp4", "reason": "audio: absent"}
    assert lines == [{"id": "3-audio", **fault}, {"id": "3-audio_visual", **fault}]


@pytest.mark.parametrize("service", ["wandb", "trackio"])
def test_a_run_that_goes_on_goes_on_where_it_is_tracked(base, service, monkeypatch, tmp_path):
    """One curve for one run, however often it was stopped."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when trackio is imported
    settings = base | {"track": service, "steps": 4, "save_every": 2}
    run(settings, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    run(settings, tmp_path / "run")
    if service == "wandb":
        files = list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
        assert (len(files), len({file.stem for file in files})) == (2, 1)
    else:
        with closing(sqlite3.connect(tmp_path / "trackio" / "avllm.db")) as database:
            logged = database.execute("SELECT DISTINCT run_id, run_name, step FROM metrics ORDER BY step").fetchall()
        assert [step for *_, step in logged] == [0, 1, 2, 3]
        assert len({run_id for run_id, *_ in logged}) == 1
        assert {name for _, name, _ in logged} == {str(tmp_path / "run")}


def test_a_card_names_the_llm_that_a_hub_has(base, adapted):
    """And not a folder of somebody's disk."""
    info = read_info(adapted / "checkpoint")
    assert info.base is None
    assert "base_model" not in model_card(info)
    config = parse_settings(TrainConfig, {**base, "model": "lmsys/vicuna-7b-v1.5", "output": "x"}, "test")
    data = SimpleNamespace(specs=info.columns, builds=info.builds)
    assert "\nbase_model: lmsys/vicuna-7b-v1.5\n" in model_card(describe(config, data, 1, "varlen_attn"))
