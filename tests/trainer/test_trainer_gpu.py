"""What a GPU does otherwise than a CPU: kernels, feeding, repeatable bits. Each test runs on the CPU too."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch._subclasses.fake_tensor import FakeTensorMode

from store import parse_settings
from trainer import attention
from trainer.attention import KERNELS, Packing, kernel_of, planned_attention, torch_attention
from trainer.checkpoint.folder import model_card
from trainer.checkpoint.info import read_info
from trainer.data import TrainingData
from trainer.engine import PlainEngine
from trainer.llm import load_llm
from trainer.loader import rank_batch
from trainer.optim import build_optimizer
from trainer.settings import TrainConfig
from trainer.stage import train
from trainer.start import build_model

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LENGTHS = [5, 170, 1, 64]


def forward_and_backward(attend, dtype, device, groups=2):
    torch.manual_seed(0)
    shapes = [(1, heads, sum(LENGTHS), 32) for heads in (8, groups, groups)]
    given = [torch.randn(shape).bfloat16().to(device, dtype).requires_grad_() for shape in shapes]
    mixed = attend(*given, Packing.of(LENGTHS).to(torch.device(device)), 0.2)
    mixed.backward(torch.randn(mixed.shape).bfloat16().to(mixed))
    return [x.detach().double().cpu() for x in (mixed, *(x.grad for x in given))]


@pytest.mark.parametrize("groups", [8, 2])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float32, 1e-5)])
@pytest.mark.parametrize("device", DEVICES)
def test_the_kernel_that_a_device_takes_gives_the_numbers_of_the_reference(device, dtype, bound, groups):
    """Result and gradients; another mask, scale or grouping of heads would train another model."""
    exact = forward_and_backward(torch_attention, torch.float64, "cpu", groups)
    taken = KERNELS[kernel_of(torch.device(device), dtype, 32)]
    for found, wanted in zip(forward_and_backward(taken, dtype, device, groups), exact, strict=True):
        assert (found - wanted).norm() <= bound * wanted.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name in KERNELS if name != "flash-attn" or attention.flash_attn_varlen_func])
def test_all_kernels_give_the_numbers_of_the_reference(name):
    exact = forward_and_backward(torch_attention, torch.float64, "cpu")
    for found, wanted in zip(forward_and_backward(KERNELS[name], torch.bfloat16, "cuda"), exact, strict=True):
        assert (found - wanted).norm() <= 1e-2 * wanted.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("capability", "width"), [((9, 0), 128), ((8, 0), 20), ((7, 0), 64), ((9, 0), 512)])
def test_on_no_gpu_is_attention_a_loop_over_conversations(capability, width, dtype, monkeypatch):
    """Launching a kernel for each conversation leaves a GPU idle most of the time."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    chosen = kernel_of.__wrapped__(torch.device("cuda"), dtype, width)
    fused = dtype != torch.float32 and capability >= (8, 0) and width == 128
    assert chosen == ({True: "varlen_attn", False: "memory-efficient"}[fused])
    monkeypatch.setattr(attention, "flash_attn_varlen_func", print)
    assert kernel_of.__wrapped__(torch.device("cuda"), dtype, width) == ("flash-attn" if fused else "memory-efficient")


@pytest.mark.parametrize("groups", [4, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_gpu_kernel_can_be_planned_without_a_gpu(dtype, groups):
    """A dry run counts what it keeps; a call that the kernel would refuse fails here, on any machine."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = [torch.randn(1, heads, 240, 32, dtype=dtype, requires_grad=True) for heads in (4, groups, groups)]
        mixed, _ = planned_attention(None, *given, None, packing=Packing.of(LENGTHS), scaling=0.2)
        mixed.sum().backward()
        assert mixed.shape == (1, 240, 4, 32)
        assert [x.grad.shape for x in given] == [x.shape for x in given]


@pytest.fixture(scope="module")
def config(tiny_run):
    return parse_settings(TrainConfig, tiny_run | {"stage": 2, "steps": 6, "output": "none", "batch_tokens": 2048}, "")


@pytest.fixture(scope="module")
def data(config):
    return TrainingData(config, load_llm(config.model, torch.float32)[1])


@pytest.mark.parametrize(("bfloat16", "bound"), [(False, 1e-4), (True, 2e-2)])
@pytest.mark.parametrize("device", DEVICES)
def test_a_pass_on_a_device_gives_the_loss_and_gradients_of_float32_on_the_cpu(device, bfloat16, bound, config, data):
    llm, _ = load_llm(config.model, torch.float32)
    model = build_model(config, data, llm)
    (batch, *_) = rank_batch(data, config, 0, 0, 1).passes
    loss = model(batch)
    (loss / 7).backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    engine = PlainEngine(model, build_optimizer(model, config), bfloat16)
    if engine.device.type != device:
        pytest.skip("an engine takes the GPU where there is one")
    assert engine.backward(batch.to(engine.device), 7, True).item() == pytest.approx(loss.item(), rel=bound)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert (parameter.grad.cpu() - gradient).norm() <= 5 * bound * gradient.norm() + 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_gives_the_same_bits_twice_and_says_by_which_kernel(device, tiny_run, tmp_path):
    """By default: a kernel that adds up in the order in which its threads end would make every run its own."""
    if torch.cuda.is_available() != (device == "cuda"):
        pytest.skip("a run takes the GPU where there is one")
    logs, weights = [], []
    for name in ("one", "two"):
        settings = tiny_run | {"stage": 2, "steps": 4, "precision": "bfloat16", "output": str(tmp_path / name)}
        train(parse_settings(TrainConfig, settings, "test"))
        logs.append([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()])
        weights.append(load_file(tmp_path / name / "checkpoint" / "model.safetensors"))
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    kernel = kernel_of(torch.device(device), torch.bfloat16, 8)
    info = read_info(tmp_path / "one" / "checkpoint")
    assert {line["attention"] for line in logs[0]} == {info.attention}
    assert info.attention.startswith(f"{kernel} (torch {torch.__version__}, ")
    assert f"attention by {kernel} (torch" in model_card(info)
