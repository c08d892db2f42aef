"""Stills, and the scaling of all frames."""

import contextlib
from collections.abc import Iterator, Sequence

import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from featurize.media.bounds import MAX_STILL_PIXELS, room
from featurize.media.errors import MediaError, blamed
from featurize.media.file import check_file
from featurize.media.frames import Frames

# Not all that Pillow can open: it starts Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
UNBOUNDED = ("I", "F")  # modes whose white is any number


def read_image(uri: str, sizes: Sequence[int]) -> Frames:
    """A still as a 1-frame video, upright by its EXIF orientation; of an animation the first frame.

    Raises:
        MediaError: the file is missing, empty, unreadable or too large.
    """
    check_file(uri)
    with _opened(uri) as image, room(image.width, image.height, MAX_STILL_PIXELS):
        with blamed("Pillow"):
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            upright = _rgb(image)
        pixels = {size: scale(upright, size)[None] for size in sizes}
    return Frames(pixels, np.zeros(1, np.int64), [0.0])


def scale(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """An RGB image stretched to uint8 [size, size, 3], bicubic, as the paper resizes frames (no crop)."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


@contextlib.contextmanager
def _opened(uri: str) -> Iterator[Image.Image]:
    with contextlib.ExitStack() as stack:
        with blamed("Pillow"):
            file = stack.enter_context(fsspec.open(uri, "rb"))
            try:
                image = stack.enter_context(Image.open(file, formats=FORMATS))
            except UnidentifiedImageError:
                raise MediaError("unreadable", f"Pillow: none of {', '.join(FORMATS)}") from None
            except Image.DecompressionBombError:
                raise MediaError("too_large", f"more than {MAX_STILL_PIXELS} pixels") from None
        yield image


def _rgb(image: Image.Image) -> Image.Image:
    """Three channels of 8 bits; Pillow alone would cut 16 bits off at 255, which turns most pixels white."""
    if image.mode in UNBOUNDED:
        raise MediaError("unreadable", f"pixels of mode {image.mode}, whose white is unknown")
    if image.mode in SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
