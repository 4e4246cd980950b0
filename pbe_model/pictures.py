"""Picture files decoded, for edits and for training: one meaning of every format.

- Upright: EXIF orientations are applied.
- Colours become sRGB by the picture's profile, see `colour_profiles`.
- Opacity is kept apart; pictures without it, or opaque everywhere, have none.
- 16-bit grey is divided by 65,535; colours of 16 bits keep the upper eight.
- Floating point is from 0 to 1, and highlights beyond are cut. Where more values lie above 1 than
  between 0 and 1, it is 8 or 16 bits stored as floating point; so are whole numbers of 32 bits.
- An animation is its first frame.

Files are untrusted: what may be decoded is decided in `picture_headers`.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from .colour_profiles import to_srgb
from .picture_headers import (
    UnsupportedPicture,
    check_jpeg_scans,
    open_picture,
    orientation,
)
from .side_information import read_leniently

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SCALES = (255, 65535)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pixels:
    """A decoded picture.

    Attributes:
        colour: (H, W, 3), uint8, or float32 in [0, 1] where the file has one channel of more than
            8 bits.
        alpha: (H, W) uint8, 255 = opaque; None where all is opaque.
    """

    colour: np.ndarray
    alpha: np.ndarray | None

    def over_white(self) -> np.ndarray:
        """(H, W, 3) uint8, what is transparent on white."""
        colour = self.colour
        if colour.dtype != np.uint8:
            colour = np.rint(colour * 255).astype(np.uint8)
        if self.alpha is None:
            return colour
        alpha = self.alpha[..., None].astype(np.uint16)
        return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def decode_picture(file: BinaryIO, *, managed: bool = True) -> Pixels:
    """Decode a picture file.

    Args:
        file: Seekable, any format of `picture_headers.FORMATS`.
        managed: Convert colours to sRGB; False takes the stored numbers, as masks need it.

    Raises:
        Exception: As `open_picture`; or `UnsupportedPicture`: numbers without a known white.
    """
    with quiet_decoders():
        return read_leniently(file, lambda file: _decode(file, managed))


def _decode(file: BinaryIO, managed: bool) -> Pixels:
    with open_picture(file) as picture:
        if picture.format in ("JPEG", "MPO"):
            file.seek(0)
            check_jpeg_scans(file.read(), picture.width * picture.height)
        with _quiet_libtiff() if picture.format == "TIFF" else nullcontext():
            picture.load()
        upright = turned(picture, orientation(picture))
        profile = picture.info.get("icc_profile") if managed else None
        whole_numbers = picture.format == "TIFF" and picture.mode == "I"
        transparency = picture.info.get("transparency")
    if upright.mode == "F" or upright.mode.startswith("I"):
        return _of_one_channel(upright, whole_numbers, transparency)
    return _of_eight_bits(upright, profile)


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """A picture upright, by its EXIF orientation from 1 to 8."""
    return picture if orientation == 1 else picture.transpose(_TURNS[orientation])


def _of_eight_bits(picture: Image.Image, profile: bytes | None) -> Pixels:
    alpha = None
    if picture.has_transparency_data:
        mode = "LA" if picture.mode in ("L", "LA", "La", "1") else "RGBA"
        if picture.mode != mode:
            picture = picture.convert(mode)
        opacity = np.array(picture.getchannel("A"))
        alpha = None if opacity.min() == 255 else opacity
        picture = picture.convert(mode.removesuffix("A"))
    elif picture.mode == "1":
        picture = picture.convert("L")
    elif picture.mode not in ("RGB", "L", "CMYK", "LAB"):
        picture = picture.convert("RGB")
    return Pixels(colour=np.array(to_srgb(picture, profile)), alpha=alpha)


def _of_one_channel(picture: Image.Image, whole_numbers: bool, transparency: object) -> Pixels:
    numbers = np.asarray(picture)
    if picture.mode == "F":
        grey = _scaled(numbers)
    elif whole_numbers:
        low, high = int(numbers.min()), int(numbers.max())
        scale = next((scale for scale in _SCALES if high <= scale), None)
        if low < 0 or scale is None:
            raise UnsupportedPicture(
                f"its numbers are of 32 bits, from {low:,} to {high:,}, and which of them is white "
                "is not known; save it with 8 or 16 bits"
            )
        grey = numbers / np.float32(scale)
    else:
        grey = numbers / np.float32(65535)
    see_through = isinstance(transparency, int) and numbers == transparency
    alpha = np.where(see_through, 0, 255).astype(np.uint8) if np.any(see_through) else None
    colour = np.ascontiguousarray(np.broadcast_to(grey[..., None], (*grey.shape, 3)), np.float32)
    return Pixels(colour=colour, alpha=alpha)


def _scaled(numbers: np.ndarray) -> np.ndarray:
    """Floating point of unknown range, in [0, 1]; NaN is black."""
    with np.errstate(invalid="ignore"):
        above = (numbers > 1) & np.isfinite(numbers)
        between = (numbers > 0) & (numbers < 1)
    scale = 1
    if above.sum() > between.sum():
        high = float(numbers[above].max())
        if high > _SCALES[-1]:
            raise UnsupportedPicture(
                f"its numbers are floating point of up to {high:g}, and which of them is white is "
                "not known; save it with numbers from 0 to 1"
            )
        scale = next(scale for scale in _SCALES if high <= scale)
    return np.clip(np.nan_to_num(numbers / np.float32(scale), nan=0), 0, 1)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Suppress what decoders print about damaged files; the error says it, in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger = logging.getLogger("PIL")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """Suppress what libtiff writes to the process's standard error directly."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
