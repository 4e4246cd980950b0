"""What a picture asks of its decoder, read off its bytes before the decoder is asked.

A few bytes may ask for hours or gigabytes in ways that the number of pixels does not show: a JPEG
may go through its pixels in any number of scans of thirty bytes each, and the entries of a TIFF may
all point to the same bytes, which decoders copy once for each.
"""

from __future__ import annotations

import os
import re
import struct
from itertools import islice
from typing import BinaryIO

import numpy as np

JPEG_START = b"\xff\xd8"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_FILL, _SCAN = 0xFF, 0xDA
_SCAN_START = re.compile(b"\xff\xda")
_SEGMENT = struct.Struct(">BBH").unpack_from
_SEQUENTIAL = frozenset((0xC0, 0xC1))  # kinds of frames
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA)))
_MOST_SEGMENTS = 2**16
_MOST_SCANS = 1000  # encoders make ten, or some dozens
_MOST_WORK = 2**31  # pixels times scans of a JPEG: a second or two
_BIG_TIFF = 43
_MOST_ENTRIES = 2**16  # of a directory; more are not read
# Bytes of an item by its type; items of other types are not read.
_TIFF_UNITS = np.array([0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8, 0])


def check_jpeg_scans(jpeg: bytes, pixels: int) -> None:
    """Refuse to go through the pixels over and over again.

    Args:
        jpeg: The whole file.
        pixels: Of the picture.

    Raises:
        OSError: It has more scans than any photo.
    """
    most = min(_MOST_SCANS, _MOST_WORK // max(pixels, 1))
    if sum(1 for _ in islice(_SCAN_START.finditer(jpeg), most + 1)) > most:
        raise OSError(f"more than {most} scans of {pixels:,} pixels")


def first_scan(jpeg: bytes) -> tuple[int, bool]:
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


def check_tiff_entries(file: BinaryIO) -> None:
    """Refuse entries of the first directory that overlap: decoders copy what each points to.

    Args:
        file: Of which the first bytes say that it is a TIFF.

    Raises:
        OSError: They do, or the file ends before they do.
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
