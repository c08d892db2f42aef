"""Turn and mirror a picture upright."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

STRAIGHT = 60  # an axis this many times as long in one direction as in the other is turned by right angles


def upright(image: Image.Image, matrix: NDArray[np.int32], angle: int) -> Image.Image:
    """Apply a display matrix [9]: the eight orientations exactly, other angles approximately.

    The matrix maps (x, y) to (a x + c y, b x + d y), y downwards, with a, b in its first row and c, d in its second.
    `angle` is its rotation in degrees, counterclockwise.
    """
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if min(abs(a), abs(d)) > STRAIGHT * max(abs(b), abs(c)):
        return _mirrored(image, a < 0, d < 0)
    if min(abs(b), abs(c)) > STRAIGHT * max(abs(a), abs(d)):
        return _mirrored(image.transpose(Image.Transpose.TRANSPOSE), c < 0, b < 0)
    return image.rotate(angle, expand=True) if angle else image


def _mirrored(image: Image.Image, across: bool, down: bool) -> Image.Image:
    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if across else image
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if down else image
