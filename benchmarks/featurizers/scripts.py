"""The peers: what a user would write with each library, after its documentation.

    python -m benchmarks.featurizers.scripts torchcodec CLIPS OUT ViT-S-32

Each takes the frames or segments that `featurize run` takes, encodes them with as many blocks of seeded random weights,
keeps class tokens and the mean of patch tokens as float16, and prints a line for each encoded clip. Torch uses its
default number of threads.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FRAMES, SEGMENTS = 8, 4
SIDE = 224
WIDTHS = {"ViT-S-32": 384, "ViT-B-16": 768}  # of CLIPVisionModel; a head is 64 wide, an MLP four times the width


def torchcodec_script(clips: Path, out: Path, architecture: str) -> None:
    """torchcodec: a decoder for each file, frames by number, resized as they are decoded; open_clip encodes."""
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    encode = _open_clip(architecture)
    for clip in sorted(clips.iterdir()):
        decoder = VideoDecoder(str(clip), transforms=[Resize((SIDE, SIDE))])
        _save(out, clip, encode(decoder.get_frames_at(chosen(len(decoder))).data))


def decord_script(clips: Path, out: Path, architecture: str) -> None:
    """decord: a reader that resizes, and one batch of frames by number; open_clip encodes.

    It decodes with one thread: with decord's default number it stops at VP9 films (dmlc/decord#246).
    """
    import decord

    decord.bridge.set_bridge("torch")
    encode = _open_clip(architecture)
    for clip in sorted(clips.iterdir()):
        reader = decord.VideoReader(str(clip), width=SIDE, height=SIDE, num_threads=1)
        _save(out, clip, encode(reader.get_batch(chosen(len(reader))).permute(0, 3, 1, 2)))


def datasets_script(clips: Path, out: Path, architecture: str) -> None:
    """Hugging Face: a data set of videos, mapped through CLIP's image processor and CLIPVisionModel."""
    import torch
    from datasets import Dataset, Video
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    width = WIDTHS[architecture]
    config = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
        num_hidden_layers=12,
        patch_size=int(architecture.rpartition("-")[2]),
    )
    model: Any = CLIPVisionModel(config)
    model.eval()
    processor = CLIPImageProcessor()

    @torch.inference_mode()
    def encode(row: dict[str, Any]) -> dict[str, Any]:
        video = row["video"]
        frames = video.get_frames_at(chosen(len(video))).data
        tokens = model(**processor(frames, return_tensors="pt")).last_hidden_state
        print("encoded", flush=True)
        return {"temporal": tokens[:, 0].half().numpy(), "spatial": tokens[:, 1:].mean(0).half().numpy()}

    dataset = Dataset.from_dict({"video": [str(clip) for clip in sorted(clips.iterdir())]})
    dataset = dataset.cast_column("video", Video())
    dataset.map(encode, remove_columns="video").save_to_disk(out / "features")


def librosa_script(clips: Path, out: Path, architecture: str) -> None:
    """librosa loads the sound of a film, by the ffmpeg command; transformers' CLAP takes it in even segments."""
    import librosa
    import numpy as np
    import torch
    from transformers import ClapAudioConfig, ClapAudioModel, ClapFeatureExtractor

    torch.manual_seed(0)
    model: Any = ClapAudioModel(ClapAudioConfig())
    model.eval()
    extractor: Any = ClapFeatureExtractor(truncation="rand_trunc")
    for clip in sorted(clips.iterdir()):
        samples, rate = librosa.load(clip, sr=extractor.sampling_rate)
        inputs = extractor(np.array_split(samples, SEGMENTS), sampling_rate=rate, return_tensors="pt")
        with torch.inference_mode():
            _save(out, clip, {"audio": model(**inputs).pooler_output})


def chosen(total: int) -> list[int]:
    """The indices of the frames that `featurize run` takes."""
    return [i * total // FRAMES for i in range(FRAMES)]


def _open_clip(architecture: str) -> Callable[[Any], dict[str, Any]]:
    """A function from a clip's frames, uint8 [T, 3, 224, 224], to its arrays."""
    import open_clip
    import torch

    torch.manual_seed(0)
    tower = open_clip.create_model(architecture).visual.eval()
    tower.output_tokens = True
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))

    @torch.inference_mode()
    def encode(frames: Any) -> dict[str, Any]:
        pooled, patches = tower((frames.float() / 255 - mean) / std)
        return {"temporal": pooled, "spatial": patches.mean(0)}

    return encode


def _save(out: Path, clip: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    np.savez(out / f"{clip.stem}.npz", **{name: array.half().numpy() for name, array in arrays.items()})
    print("encoded", flush=True)


SCRIPTS = {
    "torchcodec": torchcodec_script,
    "datasets": datasets_script,
    "decord": decord_script,
    "librosa": librosa_script,
}

if __name__ == "__main__":
    name, clips, out, architecture = sys.argv[1:]
    SCRIPTS[name](Path(clips), Path(out), architecture)
