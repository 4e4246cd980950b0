"""Opening untrusted pictures: what decoding one would cost is checked before it is decoded.

Of the formats that Pillow knows, only those are tried that its own code decodes, and pixels are
counted before they take memory. But a few bytes can cost hours or gigabytes in ways that the number
of pixels does not show: a JPEG may go through its pixels in any number of scans of thirty bytes
each, and the entries of a TIFF may all point to the same bytes, which decoders copy once for each.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import TiffImageFile

from .file_kinds import HEAD, is_heif, what_it_really_is

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
"""Pillow's names of the formats that are read. Some of the others (PostScript) start programs. HEIF
is read where the package pillow-heif is installed."""

MAX_PIXELS = 2**25
"""Pixels that any picture may have, however small its file: masks are flat, and their files small.
While a picture is read, a pixel takes up to 28 bytes."""

MAX_SIDE = 2**16
"""Most pixels of a side; more is not a picture but a line, and resizing a line makes it large."""

MAX_BYTES = 2**29
"""Most bytes of a picture's file; the largest from cameras have some 100 MB."""

_PIXELS_PER_BYTE = 32  # in the largest files; photos have about ten, bombs a thousand
_MOST_PIECES = 2**14  # reads of a header; photos need hundreds if they hold other pictures
_SLOW = ("bmp_rle",)  # decoders written in Python, which take as long as there are pixels
_TILE_SIDES = (322, 323)  # TIFF tags of the width and height of tiles

DECODER_ERRORS = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, RuntimeError, LookupError,
    ArithmeticError, MemoryError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's decoders were seen to raise on damaged files."""

JPEG_START = b"\xff\xd8"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_SCAN_START = re.compile(b"\xff\xda")
_MOST_SCANS = 1000  # encoders make ten, or some dozens
_MOST_WORK = 2**31  # pixels times scans of a JPEG: a second or two
_TURNS = range(2, 9)  # EXIF orientations other than upright
_BIG_TIFF = 43
_MOST_ENTRIES = 2**16  # of a TIFF directory; more are not read
# Bytes of a TIFF item by its type; items of other types are not read.
_TIFF_UNITS = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8, 0])


class UnsupportedPicture(ValueError):
    """A sound picture of a kind that is not read; the message says which, and the remedy."""


def open_picture(file: BinaryIO) -> Image.Image:
    """Open a picture, reading only its header, and check that it may be decoded.

    Args:
        file: Seekable.

    Raises:
        UnsupportedPicture: HEIF without its package.
        PIL.UnidentifiedImageError: In none of `FORMATS`.
        PIL.Image.DecompressionBombError: Too many pixels, in the picture or in a tile.
        Exception: One of `DECODER_ERRORS`: the header is damaged.
    """
    size = file.seek(0, os.SEEK_END)
    if size > MAX_BYTES:
        raise OSError(f"it has {size:,} bytes, and {MAX_BYTES:,} are the most")
    file.seek(0)
    head = file.read(64)
    if head.startswith(TIFF_STARTS):
        check_tiff_entries(file)
    Image.init()  # registers formats; an older Pillow does not have all of them
    formats = [name for name in FORMATS if name in Image.OPEN]
    if is_heif(head):
        formats = [_heif()]
    file.seek(0)
    pieces: Any = _Pieces(file)
    try:
        picture = Image.open(pieces, formats=formats)
    except Image.DecompressionBombError as error:
        raise Image.DecompressionBombError("hundreds of megapixels") from error
    pieces.left = sys.maxsize  # from here on the picture is read
    slow = any(tile[0] in _SLOW for tile in getattr(picture, "tile", ()))
    limit = size * _PIXELS_PER_BYTE if slow else pixel_limit(size)
    if max(picture.size) > MAX_SIDE:
        raise OSError(
            f"it is {picture.width} x {picture.height} pixels; a side may have {MAX_SIDE}"
        )
    if any(width * height > limit for width, height in _sides(picture)):
        raise Image.DecompressionBombError(f"more than {limit / 1e6:.0f} megapixels")
    return picture


def _heif() -> str:
    """Pillow's name of HEIF, once the package that reads it is there."""
    if "HEIF" not in Image.OPEN:
        if importlib.util.find_spec("pillow_heif") is None:
            raise UnsupportedPicture(
                "it is a HEIF photo; install the package pillow-heif, or save it as JPEG"
            )
        importlib.import_module("pillow_heif").register_heif_opener()
    return "HEIF"


