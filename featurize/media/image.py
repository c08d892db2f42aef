"""Read stills, and scale frames."""

import contextlib
from collections.abc import Iterator, Sequence

import fsspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from featurize.media.bounds import MAX_STILL_PIXELS, room
from featurize.media.cut import still_is_truncated
from featurize.media.errors import MediaError, blamed
from featurize.media.file import check_file
from featurize.media.frames import Frames

# Not every format of Pillow's: for EPS it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "PPM")
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
MAX_STILL_BYTES = 1 << 28  # searched for the end of a picture
UNBOUNDED = ("I", "F")  # modes without a defined white level


def read_image(uri: str, sizes: Sequence[int]) -> Frames:
    """A still as a one-frame video, turned upright by its EXIF orientation; the first frame of an animation.

    Raises:
        MediaError: the file is missing, empty, unreadable, truncated or too large.
    """
    check_file(uri)
    with open_image(uri) as image, room(image.width, image.height, MAX_STILL_PIXELS):
        with _pillow(uri):
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            upright = _rgb(image)
        pixels = {size: scale(upright, size)[None] for size in sizes}
    return Frames(pixels, np.zeros(1, np.int64), [0.0])


def scale(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """An RGB image stretched to uint8 [size, size, 3], bicubic, as the paper resizes frames (no crop)."""
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


@contextlib.contextmanager
def open_image(uri: str) -> Iterator[Image.Image]:
    """Open a still and read its header.

    Raises:
        MediaError: the file is missing, unreadable, truncated or too large.
    """
    with contextlib.ExitStack() as stack:
        with _pillow(uri):
            file = stack.enter_context(fsspec.open(uri, "rb"))
            try:
                image = stack.enter_context(Image.open(file, formats=FORMATS))
            except UnidentifiedImageError:
                raise MediaError("unreadable", f"Pillow: none of {', '.join(FORMATS)}") from None
            except Image.DecompressionBombError:
                raise MediaError("too_large", f"more than {MAX_STILL_PIXELS} pixels") from None
        yield image


@contextlib.contextmanager
def _pillow(uri: str) -> Iterator[None]:
    """Turn Pillow's errors into `MediaError`s: `truncated` if the file lacks its end, whatever Pillow says."""
    try:
        with blamed("Pillow"):
            yield
    except MediaError as error:
        if error.code == "unreadable" and _ends_early(uri):
            raise MediaError("truncated", "Pillow: the file ends before its picture does") from None
        raise


def _ends_early(uri: str) -> bool:
    with blamed("Pillow"), fsspec.open(uri, "rb") as file:
        return still_is_truncated(file.read(MAX_STILL_BYTES))


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB. Pillow alone would clip 16 bits at 255, turning most pixels white."""
    if image.mode in UNBOUNDED:
        raise MediaError("unreadable", f"pixels of mode {image.mode}, whose white is unknown")
    if image.mode in SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
