"""What a file says beside its pixels (texts, resolutions, a date) never costs the picture.

Decoders refuse a picture for any fault of what they need not know. Then it is read once more,
without that.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from typing import BinaryIO, TypeVar

from .picture_headers import DECODER_ERRORS, MAX_BYTES

_Result = TypeVar("_Result")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_CHUNK = struct.Struct(">I4s")
_AVIF_EXIF = re.compile(rb"(infe\x02.{3}.{4})Exif", re.DOTALL)  # entry of an item, of version 2
_MOST_CHUNKS = 2**17  # of a PNG; encoders make one of some kilobytes
_MOST_PROFILE = 2**20  # bytes of a colour profile in a PNG, as in Pillow


def read_leniently(file: BinaryIO, read: Callable[[BinaryIO], _Result]) -> _Result:
    """`read(file)`; again without what stands beside the pixels if that fails for a PNG or an AVIF.

    Raises:
        Exception: As `read`.
    """
    try:
        return read(file)
    except DECODER_ERRORS:
        essential = essential_png(file) or _avif_without_exif(file)
        if essential is None:
            raise
        return read(essential)


def essential_png(file: BinaryIO) -> BinaryIO | None:
    """A PNG without the chunks that one may leave out; None where there are none, or it is no PNG.

    A profile and EXIF stay where they are sound. Pillow refuses a picture for a fault of any chunk.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(len(_PNG_START))
    if start != _PNG_START or size > MAX_BYTES:
        return None
    kept, dropped = [start], False
    for _ in range(_MOST_CHUNKS):
        header = file.read(_CHUNK.size)
        if len(header) < _CHUNK.size:
            break
        length, kind = _CHUNK.unpack(header)
        if not kind.isalpha():
            break
        if _may_be_essential(kind):
            chunk = header + file.read(length + 4)
            if _is_essential(kind, chunk):
                kept.append(chunk)
                continue
        else:
            file.seek(length + 4, os.SEEK_CUR)
        dropped = True
    return io.BytesIO(b"".join(kept)) if dropped else None


def _avif_without_exif(file: BinaryIO) -> BinaryIO | None:
    """An AVIF whose EXIF is of an unknown kind, so that nobody looks at it; None for other files.

    The turns of an AVIF stand elsewhere.
    """
    if file.seek(0, os.SEEK_END) > MAX_BYTES:
        return None
    file.seek(0)
    if file.read(12)[4:8] != b"ftyp":
        return None
    file.seek(0)
    content, changes = _AVIF_EXIF.subn(rb"\1skip", file.read())
    return io.BytesIO(content) if changes else None


def _may_be_essential(kind: bytes) -> bool:
    return kind[:1].isupper() or kind in (b"tRNS", b"iCCP", b"eXIf")


def _is_essential(kind: bytes, chunk: bytes) -> bool:
    if kind not in (b"iCCP", b"eXIf"):
        return True
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return False
    if kind == b"eXIf":
        return True
    packed = chunk[_CHUNK.size : -4].partition(b"\0")[2]
    unpacking = zlib.decompressobj()
    try:
        unpacking.decompress(packed[1:], _MOST_PROFILE)
    except zlib.error:
        return False
    return packed[:1] == b"\0" and unpacking.eof
