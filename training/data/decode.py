"""Photos as training reads them: upright RGB pixels, sizes alone, and errors that say why not.

All formats mean what they mean to an edit, as `pbe_model.pictures` decodes them. JPEG, the format
of nearly all photos, goes through simplejpeg (libjpeg-turbo) instead: the same pixels but for
rounding, without a detour through Pillow's own memory, and turned and converted to sRGB alike.

What decoding would take is read off the header first: a few bytes may ask for gigabytes, or hours.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from pbe_model.colour_profiles import is_srgb, to_srgb
from pbe_model.picture_headers import (
    DECODER_ERRORS,
    JPEG_START,
    MAX_BYTES,
    UnsupportedPicture,
    check_jpeg_scans,
    describe_stranger,
    open_picture,
    orientation,
    pixel_limit,
    read_leniently,
)
from pbe_model.pictures import decode_picture, quiet_decoders, turned
from pbe_model.untrusted import first_line, open_regular, read_bytes

JPEG_END = b"\xff\xd9"
_FILL, _SCAN = 0xFF, 0xDA
_SEGMENT = struct.Struct(">BBH").unpack_from
_SEQUENTIAL = frozenset((0xC0, 0xC1))  # kinds of frames
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
_MOST_SEGMENTS = 2**16
_FAST_COLOURS = ("YCbCr", "Gray", "RGB")
_SIDE_MARKS = (b"Exif\0\0", b"ICC_PROFILE\0")
_ON_ITS_SIDE = 5  # EXIF orientations from here on exchange width and height


def decode_photo(data: bytes) -> np.ndarray:
    """Decode a photo, upright, in sRGB, and over white where it is transparent.

    Args:
        data: The whole file, in any of `pbe_model.picture_headers.FORMATS`.

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
        colours = _check_jpeg(data, is_only_scan)
        turn, profile, mode = _side_information(data, header_length)
        photo = _decode_jpeg(data) if colours in _FAST_COLOURS else None
        if photo is not None:
            if turn == 1 and is_srgb(profile, mode):
                return photo
            picture = Image.fromarray(photo[..., 0] if mode == "L" else photo)
            return np.array(turned(to_srgb(picture, profile), turn))
    with _reasons(file := io.BytesIO(data), "damaged"):
        return decode_picture(file).over_white()


def _decode_jpeg(jpeg: bytes) -> np.ndarray | None:
    try:
        return simplejpeg.decode_jpeg(jpeg, "RGB", strict=False)
    except ValueError:  # Pillow reads some files that simplejpeg does not
        return None


def _check_jpeg(jpeg: bytes, is_only_scan: bool) -> str | None:
    """Refuse more pixels than may be decoded, and to go through them over and over again.

    Returns:
        simplejpeg's name of the colours in the file, None where it does not know.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(jpeg, strict=False)
    except ValueError:
        with photo_header(io.BytesIO(jpeg)) as header:
            width, height, colours = header.width, header.height, None
    if width * height > pixel_limit(len(jpeg)):
        raise OSError("too many pixels")
    if not is_only_scan:
        check_jpeg_scans(jpeg, width * height)
    return colours


def _side_information(jpeg: bytes, header_length: int) -> tuple[int, bytes | None, str]:
    """EXIF orientation, colour profile, and the mode that it is for.

    Pillow is asked only where there is one of them.
    """
    if all(jpeg.find(mark, 0, header_length) < 0 for mark in _SIDE_MARKS):
        return 1, None, "RGB"
    try:
        with photo_header(io.BytesIO(jpeg)) as header:
            return orientation(header), header.info.get("icc_profile"), header.mode
    except OSError:
        return 1, None, "RGB"


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
    with file, _reasons(file, "damaged header"), quiet_decoders():
        return read_leniently(file, _upright_size)


def _upright_size(file: BinaryIO) -> tuple[int, int]:
    with open_picture(file) as image:
        width, height = image.size
        return (height, width) if orientation(image) >= _ON_ITS_SIDE else (width, height)


@contextmanager
def photo_header(file: BinaryIO) -> Iterator[Image.Image]:
    """A photo of which only the header has been read, while one looks at that.

    Raises:
        OSError: Not a picture of a known format, damaged, or with too many pixels to be decoded;
            also where looking at it shows the damage.
    """
    # Decoders warn of quirks, and from 89 megapixels on.
    with _reasons(file, "damaged header"), quiet_decoders(), open_picture(file) as image:
        yield image


@contextmanager
def _reasons(file: BinaryIO, damaged: str) -> Iterator[None]:
    """Whatever decoders raise as an OSError that says why."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise OSError(describe_stranger(file).removeprefix("an ")) from error
    except Image.DecompressionBombError as error:
        raise OSError("too many pixels") from error
    except UnsupportedPicture as error:
        raise OSError(str(error).removeprefix("it is ")) from error
    except DECODER_ERRORS as error:
        raise OSError(f"{damaged} ({first_line(error)})") from error


def read_photo(path: Path) -> bytes:
    """All bytes of a photo's file.

    Raises:
        OSError: No such file, not a regular one (a pipe would block), or too large for a photo.
    """
    try:
        return read_bytes(path, MAX_BYTES)
    except ValueError as error:
        raise OSError(first_line(error)) from error
