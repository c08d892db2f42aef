"""The input of CLAP's fusion weights: four spectrograms of a segment, and whether it is longer than the tower's 10 s.

Source: laion_clap/training/data.py, get_mel and get_audio_features. There the three stretches are drawn at random from
the thirds of the segment; here each is the middle one of its third. The whole is shrunk without antialiasing, as in
the torchvision that the published weights were trained with, and in transformers' ClapFeatureExtractor.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featurize.media import Sound

BLOCK_FRAMES = 6000  # spectrogram frames computed at once: a minute of sound


def fusion_mels(
    sound: Sound | NDArray[np.float32], start: int, end: int, config: Mapping[str, Any]
) -> tuple[NDArray[np.float32], bool]:
    """The spectrograms of a segment, in decibels, float32 [4, frames, mels], and whether it is over 10 s.

    A longer segment gives its whole shrunk to 10 s, then 10 s out of each third; one of 10 s gives itself four times.
    """
    mel = log_mel(sound, start, end, config)
    frames = config["clip_samples"] // config["hop_size"] + 1
    if len(mel) == frames:
        return np.stack([mel] * 4), False
    shrunk = torch.nn.functional.interpolate(torch.from_numpy(mel)[None, None], (frames, mel.shape[1]), mode="bilinear")
    return np.stack([shrunk[0, 0].numpy(), *(mel[at : at + frames] for at in stretches(len(mel) - frames + 1))]), True


def fuse_each(patches: Any) -> None:
    """Make a tower's patch embedding fuse each row by itself, in float32.

    laion-clap gathers the longer rows, so their rounding depends on their number, and it mixes dtypes under autocast.
    """
    embed = patches.forward

    def forward(image: torch.Tensor, longer_idx: torch.Tensor) -> torch.Tensor:
        with torch.autocast(image.device.type, enabled=False):
            plain = embed(image, longer_idx=[])
            fused = embed(image, longer_idx=torch.arange(len(image), device=image.device))
        longer = torch.zeros(len(image), 1, 1, dtype=torch.bool, device=image.device)
        longer[longer_idx] = True
        return torch.where(longer, fused, plain)

    patches.forward = forward


def stretches(places: int) -> list[int]:
    """Where the three stretches begin: the middle of each third of the possible places, or 0 for an empty third."""
    thirds = np.array_split(np.arange(places), 3)
    return [int(third[len(third) // 2]) if len(third) else 0 for third in thirds]


def log_mel(sound: Sound | NDArray[np.float32], start: int, end: int, config: Mapping[str, Any]) -> NDArray[np.float32]:
    """HTK mel spectrogram of samples `start` to `end`, in decibels, float32 [1 + samples // hop, mels].

    Computed in blocks, so that a long sound is never whole in memory.
    """
    frames = (end - start) // config["hop_size"] + 1
    blocks = np.array_split(np.arange(frames), -(-frames // BLOCK_FRAMES))
    return np.concatenate([_block(sound, start, end, block[0], block[-1], config) for block in blocks])


def _block(
    sound: Sound | NDArray[np.float32], start: int, end: int, first: int, last: int, config: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Frames `first` to `last`; each window is centred on its frame, and the segment is reflected at its ends."""
    window, hop = config["window_size"], config["hop_size"]
    left, right = start + first * hop - window // 2, start + last * hop + window // 2
    low, high = max(left, start), min(right, end)
    samples = np.pad(sound[low:high], (low - left, right - high), mode="reflect")
    spectrum = torch.stft(
        torch.from_numpy(samples), window, hop, window=torch.hann_window(window), center=False, return_complex=True
    )
    bank = _bank(window, config["mel_bins"], config["fmin"], config["fmax"], config["sample_rate"])
    mel = torch.from_numpy(bank).T @ spectrum.abs().square()
    return np.asarray((10 * mel.clamp(min=1e-10).log10()).T.numpy())


@cache
def _bank(window: int, mels: int, low: int, high: int, rate: int) -> NDArray[np.float32]:
    from transformers.audio_utils import mel_filter_bank  # takes a second to import; only fusion needs it

    bank = mel_filter_bank(window // 2 + 1, mels, low, high, rate, norm=None, mel_scale="htk")
    return np.asarray(bank, np.float32)
