"""Encoders as a run uses them, against the packages' own forward passes on tensors already on the device."""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.report import Report, median_ratio, race, relative
from featurize.encoders import Encoder, build_encoder
from featurize.settings import ClapSettings, ClipSettings, TokenSettings

BATCHES = 8  # in a round
ROUNDS = 5
SHARE = 0.95  # target share of the package's own speed
TO_COMPARE = 4  # rows that are also encoded in float32 on the CPU


def images(report: Report) -> None:
    """CLIP's ViT-L/14 in float16 at batch 256, as featurize/configs/paper.yaml has it."""
    from featurize.encoders.clip import load_tower

    if report.tiny:
        settings = ClipSettings(encoder="clip:ViT-S-32/random", layer=-2, frames=(2,), batch=4)
    else:
        settings = ClipSettings(encoder="clip:ViT-L-14/random", layer=-2, frames=(32,), dtype="float16", batch=256)
    encoder: Any = build_encoder(settings)
    rng = np.random.default_rng(0)
    side = encoder.size
    count = 2 if report.tiny else BATCHES
    batches = [rng.integers(0, 256, (settings.batch, side, side, 3), np.uint8) for _ in range(count)]
    on_device = [
        ((torch.from_numpy(b).permute(0, 3, 1, 2).float().div(255).to(report.device) - encoder._mean) / encoder._std)
        .to(encoder.dtype).contiguous()
        for b in batches
    ]  # fmt: skip
    # up to the same block as ours
    options = {"indices": [encoder.block], "stop_early": True, "intermediates_only": True}
    speeds(
        report,
        "images",
        settings,
        encoder,
        batches,
        lambda n: encoder.tower.forward_intermediates(on_device[n], **options),
    )
    tower, *_ = load_tower(settings)
    pixels = on_device[0][:TO_COMPARE].float().cpu()
    outputs = tower.eval().forward_intermediates(
        pixels, indices=[encoder.block], intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
    )
    exact = torch.cat([outputs["image_intermediates_prefix"][0], outputs["image_intermediates"][0]], 1)
    compare(report, settings, encoder, batches[0], exact)


def sounds(report: Report) -> None:
    """CLAP's HTS-AT in float32 at batch 32, as featurize/configs/paper.yaml has it."""
    from featurize.encoders.clap import load_tower

    settings = ClapSettings(encoder="clap:HTSAT-tiny/random", segments=(4,), batch=1 if report.tiny else 32)
    encoder: Any = build_encoder(settings)
    rng = np.random.default_rng(0)
    shape = (settings.batch, encoder.config["clip_samples"])
    count = 1 if report.tiny else BATCHES
    batches = [0.1 * rng.standard_normal(shape, np.float32) for _ in range(count)]
    on_device = [torch.from_numpy(batch).to(report.device) for batch in batches]
    speeds(report, "segments", settings, encoder, batches,
           lambda n: encoder.tower({"waveform": on_device[n]}, device=report.device))  # fmt: skip
    tower, _ = load_tower(settings, False)
    exact = tower.eval()({"waveform": torch.from_numpy(batches[0][:TO_COMPARE])}, device=torch.device("cpu"))
    compare(report, settings, encoder, batches[0], exact["embedding"])


def speeds(
    report: Report,
    what: str,
    settings: TokenSettings,
    encoder: Encoder[Any],
    batches: Sequence[NDArray[Any]],
    forward: Any,
) -> None:
    """Time batches from host memory to tokens on the device, against the package's forward pass on the same batches."""

    def ours() -> None:
        for batch in batches:
            encoder.encode_padded(batch)

    @torch.inference_mode()
    def theirs() -> None:
        for number in range(len(batches)):
            forward(number)

    seconds = race({"ours": ours, "own": theirs}, report.device, 1 if report.tiny else ROUNDS)
    rows = sum(map(len, batches))
    rates = {name: rows / statistics.median(taken) for name, taken in seconds.items()}
    ratio = median_ratio(seconds["own"], seconds["ours"])
    report.measured(
        f"{settings.encoder}, {settings.dtype}, batch {settings.batch}: {what}/s (the package's own forward pass)",
        f"{rates['ours']:.0f} ({rates['own']:.0f}): {ratio:.2f}",
        f">= {SHARE}",
        ratio >= SHARE,
    )


def compare(
    report: Report, settings: TokenSettings, encoder: Encoder[Any], batch: NDArray[Any], exact: torch.Tensor
) -> None:
    """Compare tokens with the plain tower's in float32 on the CPU."""
    tokens = encoder.encode_padded(batch)[:TO_COMPARE]
    assert isinstance(tokens, torch.Tensor)
    error = relative(tokens.cpu()[: len(exact)], exact.detach())
    report.agrees(f"{settings.encoder}, {settings.dtype}: tokens against float32 on the CPU", error,
                  1e-2 if settings.dtype == "float16" else 1e-3)  # fmt: skip
