"""Pictures as JPEG files that say in their comment what they were made from."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from pbe_model.atomic import replacing

_QUALITY = 85
_NOISE = 16
"""Grey levels by which encoders of one picture, or two runs of one browser, differ at most."""


def write_jpeg(path: Path, picture: Image.Image, marks: dict[str, str]) -> bool:
    """Write a picture, unless the file shows the same already.

    Args:
        path: replaced whole or not at all.
        picture: RGB.
        marks: what it was made from, by name.

    Returns:
        Whether the file has changed.

    Raises:
        ValueError: `path` cannot be written.
    """
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=_QUALITY, optimize=True, comment=json.dumps(marks))
    if path.is_file() and read_marks(path) == marks:
        with Image.open(path) as before, Image.open(encoded) as after:
            if before.size == after.size and _difference(before, after) <= _NOISE:
                return False
    with replacing(path) as part:
        part.write_bytes(encoded.getvalue())
    return True


def read_marks(path: Path) -> dict[str, str]:
    """What `write_jpeg` stored in a file; empty for any other picture."""
    with Image.open(path) as picture:
        comment = picture.info.get("comment", b"{}")
    try:
        return json.loads(comment)
    except ValueError:  # somebody else's comment
        return {}


def _difference(one: Image.Image, other: Image.Image) -> int:
    """Largest difference of two pictures of one size, in grey levels."""
    pixels = (np.asarray(picture.convert("RGB"), np.int16) for picture in (one, other))
    return int(np.abs(next(pixels) - next(pixels)).max())
