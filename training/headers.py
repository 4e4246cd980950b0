"""Sizes of photos from the first bytes of their files."""

from __future__ import annotations

import struct
from pathlib import Path

from PIL import ExifTags, Image, UnidentifiedImageError

_ON_ITS_SIDE = 5  # EXIF orientations from here on exchange width and height


def photo_size(path: Path) -> tuple[int, int]:
    """Width and height of a photo as `decode_photo` gives it, upright, without decoding it.

    Raises:
        OSError: No such file, no picture, or a header that is damaged or claims too many pixels.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= _ON_ITS_SIDE
            if turned and image.format != "TIFF":  # Pillow states that of a TIFF upright already
                return image.height, image.width
            return image.width, image.height
    except FileNotFoundError as error:
        raise OSError("no such file") from error
    except UnidentifiedImageError as error:
        empty = not path.stat().st_size
        raise OSError("empty file" if empty else "not a picture of a known format") from error
    except Image.DecompressionBombError as error:
        raise OSError("too many pixels") from error
    except (SyntaxError, ValueError, TypeError, LookupError, struct.error) as error:
        raise OSError(f"damaged header ({error})") from error
