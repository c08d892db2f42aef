"""Import Video-ChatGPT's features: one pickle per video, named by video id, with one float16 array [T + N, D].

The first T = 100 rows are temporal tokens: the mean over the patches of each frame, padded with zero rows if the video
has fewer frames. The other N = 256 rows are spatial tokens: the mean of each patch over the frames. The source is
scripts/save_spatio_temporal_clip_features.py of Video-ChatGPT (Maaz et al., 2023); CLIP ViT-L/14 at layer -2.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import JsonValue

from store.errors import UserError
from store.exchange.importing import Foreign, UnusableError, digest_files, little_endian, make_spec
from store.exchange.pickles import load_array
from store.reader import Arrays

FRAMES = 100
SUFFIX = ".pkl"


def find_pickles(folder: Path) -> list[Path]:
    """The pickles of a folder, sorted by name.

    Raises:
        UserError: the folder has no pickles.
    """
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise UserError(f"{folder}: holds no {SUFFIX} files; expected Video-ChatGPT's folder of features")
    return paths


def read_video_chatgpt(paths: Iterable[Path], name: str, advance: Callable[[int], None]) -> Foreign:
    """Describe the pickles as a column with the features `temporal` [up to 100, D] and `spatial.t100` [N, D].

    The first readable pickle determines the shapes. The zero rows that pad the temporal tokens are dropped.

    Raises:
        UserError: no pickle holds such an array, or a pickle names a function to run.
    """
    by_id = {path.name.removesuffix(SUFFIX): path for path in paths}
    rows, width, dtype = _first_shape(by_id.values())
    features = {
        "temporal": {"shape": (None, width), "dtype": dtype},
        f"spatial.t{FRAMES}": {"shape": (rows - FRAMES, width), "dtype": dtype},
    }
    numerics = {"imported": "video-chatgpt", "sources": digest_files(by_id.values(), advance)}
    spec = make_spec(name=name, modality="visual", numerics=numerics, features=features)

    def load(video: str) -> tuple[Arrays, dict[str, JsonValue]]:
        return _split(by_id[video], rows), {}

    return Foreign(spec, {video: str(path.absolute()) for video, path in by_id.items()}, load)


def _first_shape(paths: Iterable[Path]) -> tuple[int, int, str]:
    reason = ""
    for path in paths:
        try:
            array = load_array(path)
        except UnusableError as error:
            reason = reason or f"{path}: {error.reason}"
            continue
        if array.ndim == 2 and array.shape[0] > FRAMES:
            return array.shape[0], array.shape[1], str(array.dtype)
        reason = reason or f"{path}: an array {list(array.shape)}"
    raise UserError(f"{reason}; expected float16 [{FRAMES} temporal + N spatial, D] as Video-ChatGPT writes it")


def _split(path: Path, rows: int) -> Arrays:
    array = little_endian(load_array(path))
    if array.ndim != 2 or array.shape[0] != rows:
        raise UnusableError("unreadable", f"an array {list(array.shape)}, where the others have {rows} rows")
    frames = array[:FRAMES].any(axis=1).nonzero()[0]
    if not len(frames):
        raise UnusableError("unreadable", "all its temporal rows are zero")
    return {"temporal": array[: frames[-1] + 1], f"spatial.t{FRAMES}": array[FRAMES:]}
