"""CLIP: any visual tower of open_clip. Temporal tokens, and spatial tokens for every T of the grid.

Dimensions: T frames of the grid, U distinct frames, N patches, D width.
"""

import difflib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from featurize.encoders.base import MediaCache, TokenEncoder, Units, download, load_state, load_strict, weights_digest
from featurize.encoders.modules import folder_of, module_of
from featurize.settings import ClipSettings, is_path
from store import Arrays, ColumnSpec, Feature, MediaItem, UserError

PACKAGE = folder_of("open_clip")
pretrained = module_of(PACKAGE, "pretrained")
model = module_of(PACKAGE, "model", without=("timm", "transformers"))


class ClipEncoder(TokenEncoder[ClipSettings]):
    """Frames through the blocks of a visual tower, up to one layer, without the final norm.

    Temporal tokens E_t are the class token of each frame, spatial tokens E_s the patch tokens averaged over the frames
    (paper, section 3.1); with `pooling: mean`, E_t are the mean of each frame's patches. The layer is a setting since
    the paper is silent on it; -2 is LLaVA's and Valley's.
    """

    def __init__(self, settings: ClipSettings) -> None:
        super().__init__(settings)
        self.tower, self.mean, self.std = load_tower(settings)
        digest = weights_digest(self.tower.state_dict())
        self.tower.eval().requires_grad_(False).to(self.device, self.dtype)
        self._mean, self._std = (torch.tensor(x, device=self.device).view(1, 3, 1, 1) for x in (self.mean, self.std))
        self.size = side = _square(self.tower.image_size, settings.encoder)
        self.frame_count = settings.frames[-1]
        self.block = self._block(settings.layer)
        probe = self.encode(np.zeros((1, side, side, 3), np.uint8))
        patches, width = probe.shape[1] - 1, probe.shape[2]
        features = {"temporal": Feature(shape=(None, width), dtype=settings.stored)}
        for count in settings.frames:
            features[f"spatial.t{count}"] = Feature(shape=(patches, width), dtype=settings.stored)
        self.spec = ColumnSpec(
            name=settings.column,
            modality="visual",
            numerics={
                "version": settings.numerics,
                "architecture": settings.architecture,
                "weights": digest,
                "block": self.block,
                "pooling": settings.pooling,
                "preprocessing": {"resize": "stretch-bicubic", "size": side, "mean": self.mean, "std": self.std},
                "grid": "floor(i*n/T)",
                "frames": list(settings.frames),
                "dtype": settings.dtype,
                "batch": settings.batch,
            },
            features=features,
        )

    def prepare(self, item: MediaItem, media: MediaCache) -> Units:
        """Frames as uint8 rows [U, size, size, 3]."""
        frames = media.frames(self.size, self.frame_count)
        return Units(frames.pixels[self.size], frames.index, frames.facts)

    @torch.inference_mode()
    def encode(self, rows: NDArray[Any]) -> torch.Tensor:
        """Frames uint8 [b, size, size, 3] to tokens float32 [b, 1 + N, D]: the temporal token, then the patches."""
        pixels = self.transfers.upload(rows).permute(0, 3, 1, 2).to(torch.float32)
        pixels.div_(255).sub_(self._mean).div_(self._std)  # in place: allocating costs as much as the arithmetic
        outputs = self.tower.forward_intermediates(
            pixels.to(self.dtype),
            indices=[self.block],
            stop_early=True,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        patches = outputs["image_intermediates"][0]
        if self.settings.pooling == "mean":
            first = patches.mean(1, keepdim=True)
        elif "image_intermediates_prefix" in outputs and outputs["image_intermediates_prefix"][0].shape[1]:
            first = outputs["image_intermediates_prefix"][0][:, :1]
        else:
            raise UserError(f"{self.settings.encoder}: this tower has no class token; set pooling: mean")
        return torch.cat([first, patches], 1).float()

    def collect(self, rows: Sequence[torch.Tensor], index: NDArray[np.int64]) -> Arrays:
        """Temporal [T, D] at the finest T; spatial.tX [N, D] for each X of the grid; a still has the same for all."""
        tokens = torch.stack(list(rows))
        places = torch.from_numpy(index).to(tokens.device)
        arrays = {"temporal": self.store(tokens[places, 0])}
        for count in self.settings.frames:
            step = max(1, len(index) // count)
            arrays[f"spatial.t{count}"] = self.store(tokens[places[::step], 1:].mean(0))
        return arrays

    def _block(self, layer: int) -> int:
        trunk = getattr(self.tower, "trunk", None)
        blocks = getattr(trunk, "blocks", None) if trunk is not None else self.tower.transformer.resblocks
        if blocks is None:
            raise UserError(f"{self.settings.encoder}: not a vision transformer; its tokens have no layers to choose")
        block = len(blocks) + layer if layer < 0 else layer - 1
        if not 0 <= block < len(blocks):
            raise UserError(f"field 'layer': {layer}; accepted: 1 to {len(blocks)}, or -1 to -{len(blocks)}")
        return block


def load_tower(settings: ClipSettings) -> tuple[Any, list[JsonValue], list[JsonValue]]:
    """The visual tower alone, in float32 on the CPU, and the mean and deviation its pixels are normalised with.

    Raises:
        UserError: the architecture or its weights are unknown.
    """
    path = PACKAGE / "model_configs" / f"{settings.architecture}.json"
    if not path.is_file():
        near = difflib.get_close_matches(settings.architecture, [file.stem for file in path.parent.glob("*.json")], 3)
        known = f"near are {', '.join(near)}" if near else "see its list_models()"
        raise UserError(f"field 'encoder': open_clip has no architecture {settings.architecture!r}; {known}")
    config = json.loads(path.read_text())
    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    tags = pretrained.list_pretrained_tags_by_model(settings.architecture)
    published = pretrained.get_pretrained_cfg(
        settings.architecture, settings.weights if settings.weights in tags else ""
    )
    pixel_config = published or (pretrained.get_pretrained_cfg(settings.architecture, tags[0]) if tags else {})
    quick_gelu = published.get("quick_gelu", config.get("quick_gelu", False))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(settings.seed)
        tower = _model(vision)._build_vision_tower(config["embed_dim"], vision, quick_gelu=quick_gelu)
    if not hasattr(tower, "forward_intermediates") or not (hasattr(tower, "transformer") or hasattr(tower, "trunk")):
        raise UserError(f"{settings.encoder}: not a vision transformer; its tokens have no layers to choose")
    if settings.weights != "random":
        load_strict(tower, _published_state(settings, tags, published), settings.encoder)
    mean = pixel_config.get("mean") or pretrained.OPENAI_DATASET_MEAN
    std = pixel_config.get("std") or pretrained.OPENAI_DATASET_STD
    return tower, [float(x) for x in mean], [float(x) for x in std]


def _model(vision: dict[str, Any]) -> Any:
    """open_clip's module that builds towers; timm's towers need all of open_clip."""
    if "timm_model_name" not in vision:
        return model
    import open_clip.model

    return open_clip.model


def _published_state(settings: ClipSettings, tags: list[str], published: dict[str, Any]) -> dict[str, torch.Tensor]:
    if is_path(settings.weights):
        path = settings.weights
    elif settings.weights in tags:
        path = download(settings.encoder, lambda: pretrained.download_pretrained(published))
    else:
        raise UserError(
            f"field 'encoder': {settings.architecture} has no weights {settings.weights!r}; "
            f"accepted: random, the path of a checkpoint, {', '.join(tags)}"
        )
    state = load_state(path)
    return {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}


def _square(size: Any, encoder: str) -> int:
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if height != width:
        raise UserError(f"{encoder}: takes frames of {height} x {width}; only square frames are supported")
    return int(height)
