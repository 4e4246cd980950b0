"""Photos as training reads them: upright RGB pixels, sizes alone, and errors that say why not.

All formats mean what they mean to an edit, as `pbe_model.pictures` decodes them. JPEG, the format
of nearly all photos, goes through simplejpeg (libjpeg-turbo) instead: the same pixels but for
rounding, without a detour through Pillow's own memory, and turned and converted to sRGB alike.

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
)
from pbe_model.pictures import decode_picture, quiet_decoders
from pbe_model.side_information import read_leniently
from pbe_model.untrusted import first_line, open_regular, read_bytes

JPEG_END = b"\xff\xd9"
_FILL, _SCAN = 0xFF, 0xDA
_SEGMENT = struct.Struct(">BBH").unpack_from
_SEQUENTIAL = frozenset((0xC0, 0xC1))  # kinds of frames
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
_MOST_SEGMENTS = 2**16
_FAST_MODES = {"YCbCr": "RGB", "RGB": "RGB", "Gray": "L"}  # Pillow's by simplejpeg's names
_EXIF_MARK, _ICC_MARK, _WHOLE = b"Exif\0\0", b"ICC_PROFILE\0", b"\1\1"
_ROTATIONS = {
    3: cv2.ROTATE_180,
    6: cv2.ROTATE_90_CLOCKWISE,
    7: cv2.ROTATE_180,
    8: cv2.ROTATE_90_COUNTERCLOCKWISE,
}
_FLIPS = {2: 1, 4: 0}
_ON_ITS_SIDE = 5  # EXIF orientations from here on exchange width and height
_UNREAD = (ValueError, KeyError)
"""What simplejpeg raises; a KeyError where it has no name for the colours of a damaged file."""


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
        mode = _FAST_MODES.get(_check_jpeg(data, is_only_scan))
        photo = _decode_jpeg(data) if mode else None
        if photo is not None and mode is not None:
            turn, profile = _side_information(data, header_length)
            if not is_srgb(profile, mode):
                grey_or_colour = Image.fromarray(photo[..., 0] if mode == "L" else photo)
                photo = np.array(to_srgb(grey_or_colour, profile))
            return _turned(photo, turn)
    with _reasons(file := io.BytesIO(data), "damaged"):
        return decode_picture(file).over_white()


def _decode_jpeg(jpeg: bytes) -> np.ndarray | None:
    try:
        return simplejpeg.decode_jpeg(jpeg, "RGB", strict=False)
    except _UNREAD:  # Pillow reads some files that simplejpeg does not
        return None


def _check_jpeg(jpeg: bytes, is_only_scan: bool) -> str:
    """Refuse more pixels than may be decoded, and to go through them over and over again.

    Returns:
        simplejpeg's name of the colours in the file, empty where it does not know.
    """
    try:
        header = simplejpeg.decode_jpeg_header(jpeg, strict=False)
        (height, width), colours = map(int, header[:2]), str(header[2])
    except _UNREAD:
        with photo_header(io.BytesIO(jpeg)) as image:
            width, height, colours = image.width, image.height, ""
    if width * height > pixel_limit(len(jpeg)):
        raise OSError("too many pixels")
    if not is_only_scan:
        check_jpeg_scans(jpeg, width * height)
    return colours


def _side_information(jpeg: bytes, header_length: int) -> tuple[int, bytes | None]:
    """EXIF orientation and colour profile.

    Pillow is asked only where there is EXIF, or a profile in pieces.
    """
    at = jpeg.find(_ICC_MARK, 0, header_length)
    if jpeg.find(_EXIF_MARK, 0, header_length) < 0:
        if at < 0:
            return 1, None
        if jpeg.startswith(_WHOLE, start := at + len(_ICC_MARK)):
            end = at - 2 + int.from_bytes(jpeg[at - 2 : at], "big")
            return 1, jpeg[start + len(_WHOLE) : end]
    try:
        with photo_header(io.BytesIO(jpeg)) as header:
            return orientation(header), header.info.get("icc_profile")
    except OSError:
        return 1, None


def _turned(photo: np.ndarray, orientation: int) -> np.ndarray:
    """As `pbe_model.pictures.turned`, without leaving the array."""
    if orientation in (5, 7):
        photo = cv2.transpose(photo)
    if orientation in _ROTATIONS:
        return cv2.rotate(photo, _ROTATIONS[orientation])
    return cv2.flip(photo, _FLIPS[orientation]) if orientation in _FLIPS else photo


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
    with _reasons(file, "damaged header"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of quirks, and from 89 megapixels on
        with open_picture(file) as image:
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
