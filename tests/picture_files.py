"""Picture files of every kind, made in memory, for tests of what reads them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

HEIGHT, WIDTH = 60, 80
_Y, _X = np.mgrid[:HEIGHT, :WIDTH]
COLOUR = np.stack([_X * 3, _Y * 4, (_X + _Y) * 1.8], -1).clip(0, 255).astype(np.uint8)
ALPHA = np.zeros((HEIGHT, WIDTH), np.uint8)
ALPHA[10:40, 10:60] = 255
ALPHA[:5] = 100
GREY = COLOUR[..., 0]
GREY_16 = GREY.astype(np.uint16) * 257

RGB = Image.fromarray(COLOUR)
RGBA = Image.fromarray(np.dstack([COLOUR, ALPHA]))


def encoded(picture: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(numbers: np.ndarray, kind: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of 8 or 16 bits.

    Args:
        numbers: (H, W) or (H, W, C), uint8 or uint16.
        kind: PNG's colour type.
        before: Chunks before the pixels.
        after: Chunks after them.
    """
    height, width = numbers.shape[:2]
    depth = 8 * numbers.itemsize
    big = numbers.astype(numbers.dtype.newbyteorder(">"))
    rows = b"".join(b"\0" + row.tobytes() for row in big)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND", b"")


def exif_entry(kind: int, orientation: int) -> bytes:
    """EXIF of nothing but an orientation, of a type of TIFF; 3 is right."""
    entry = struct.pack(">HHIHH", 0x0112, kind, 1, orientation, 0)
    return b"MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)


def turned(format: str, orientation: int, **options: object) -> bytes:
    """`COLOUR` as a camera stores it that was held that way."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(RGB, format, exif=exif, **options)


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped_profile() -> bytes:
    """A profile whose red is sRGB's blue and the other way round."""
    profile = srgb_profile()
    return profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")


def grey_profile() -> bytes:
    """One for grey pictures whose numbers are proportional to light."""
    curve = b"curv" + bytes(8)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = [(b"kTRC", curve), (b"wtpt", white)]
    start = 128 + 4 + 12 * len(tags)
    table, content = struct.pack(">I", len(tags)), b""
    for name, tag in tags:
        table += name + struct.pack(">II", start + len(content), len(tag))
        content += tag
    header = bytearray(128)
    header[8:12] = b"\x02\x40\0\0"
    header[12:24] = b"mntrGRAYXYZ "
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">3i", 63190, 65536, 54061)
    whole = bytes(header) + table + content
    return struct.pack(">I", len(whole)) + whole[4:]


def _palette(**options: object) -> Callable[[str], bytes]:
    return lambda format: encoded(RGB.quantize(16), format, **options)


def _tiff(numbers: np.ndarray) -> bytes:
    return encoded(Image.fromarray(numbers), "TIFF")


def _hidden(*colour: int) -> bytes:
    """The chunk that makes one colour of a PNG transparent."""
    return chunk(b"tRNS", struct.pack(f">{len(colour)}H", *colour))


_L = RGB.convert("L")
_LA = Image.merge("LA", [_L, Image.fromarray(ALPHA)])
_SWAPPED, _SRGB = swapped_profile(), srgb_profile()

