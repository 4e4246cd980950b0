"""Photos as training reads them: upright RGB pixels, sizes alone, and errors that say why not.

JPEG goes through simplejpeg (libjpeg-turbo), everything else through OpenCV. Their pixels are the
same, but `cv2.imdecode` decodes into memory of its own and copies from there: it took 1.1 to 1.8
times as long at 1024 x 768, the more the slower the system hands out fresh pages.

What decoding would take is read off the header first: a few bytes may ask for gigabytes, or hours.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, UnidentifiedImageError

from pbe_model.picture_headers import (
    DECODER_ERRORS,
    JPEG_START,
    MAX_BYTES,
    check_jpeg_scans,
    open_picture,
    pixel_limit,
)
from pbe_model.untrusted import first_line, open_regular, read_bytes

JPEG_END = b"\xff\xd9"
_FILL, _SCAN = 0xFF, 0xDA
_SEGMENT = struct.Struct(">BBH").unpack_from
_SEQUENTIAL = frozenset((0xC0, 0xC1))  # kinds of frames
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
_MOST_SEGMENTS = 2**16
_ON_ITS_SIDE = 5  # EXIF orientations from here on exchange width and height


def decode_photo(data: bytes) -> np.ndarray:
    """Decode a photo, turned upright by its EXIF orientation.

    Args:
        data: The whole file, in any of `pbe_model.image_io.FORMATS` that OpenCV reads.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        OSError: The bytes are no image or, for JPEG, end before the image does; or they ask for
            more than any photo takes to decode.
    """
    if data.startswith(JPEG_START):
        # Decoders fill what is missing from a JPEG with grey. The end marker may be followed by a
        # maker's trailer, and an embedded thumbnail has one of its own near the start.
        if data.rfind(JPEG_END, len(data) // 2) < 0:
            raise OSError("truncated JPEG")
        header_length, is_only_scan = _first_scan(data)
        _check_jpeg(data, is_only_scan)
        if not _may_be_turned(data, header_length):
            try:
                return simplejpeg.decode_jpeg(data, "RGB", strict=False)
            except ValueError:
                pass  # CMYK, for instance: OpenCV reads some files that simplejpeg does not
    else:
        with photo_header(io.BytesIO(data)):
            pass  # one of the formats that are read, and not too many pixels
    try:
        photo = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error as error:
        raise OSError(f"not a readable image ({first_line(error)})") from error
    if photo is None:
        raise OSError("not a readable image")
    return photo


def _check_jpeg(jpeg: bytes, is_only_scan: bool) -> None:
    """Refuse more pixels than may be decoded, and to go through them over and over again."""
    try:
        height, width = map(int, simplejpeg.decode_jpeg_header(jpeg, strict=False)[:2])
    except ValueError:
        with photo_header(io.BytesIO(jpeg)) as header:
            width, height = header.size
    if width * height > pixel_limit(len(jpeg)):
        raise OSError("too many pixels")
    if not is_only_scan:
        check_jpeg_scans(jpeg, width * height)


def _may_be_turned(jpeg: bytes, header_length: int) -> bool:
    """Whether EXIF asks for a turn or a flip, which OpenCV does on the way."""
    if jpeg.find(b"Exif\0\0", 0, header_length) < 0:
        return False
    try:
        with photo_header(io.BytesIO(jpeg)) as header:
            return header.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except OSError:
        return True


def _first_scan(jpeg: bytes) -> tuple[int, bool]:
    """Where the first scan starts (at the end if in doubt), and whether it is surely the only one.

    Before it are segments, each a marker and its length.
    """
    position, frame, last = len(JPEG_START), 0, len(jpeg) - 5
    for _ in range(_MOST_SEGMENTS):
        if position > last:
            break
        fill, marker, length = _SEGMENT(jpeg, position)
        if fill != _FILL or marker in _WITHOUT_LENGTH:
            break
        if marker == _SCAN:  # the only one if it is of all components and the frame not progressive
            return position, frame > 0 and jpeg[frame + 9] == jpeg[position + 4]
        if marker in _SEQUENTIAL:
            frame = position
        position += 1 if marker == _FILL else 2 + length  # there may be more than one fill byte
    return len(jpeg), False


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
