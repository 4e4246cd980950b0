"""Sizes of photos from the first bytes of their files, and the bytes of whole files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

from pbe_model.picture_headers import DECODER_ERRORS, MAX_BYTES, open_picture
from pbe_model.untrusted import first_line, open_regular, read_bytes

_ON_ITS_SIDE = 5  # EXIF orientations from here on exchange width and height


def photo_size(path: Path) -> tuple[int, int]:
    """Width and height of a photo as `decode_photo` gives it, upright, without decoding it.

    Raises:
        OSError: No such file, no picture, or a header that is damaged or claims too many pixels.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise OSError("no such file") from error
    except ValueError as error:  # not a regular file, or a name that no file has
        raise OSError(first_line(error)) from error
    with file, photo_header(file) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= _ON_ITS_SIDE
        if turned and image.format != "TIFF":  # Pillow states that of a TIFF upright already
            return image.height, image.width
        return image.width, image.height


@contextmanager
def photo_header(file: BinaryIO) -> Iterator[Image.Image]:
    """A photo of which only the header has been read, while one looks at that.

    Raises:
        OSError: Not a picture of a known format, damaged, or with too many pixels to be decoded;
            also where looking at it shows the damage.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of quirks, and from 89 megapixels on
            with open_picture(file) as image:
                yield image
    except UnidentifiedImageError as error:
        empty = not file.seek(0, 2)
        raise OSError("empty file" if empty else "not a picture of a known format") from error
    except Image.DecompressionBombError as error:
        raise OSError("too many pixels") from error
    except DECODER_ERRORS as error:
        raise OSError(f"damaged header ({first_line(error)})") from error


def read_photo(path: Path) -> bytes:
    """All bytes of a photo's file.

    Raises:
        OSError: No such file, not a regular one (a pipe would block), or too large for a photo.
    """
    try:
        return read_bytes(path, MAX_BYTES)
    except ValueError as error:
        raise OSError(first_line(error)) from error
