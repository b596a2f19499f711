"""EXIF orientation: how a picture was held, read from its file and undone."""

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from imaging.pixels import Frame


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded picture, 1 (upright) where there is none."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block says nothing, and Pillow's parser raises almost anything
        return 1


def upright(frame: Frame, turn: int) -> Frame:
    """Undo an EXIF orientation in [1, 8]; any other value means 1, upright."""
    alpha = None if frame.alpha is None else _turned(frame.alpha, turn)
    return Frame(_turned(frame.pixels, turn), alpha)


def _turned(array: NDArray, turn: int) -> NDArray:
    if turn in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
