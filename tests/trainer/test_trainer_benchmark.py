import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.conversations import MAX_TOKENS, WIDTHS, draw, make_samples
from benchmarks.padded import PaddedLM, collate
from benchmarks.training.loops import our_trainer, usual_trainer
from benchmarks.training.setup import configuration, write_store
from trainer.attention import NAME
from trainer.batch import pack
from trainer.llm import load_llm
from trainer.model import AudioVisualLM

SOURCES = ("LLaVA", "Valley", "paper")


@pytest.mark.parametrize("full", [True, False])
def test_the_padded_contender_computes_the_same_loss(tiny_llm, full):
    """A benchmark against another loss would compare nothing."""
    llm, _ = load_llm(str(tiny_llm), torch.float32)
    torch.manual_seed(0)
    model = AudioVisualLM(llm, WIDTHS)
    drawn = draw(400, SOURCES)
    chosen = [next(d for d in drawn if d.medium == m) for m in ("image", "video", "audio", "audio_visual", "text")]
    samples = make_samples(chosen, AutoTokenizer.from_pretrained(tiny_llm))
    with torch.no_grad():
        batch = pack(samples, WIDTHS, MAX_TOKENS)
        ours = model(batch) / len(batch.targets)
        llm.set_attn_implementation("sdpa")
        padded = PaddedLM(model, full)(**collate(samples))["loss"]
        llm.set_attn_implementation(NAME)
    assert padded.item() == pytest.approx(ours.item(), rel=1e-5)


def test_both_trainers_take_the_same_steps(tiny_llm, tmp_path):
    """The same conversations in the same order, the same optimizer: the losses agree to bfloat16, step by step."""
    write_store(tmp_path / "store", 64)
    losses = {}
    for name, train in (("ours", our_trainer), ("theirs", lambda config: usual_trainer(config, 2))):
        config = configuration(2, tiny_llm, str(tmp_path / "store"), str(tmp_path / name), 4, 3)
        found = train(config)
        assert len(found["seconds"]) == 3
        losses[name] = found["loss"]
    assert losses["theirs"] == pytest.approx(losses["ours"], rel=2e-3)
