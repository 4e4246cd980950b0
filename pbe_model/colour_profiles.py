"""Colour profiles: pictures in any colours as sRGB, which is what models know and screens expect.

A profile is taken for sRGB if converting with it moves no colour by more than two levels: then the
pixels stay as they are, to the last bit. One that is damaged, or of another kind of colours than
the picture, is ignored, and so is every profile where Pillow was built without LittleCMS.
"""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms, features

_MOST_BYTES = 2**22  # of a profile; those for printing have some 2 MB
_KINDS = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
_ROUNDING = 2  # levels


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """A picture in sRGB.

    Args:
        picture: Mode RGB, L, CMYK or LAB.
        profile: What its colours mean; None or nonsense takes them as they are.

    Returns:
        Mode RGB; the picture itself where it is RGB already and need not be changed.
    """
    transform = _transform(profile, picture.mode)
    if transform is not None:
        return ImageCms.applyTransform(picture, transform)  # type: ignore[return-value]
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def is_srgb(profile: bytes | None, mode: str = "RGB") -> bool:
    """Whether `to_srgb` leaves the colours of a picture as they are."""
    return _transform(profile, mode) is None


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes | None, mode: str) -> Any:
    """The way to sRGB, or None where there is nothing to do."""
    if not features.check("littlecms2"):
        return None
    srgb = ImageCms.createProfile("sRGB")
    if mode == "LAB":  # by itself: there is no other way in Pillow
        return ImageCms.buildTransform(ImageCms.createProfile("LAB"), srgb, mode, "RGB")
    if not profile or len(profile) > _MOST_BYTES:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if getattr(source.profile, "xcolor_space", "").strip() != _KINDS[mode]:
            return None
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
        if mode == "CMYK":
            return transform
        probe = _probe(mode)
        moved = np.asarray(ImageCms.applyTransform(probe, transform), np.int16)
        expected = np.asarray(probe.convert("RGB"), np.int16)
        return None if abs(moved - expected).max() <= _ROUNDING else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _probe(mode: str) -> Image.Image:
    """Colours all over the range, with all levels of grey."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    grey = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, -1)
    return Image.fromarray(np.concatenate([cube, grey], 1))
