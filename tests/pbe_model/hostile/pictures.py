"""Pictures that start programs, unpack to gigabytes, or are none."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from .case import Case, Table, built, content, link, sparse
from .strangers import HTML, LFS

_UNKNOWN = "not a picture of a known format"
_DAMAGED = "the picture is damaged"
_LARGE = "megapixels|large"
_ALL = ("image", "mask", "exemplar", "context", "blend", "batch image", "read_image")
_MASKS = ("mask", "context", "blend", "exemplar mask")
_EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n"
    b"(ran-by-file) (w) file closefile\nshowpage\n%%EOF\n"
)


def _saved(mode: str, size: tuple[int, int], format: str, **options: Any) -> bytes:
    """A picture of one colour, which every format packs well."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, format, **options)
    return file.getvalue()


def _plain(mode: str, side: int, format: str, **options: Any) -> Case:
    return Case(built(lambda: _saved(mode, (side, side), format, **options)), _LARGE)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + b"".join(chunks) + _chunk(b"IEND", b"")


def _rows(width: int, height: int) -> bytes:
    """The pixels of a black PNG, of one bit each, packed in pieces."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    many = row * max(1, 2**20 // len(row))
    left, packed = height * len(row), b""
    while left > 0:
        packed += packer.compress(many[:left])
        left -= len(many)
    return _chunk(b"IDAT", packed + packer.flush())


def _many_texts() -> bytes:
    """Chunks of text that unpack to a megabyte each."""
    text = b"pbe\0\0" + zlib.compress(bytes(2**20 - 1), 9)
    return _png(8, 8, *[_chunk(b"zTXt", text)] * 2_000, _chunk(b"IDAT", zlib.compress(bytes(72))))


def _tiff(width: int, height: int, data: bytes = bytes(1000), **tags: Any) -> bytes:
    """A grey TIFF, its tags by their numbers after `_`; `None` leaves one out."""
    own: dict[int, Any] = {
        256: [width],
        257: [height],
        258: [8],
        259: [1],
        262: [1],
        273: [8],
        277: [1],
        278: [height],
        279: [len(data)],
    }
    own |= {int(name.removeprefix("_")): value for name, value in tags.items()}
    own = {tag: value for tag, value in sorted(own.items()) if value is not None}
    start, extra = 8 + len(data) + len(data) % 2, b""
    directory = struct.pack("<H", len(own))
    behind = start + 2 + 12 * len(own) + 4
    for tag, values in own.items():
        raw = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            place = behind + len(extra)
            extra += raw
            raw = struct.pack("<I", place)
        directory += struct.pack("<HHI", tag, 4, len(values)) + raw
    pixels = data + b"\0" * (len(data) % 2)
    return b"II*\0" + struct.pack("<I", start) + pixels + directory + bytes(4) + extra


def _tile(compression: int) -> Case:
    """A small picture of one tile of 60,000 x 60,000."""
    tags = {"_322": [60_000], "_323": [60_000], "_324": [8], "_325": [1000]}
    own = {**tags, "_273": None, "_278": None, "_279": None, "_259": [compression]}
    return Case(built(lambda: _tiff(100, 100, **own)), f"{_LARGE}|{_UNKNOWN}|{_DAMAGED}")


def _bmp(width: int, height: int, data: bytes, depth: int = 8, compression: int = 1) -> bytes:
    palette = bytes(4 << depth)
    begin = 54 + len(palette)
    header = struct.pack("<IHHI", begin + len(data), 0, 0, begin) + struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, depth, compression, len(data), 0, 0, 0, 0
    )
    return b"BM" + header + palette + data


def _smaller(format: str, mark: bytes, skip: int, form: str = ">II", **options: Any) -> bytes:
    """A picture of 12000 x 12000 in a container that says 64 x 64."""
    whole = bytearray(_saved("L", (12_000, 12_000), format, **options))
    struct.pack_into(form, whole, whole.index(mark) + skip, 64, 64)
    return bytes(whole)


def _framed(screen: int, frame: int) -> bytes:
    """A GIF with a frame of another size than its screen."""
    whole = bytearray(_saved("L", (frame, frame), "GIF"))
    struct.pack_into("<HH", whole, 6, screen, screen)
    return bytes(whole)


def _exif() -> bytes:
    """A JPEG whose EXIF counts four billion values, points to itself, and turns by 99."""
    directory = struct.pack("<H", 3)
    for tag, kind, count, value in ((0x112, 3, 1, 99), (0x10F, 2, 2**32 - 1, 8), (0x8769, 4, 1, 8)):
        directory += struct.pack("<HHII", tag, kind, count, value)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8)
    return _saved("L", (8, 8), "JPEG", exif=exif)[:-30]


def _scans() -> bytes:
    """A progressive JPEG of 4000 x 4000 whose last scan comes 5,000 times."""
    whole = _saved("L", (4_000, 4_000), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * 5_000 + whole[-2:]


def _note(size: int) -> bytes:
    info = PngInfo()
    info.add_itxt("pbe", "a" * size, zip=True)
    return _saved("L", (8, 8), "PNG", pnginfo=info)


FILES: Table = {
    # ---- of programs
    "eps.png": Case(content(_EPS), _UNKNOWN),
    "eps.jpg": Case(content(_EPS), _UNKNOWN),
    "eps.eps": Case(content(_EPS), _UNKNOWN),
    "binary_eps.png": Case(
        content(
            b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, len(_EPS), 0, 0, 0, 0) + bytes(4) + _EPS
        ),
        _UNKNOWN,
    ),
    "ps.webp": Case(content(_EPS.replace(b" EPSF-3.0", b"")), _UNKNOWN),
    "pdf.png": Case(
        content(b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n"), _UNKNOWN
    ),
    "fpx.png": Case(content(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(1000)), _UNKNOWN),
    "wmf.png": Case(content(b"\xd7\xcd\xc6\x9a\0\0" + bytes(100)), _UNKNOWN),
    "svg.png": Case(
        content(
            b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
        ),
        _UNKNOWN,
    ),
    "psd.png": Case(
        content(
            b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3) + bytes(12)
        ),
        _UNKNOWN,
    ),
    "icns.png": Case(
        content(b"icns" + struct.pack(">I", 16) + b"ic10" + struct.pack(">I", 8)), _UNKNOWN
    ),
    "gbr.png": Case(
        content(struct.pack(">IIIII", 28, 2, 60_000, 60_000, 4) + b"GIMP" + bytes(4)), _UNKNOWN
    ),
    # ---- no pictures
    "page.png": Case(content(HTML), _UNKNOWN),
    "pointer.jpg": Case(content(LFS), _UNKNOWN),
    "empty.png": Case(content(b""), "an empty file"),
    "pipe.png": Case(os.mkfifo, "not a regular file"),
    "device.png": Case(link("/dev/zero"), "not a regular file"),
    "folder.png": Case(Path.mkdir, "it is a folder"),
    "dangling.png": Case(link("nowhere"), "there is no such file", ("result",)),
    "loop.png": Case(link("loop.png"), "cannot read", ("result",)),
    "zeros.png": Case(sparse(b"", 2**36), "cannot read"),
    "sparse.png": Case(sparse(_png(8, 8)[:33], 2**36), "cannot read"),
    "sparse.webp": Case(
        sparse(b"RIFF\xff\xff\xff\xffWEBPVP8L\xff\xff\xff\xff/", 2**36), "cannot read"
    ),
    "cut.png": Case(built(lambda: _saved("RGB", (64, 64), "PNG")[:60]), _DAMAGED),
    "cut.jpg": Case(built(lambda: _saved("RGB", (64, 64), "JPEG")[:300]), _DAMAGED),
    "cut.webp": Case(built(lambda: _saved("RGB", (64, 64), "WEBP")[:30]), f"{_DAMAGED}|{_UNKNOWN}"),
    # ---- bombs
    "bomb.png": Case(built(lambda: _png(50_000, 50_000, _rows(50_000, 50_000), depth=1)), _LARGE),
    "claim.png": Case(content(_png(2**31 - 1, 2**31 - 1)), _LARGE),
    "line.png": Case(content(_png(2**31 - 1, 1)), _LARGE),
    "large.png": _plain("1", 8_192, "PNG"),
    "large_rgba.png": _plain("RGBA", 8_000, "PNG"),
    "large.webp": _plain("RGB", 8_192, "WEBP", lossless=True, method=0),
    "largest.webp": _plain("L", 13_000, "WEBP", lossless=True, method=0),
    "large.gif": _plain("L", 8_192, "GIF"),
    "large.tif": _plain("L", 8_192, "TIFF", compression="tiff_deflate"),
    "large_floats.tif": _plain("F", 8_192, "TIFF", compression="tiff_lzw"),
    "large.jp2": _plain("L", 8_192, "JPEG2000"),
    "large.avif": _plain("L", 8_192, "AVIF", speed=10, quality=1),
    "large.jpg": _plain("L", 13_000, "JPEG", quality=1),
    "claim.webp": Case(
        content(
            b"RIFF"
            + struct.pack("<I", 22)
            + b"WEBPVP8X"
            + struct.pack("<I", 10)
            + bytes(4)
            + b"\xff" * 6
        ),
        f"{_LARGE}|{_DAMAGED}|{_UNKNOWN}",
    ),
    "screen.gif": Case(built(lambda: _framed(65_535, 10)), _LARGE),
    "frame.gif": Case(built(lambda: _framed(10, 8_192)), _LARGE),
    "rows.bmp": Case(content(_bmp(2**26, 1, b"\x01\x00\x00\x00")), "a side may have"),
    "rle.bmp": Case(content(_bmp(2**14, 2**12, b"\x01\x00\x00\x00")), _LARGE),
    "upside_down.bmp": Case(content(_bmp(2**16, -(2**15), b"")), _LARGE),
    "small_box.jp2": Case(built(lambda: _smaller("JPEG2000", b"ihdr", 4)), f"{_LARGE}|{_DAMAGED}"),
    "small_box.avif": Case(
        built(lambda: _smaller("AVIF", b"ispe", 8, speed=10, quality=1)),
        f"{_LARGE}|{_DAMAGED}|is empty|64 x 64 pixels but",
        _ALL,
    ),
    "codestream.jp2": Case(
        built(
            lambda: (lambda data: data[data.index(b"\xff\x4f\xff\x51") :])(
                _saved("L", (12_000, 12_000), "JPEG2000")
            )
        ),
        _LARGE,
    ),
    "many_pixels.ppm": Case(content(b"P6 99999 99999 255\n"), _LARGE),
    "digits.ppm": Case(content(b"P5 9999999999 9999999999 255\n"), _LARGE),
    "plain.ppm": Case(
        built(lambda: b"P3 4000 4000 255\n" + b"1 " * 1_000_000), f"{_LARGE}|{_DAMAGED}"
    ),
    "scans.jpg": Case(built(_scans), f"{_LARGE}|{_DAMAGED}"),
    # ---- strips and tiles
    **{f"tile_{compression}.tif": _tile(compression) for compression in (1, 5, 7, 8, 34925, 50000)},
    "tiles_0.tif": Case(content(_tiff(100, 100, _322=[0], _323=[0], _324=[8], _325=[9])), _DAMAGED),
    "two_tile_sides.tif": Case(
        content(_tiff(100, 100, _322=[60_000] * 2, _323=[60_000], _324=[8], _325=[9])),
        f"{_LARGE}|{_DAMAGED}",
    ),
    "strip.tif": Case(content(_tiff(100, 100, _278=[2**32 - 1])), _DAMAGED),
    "rubbish.tif": Case(content(_tiff(100, 100, _259=[8])), _DAMAGED),
    "samples.tif": Case(
        content(_tiff(100, 100, _277=[65_535], _262=[2])), f"{_DAMAGED}|{_UNKNOWN}"
    ),
    "bits.tif": Case(content(_tiff(100, 100, _258=[65_535])), f"{_DAMAGED}|{_UNKNOWN}"),
    "wide.tif": Case(content(_tiff(2**20, 2**20)), _LARGE),
    "wide.bmp": Case(content(_bmp(2**31 - 1, 1, b"")), _LARGE),
    "tall.tif": Case(
        built(lambda: _tiff(1, 2**26, _278=[1], _273=[8] * 99_999, _279=[1] * 99_999)),
        f"{_LARGE}|{_DAMAGED}",
    ),
    "directories.tif": Case(
        content(b"II*\0" + struct.pack("<IHI", 8, 0, 8)), f"{_DAMAGED}|{_UNKNOWN}"
    ),
    # ---- what stands beside the pixels
    # What stands beside the pixels does not count, and these are black.
    "texts.png": Case(built(_many_texts), "is empty", only=_MASKS),
    "long_text.png": Case(built(lambda: _note(2**27)), "is empty", only=_MASKS),
    "profile.png": Case(
        built(lambda: _png(8, 8, _chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28), 9)))),
        _DAMAGED,
    ),
    "exif.jpg": Case(built(_exif), _DAMAGED),
    "transparent.png": Case(
        built(lambda: _saved("LA", (8, 8), "PNG")),
        "transparent everywhere|is empty",
        _ALL,
    ),
    "a" * 296 + ".png": Case(lambda path: path.parent.mkdir(exist_ok=True), "cannot read|too long"),
    "escapes\x1b[31m.png": Case(content(HTML), r"escapes\\x1b\[31m\.png"),
}