def describe_stranger(file: BinaryIO) -> str:
    """What a file is that is no picture, to be read after "it is"."""
    file.seek(0)
    kind = what_it_really_is(file.read(HEAD))
    unknown = "not a picture of a known format"
    if kind == "an empty file":
        return kind
    if kind is None or kind == "a text file":  # which says no more
        return unknown
    if kind.endswith(" picture"):
        return f"{unknown}: {kind} that is damaged, or of a rare kind such as colours in floats"
    return f"{unknown} but {kind}"


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, from 1 to 8; 1 where there is none or it is nonsense.

    Also for TIFF, which Pillow turns by itself, and whose size it states as it will be.

    Raises:
        Exception: One of `DECODER_ERRORS`: in a PNG EXIF may stand behind the pixels, so they are
            read, and they are damaged.
    """
    if picture.format == "TIFF":
        return 1
    if picture.format == "PNG":
        picture.load()
    try:
        turn = picture.getexif().get(ExifTags.Base.Orientation)
    except DECODER_ERRORS:
        return 1
    return turn if isinstance(turn, int) and turn in _TURNS else 1


class _Pieces:
    """A file with a limited number of reads: Pillow skips junk in a JPEG byte by byte."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.left = _MOST_PIECES

    def read(self, size: int = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise OSError("its header is in too many pieces")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _sides(picture: Image.Image) -> Iterator[tuple[int, int]]:
    """Width and height of a picture and of its tiles, which may be larger."""
    yield picture.size
    for tile in getattr(picture, "tile", ()):
        if tile[1]:
            left, top, right, bottom = tile[1]
            yield right - left, bottom - top
    if isinstance(picture, TiffImageFile):
        width, height = (picture.tag_v2.get(tag, 1) for tag in _TILE_SIDES)
        yield int(width), int(height)


def pixel_limit(size: int) -> int:
    """How many pixels a file of `size` bytes may have: more where the file is large.

    So a camera's hundred megapixels are read, and a bomb of a few kilobytes is not.
    """
    return min(max(MAX_PIXELS, size * _PIXELS_PER_BYTE), 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS))


def check_jpeg_scans(jpeg: bytes, pixels: int) -> None:
    """Refuse to go through the pixels over and over again.

    Args:
        jpeg: The whole file.
        pixels: How many it has.

    Raises:
        OSError: More scans than any photo has.
    """
    most = min(_MOST_SCANS, _MOST_WORK // max(pixels, 1))
    if sum(1 for _ in islice(_SCAN_START.finditer(jpeg), most + 1)) > most:
        raise OSError(f"more than {most} scans of {pixels:,} pixels")


def check_tiff_entries(file: BinaryIO) -> None:
    """Refuse entries of the first directory that overlap: decoders copy what each points to.

    Args:
        file: A TIFF, by its first bytes.

    Raises:
        OSError: Entries overlap, or the file is cut short.
    """
    size = file.seek(0, os.SEEK_END)
    start = _read(file, 0, 16)
    order = "<" if start.startswith(b"II") else ">"
    big = struct.unpack_from(f"{order}H", start, 2)[0] == _BIG_TIFF
    word = "u8" if big else "u4"
    entry = np.dtype([("tag", "u2"), ("type", "u2"), ("count", word), ("value", word)])
    (directory,) = struct.unpack_from(f"{order}{'Q' if big else 'L'}", start, 8 if big else 4)
    count_form = struct.Struct(f"{order}{'Q' if big else 'H'}")
    (count,) = count_form.unpack(_read(file, directory, count_form.size))
    length = min(count, _MOST_ENTRIES) * entry.itemsize
    content = _read(file, directory + count_form.size, length)
    rows = np.frombuffer(content, entry.newbyteorder(order))
    units = _TIFF_UNITS[np.minimum(rows["type"], len(_TIFF_UNITS) - 1)]
    if (units * rows["count"].astype(np.float64)).sum() > size:
        raise OSError("its entries claim more bytes than the file has")


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(min(position, 2**62))
    content = file.read(count)
    if len(content) < count:
        raise OSError("its directory is cut short")
    return content