FILES: dict[str, bytes] = {
    **{
        f"RGB {it}": encoded(RGB, it)
        for it in ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")
    },
    **{
        f"RGBA {it}": encoded(RGBA, it) for it in ("PNG", "WEBP", "TIFF", "GIF", "AVIF", "JPEG2000")
    },
    **{
        f"L {it}": encoded(_L, it)
        for it in ("PNG", "JPEG", "TIFF", "GIF", "BMP", "PPM", "JPEG2000")
    },
    **{f"LA {it}": encoded(_LA, it) for it in ("PNG", "TIFF", "WEBP", "JPEG2000")},
    **{f"1 {it}": encoded(RGB.convert("1"), it) for it in ("PNG", "TIFF", "BMP")},
    **{f"CMYK {it}": encoded(RGB.convert("CMYK"), it) for it in ("JPEG", "TIFF")},
    **{f"P {it}": _palette()(it) for it in ("PNG", "GIF", "BMP", "TIFF")},
    "P see-through PNG": _palette(transparency=3)("PNG"),
    "P half see-through PNG": _palette(transparency=bytes([0, 128, 255]))("PNG"),
    "P see-through GIF": _palette(transparency=3)("GIF"),
    "P see-through WEBP": encoded(RGB.quantize(16).convert("RGBA"), "WEBP"),
    "L see-through PNG": encoded(_L, "PNG", transparency=100),
    "RGB see-through PNG": encoded(RGB, "PNG", transparency=(90, 120, 108)),
    "16-bit RGB PNG": png(COLOUR.astype(np.uint16) * 257, 2),
    "16-bit RGBA PNG": png(np.dstack([COLOUR, ALPHA]).astype(np.uint16) * 257, 6),
    "16-bit grey PNG": png(GREY_16, 0),
    "16-bit grey with alpha PNG": png(np.dstack([GREY_16, ALPHA.astype(np.uint16) * 257]), 4),
    "16-bit see-through grey PNG": png(GREY_16, 0, before=_hidden(int(GREY_16[0, 30]))),
    "16-bit see-through RGB PNG": png(
        COLOUR.astype(np.uint16) * 257, 2, before=_hidden(90 * 257, 120 * 257, 108 * 257)
    ),
    "16-bit grey TIFF": _tiff(GREY_16),
    "32-bit TIFF of 8": _tiff(GREY.astype(np.int32)),
    "32-bit TIFF of 16": _tiff(GREY_16.astype(np.int32)),
    "float TIFF": _tiff((GREY / 255).astype(np.float32)),
    "float TIFF of 8 bits": _tiff(GREY.astype(np.float32)),
    "float TIFF of 16 bits": _tiff(GREY_16.astype(np.float32)),
    "YCbCr TIFF": encoded(RGB.convert("YCbCr"), "TIFF"),
    "progressive JPEG": encoded(RGB, "JPEG", progressive=True),
    "MPO": encoded(RGB, "MPO", save_all=True, append_images=[RGB]),
    **{
        f"turned {turn} {it}": turned(it, turn)
        for turn in range(1, 9)
        for it in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
    },
    "turned JPEG with a profile": turned("JPEG", 6, icc_profile=_SWAPPED),
    "turned CMYK JPEG": encoded(RGB.convert("CMYK"), "JPEG", exif=b"Exif\0\0" + exif_entry(3, 6)),
    **{
        f"{name} profile {it}": encoded(RGB, it, icc_profile=profile)
        for name, profile in (
            ("swapped", _SWAPPED),
            ("sRGB", _SRGB),
            ("nonsense", b"nonsense" * 99),
        )
        for it in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
    },
    "swapped profile RGBA PNG": encoded(RGBA, "PNG", icc_profile=_SWAPPED),
    "swapped profile P PNG": encoded(RGB.quantize(16), "PNG", icc_profile=_SWAPPED),
    "profile of another kind L JPEG": encoded(_L, "JPEG", icc_profile=_SWAPPED),
    "profile of another kind CMYK JPEG": encoded(RGB.convert("CMYK"), "JPEG", icc_profile=_SWAPPED),
    **{
        f"grey profile L {it}": encoded(_L, it, icc_profile=grey_profile())
        for it in ("JPEG", "PNG", "TIFF")
    },
}
"""Sound files by what they are."""


def _with_side(before: bytes = b"", after: bytes = b"") -> bytes:
    return png(COLOUR, 2, before=before, after=after)


def _profile(content: bytes) -> bytes:
    return chunk(b"iCCP", b"a\0\0" + zlib.compress(content))


def _wrong_sum(whole: bytes) -> bytes:
    return whole[:-1] + bytes([whole[-1] ^ 1])


_LARGE_TEXT = b"Comment\0\0" + zlib.compress(bytes(2_000_000))
SIDE_INFORMATION: dict[str, bytes] = {
    "profile of 1.5 MB": _with_side(_profile(bytes(1_500_000))),
    "profile that does not unpack": _with_side(chunk(b"iCCP", b"a\0\0nonsense")),
    "profile packed in an unknown way": _with_side(chunk(b"iCCP", b"a\0\7nonsense")),
    "empty profile": _with_side(chunk(b"iCCP", b"")),
    "text of 2 MB": _with_side(chunk(b"zTXt", _LARGE_TEXT)),
    "text of 2 MB behind": _with_side(after=chunk(b"zTXt", _LARGE_TEXT)),
    "100 MB of texts": _with_side(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20 - 1))) * 100),
    "20,000 texts": _with_side(chunk(b"tEXt", b"a\0b") * 20_000),
    "text of an unknown language": _with_side(chunk(b"iTXt", b"\xff" * 50)),
    "nonsense EXIF": _with_side(chunk(b"eXIf", b"nonsense" * 10)),
    "EXIF of a string": _with_side(chunk(b"eXIf", exif_entry(2, 6))),
    "EXIF that points nowhere": _with_side(chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")),
    "EXIF that turns by 99": _with_side(chunk(b"eXIf", exif_entry(3, 99))),
    "empty EXIF": _with_side(chunk(b"eXIf", b"")),
    "nonsense EXIF behind": _with_side(after=chunk(b"eXIf", b"nonsense")),
    "short resolution": _with_side(chunk(b"pHYs", b"\0\0")),
    "short gamma": _with_side(chunk(b"gAMA", b"")),
    "short colours": _with_side(chunk(b"cHRM", b"\0")),
    "short sRGB": _with_side(chunk(b"sRGB", b"")),
    "short animation": _with_side(chunk(b"acTL", b"\0")),
    "wrong sum of a text": _with_side(_wrong_sum(chunk(b"tEXt", b"a\0b"))),
    "wrong sum of a profile": _with_side(_wrong_sum(_profile(_SWAPPED))),
    "unknown chunk": _with_side(chunk(b"abCd", bytes(100))),
}
"""PNG files of `COLOUR` with something wrong, or too large, beside the pixels."""
