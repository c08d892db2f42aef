"""The attention kernels compared: agreement with a reference, bitwise repeatability, and speed."""

import statistics
from collections.abc import Callable, Sequence

import torch

from benchmarks.conversations import draw, lengths_of, make_samples
from benchmarks.gpu.llms import shape_of, word_tokenizer
from benchmarks.gpu.report import Report, median_ratio, race, relative
from trainer.attention import KERNELS, Packing, has_flash_attn, kernel_of
from trainer.batch import fill_passes
from trainer.engine import compute_repeatably
from trainer.planning.memory import build_shape, pass_without_data
from trainer.settings import TrainConfig

LOOP = "by conversation"
Tensors = list[torch.Tensor]


def inputs(lengths: Sequence[int], heads: int, groups: int, width: int, device: torch.device) -> Tensors:
    """Query, key, value and the output's gradient, bfloat16."""
    torch.manual_seed(0)
    shapes = [(1, count, sum(lengths), width) for count in (heads, groups, groups)]
    made = [torch.randn(shape, device=device).bfloat16().requires_grad_() for shape in shapes]
    return [*made, torch.randn(1, sum(lengths), heads, width, device=device).bfloat16()]


def forward_and_backward(name: str, tensors: Tensors, packing: Packing) -> Tensors:
    """The output, and the gradients of query, key and value."""
    query, key, value, gradient = tensors
    mixed = KERNELS[name](query, key, value, packing, None)
    return [mixed, *torch.autograd.grad(mixed, [query, key, value], gradient)]


def exactly(tensors: Tensors, packing: Packing) -> Tensors:
    """The reference: the same in float32, from the same rounded inputs, each conversation by itself."""
    *given, gradient = (tensor.detach().float() for tensor in tensors)
    return forward_and_backward(LOOP, [*(x.requires_grad_() for x in given), gradient], packing)


def measure(report: Report) -> None:
    """Check each kernel's agreement with the reference and its repeatability; time it on the paper's lengths."""
    device, gpu = report.device, report.device.type == "cuda"
    rows, width = (600, 16) if report.tiny else (8192, 128)
    names = [LOOP]
    if gpu:
        compute_repeatably()
        names += ["memory-efficient", "varlen_attn", *(["flash-attn"] if has_flash_attn() else [])]
    report.fact("taken by a run in bfloat16", kernel_of(device, torch.bfloat16, width))
    report.fact("taken by a run in float32", kernel_of(device, torch.float32, width))
    paper = fullest(rows)
    packs = {"one long": [rows], "many short": [16] * (rows // 16), "the paper's": paper}
    for heads, groups in ((8, 8), (8, 2)):
        for kind, lengths in packs.items():
            packing = Packing.of(lengths).to(device)
            tensors = inputs(lengths, heads, groups, width, device)
            exact = exactly(tensors, packing)
            bound = 2e-3 + 2 * max(relative(a, b) for a, b in zip(
                forward_and_backward(LOOP, tensors, packing), exact, strict=True))  # fmt: skip
            for name in names:
                outputs = forward_and_backward(name, tensors, packing)
                repeated = forward_and_backward(name, tensors, packing)
                error = max(relative(a, b) for a, b in zip(outputs, exact, strict=True))
                report.agrees(f"{name}, {kind}, {heads} heads of {groups}: result and gradients", error, bound)
                same = all(torch.equal(a, b) for a, b in zip(outputs, repeated, strict=True))
                report.fact(f"{name}, {kind}, {heads} heads of {groups}: the same bits twice", same, "True", same)
    plan_without_data(report)
    times(report, names, paper)


def fullest(rows: int) -> list[int]:
    """Lengths of conversations like the paper's that best fill a pass of so many rows."""
    samples = make_samples(draw(256, ("LLaVA", "Valley", "paper")), word_tokenizer())
    lengths = [min(length, rows) for length in lengths_of(samples)]
    numbers = max(fill_passes(lengths, rows), key=lambda numbers: sum(lengths[i] for i in numbers))
    return [lengths[i] for i in numbers]


def times(report: Report, names: Sequence[str], lengths: Sequence[int]) -> None:
    """Time forward and backward passes with Vicuna-7B's heads, in turns."""
    heads, width = (4, 16) if report.tiny else (32, 128)
    packing = Packing.of(lengths).to(report.device)
    tensors = inputs(lengths, heads, heads, width, report.device)

    def contender(name: str) -> Callable[[], Tensors]:
        return lambda: forward_and_backward(name, tensors, packing)

    seconds = race({name: contender(name) for name in names}, report.device, 2 if report.tiny else 20)
    where = f"{len(lengths)} conversations, {sum(lengths)} rows, {heads} heads"
    for name, taken in seconds.items():
        ratio = median_ratio(seconds[LOOP], taken)
        target = {"varlen_attn": 1.5}.get(name)
        report.measured(
            f"{name}: forward and backward of {where}",
            f"{1e3 * statistics.median(taken):.2f} ms, {ratio:.2f} x the loop over conversations",
            f">= {target} x" if target else "",
            None if target is None else ratio >= target,
        )


def plan_without_data(report: Report) -> None:
    """Count the memory of a pass on tensors without data, through the GPU's kernel, as a dry run does."""
    from benchmarks.gpu.training import configuration_of, some_load

    shape = shape_of("tiny")
    config: TrainConfig = configuration_of(report, 2, "", "", 8, 1)
    load, widths = some_load(config, shape)
    size = pass_without_data(config, shape, widths, load.fullest, False, on_gpu=True)
    weights = sum(parameter.nbytes for parameter in build_shape(config, shape, widths).parameters())
    report.fact("a pass on tensors without data, through the variable-length kernel", f"{size} bytes beside {weights}")
