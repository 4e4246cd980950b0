"""Photos that are none, or too much."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

import training.data.index
import training.data.unreadable
from pbe_model.picture_headers import MAX_BYTES
from training.data.decode import decode_photo, photo_size, read_photo
from training.data.index import BoxIndex
from training.data.shards import PhotoFiles

from .files import (
    index_folder,
    large,
    picture,
    png,
    put,
)


def encoded(kind: str, size: tuple[int, int] = (40, 20), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 100, 50)).save(file, kind, **options)
    return file.getvalue()


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan, of some thirty bytes, comes again and again."""
    data = encoded("JPEG", (2048, 2048), progressive=True)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + data[-2:]


def tiff(entries: int, each: int) -> bytes:
    """One whose unknown entries all point to the same bytes."""
    known = [
        (256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1),
        (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64),
    ]  # fmt: skip
    start = 14 + 12 * (len(known) + entries)
    known += [(40_000 + number, 1, each, start) for number in range(entries)]
    rows = b"".join(struct.pack("<HHII", *entry) for entry in known)
    return b"II*\0" + struct.pack("<IH", 8, len(known)) + rows + bytes(4 + each)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png(100_000, 100_000), "too many pixels"),
        (png(2**31 - 1, 1), "too many pixels"),
        (png(9000, 9000), "too many pixels"),
        (jpeg(65_500, 65_500), "too many pixels"),
        (png(40, 20), None),
        (png(0, 20), "not a picture of a known format"),
        (b"", "empty file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "known format"),
        (b"<svg/>", "known format"),
        (encoded("PNG")[:40], None),
        (encoded("WEBP")[:20], None),
        (encoded("TIFF")[:12], None),
        (b"II*\0\xff\xff\xff\xff", None),
        (b"II+\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f", None),
        (b"\xff\xd8\xff\xe0\0\0\xff\xd9", None),
    ],
    ids=range(15),
)
def test_photos_that_are_none(data: bytes, reason: str | None, tmp_path: Path) -> None:
    path = put(tmp_path / "photo.png", data)
    with pytest.raises(OSError, match=reason):
        decode_photo(data)
    with pytest.raises(OSError, match=reason):
        photo_size(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (scans(1000), "more than 512 scans of"),
        (tiff(300, 2**20), "damaged .*its entries claim more bytes than the file has"),
        (b"\xff\xd8" + b"\xff" * 10**7 + b"\xff\xd9", None),
        (b"\xff\xd8" + b"\xff\xe0\0\2" * 10**6 + b"\xff\xd9", None),
    ],
    ids=range(4),
)
def test_photos_that_would_take_long(data: bytes, reason: str | None) -> None:
    with pytest.raises(OSError, match=reason):
        decode_photo(data)


def test_a_jpeg_whose_colours_are_none(tmp_path: Path) -> None:
    whole = encoded("JPEG")
    data = whole[:2] + whole[whole.index(b"\xff\xc0") + 1 :]
    with pytest.raises(OSError):
        decode_photo(data)
    with pytest.raises(OSError):
        photo_size(put(tmp_path / "photo.jpg", data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_all_formats_are_still_read(kind: str, tmp_path: Path) -> None:
    data = encoded(kind)
    assert decode_photo(data).shape == (20, 40, 3)
    assert photo_size(put(tmp_path / "photo", data)) == (40, 20)


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"quality": 100, "subsampling": 0}, {"optimize": True}]
)
def test_all_kinds_of_jpeg_are_still_read(options: dict) -> None:
    assert decode_photo(encoded("JPEG", **options)).shape == (20, 40, 3)
    assert decode_photo(scans(100)).shape == (2048, 2048, 3)


def test_tiffs_of_any_kind_are_still_read() -> None:
    for options in ({"big_tiff": True}, {"compression": "tiff_lzw"}, {"tiffinfo": {270: "x" * 99}}):
        assert decode_photo(encoded("TIFF", **options)).shape == (20, 40, 3)


@pytest.mark.parametrize(
    "error",
    [zlib.error("x"), RuntimeError(), ZeroDivisionError("x"), EOFError(), struct.error("x"),
     RecursionError("x"), OverflowError("x"), KeyError("x"), MemoryError(), SyntaxError("x")],
    ids=repr,
)  # fmt: skip
def test_whatever_pillow_raises_is_a_reason(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    path = picture(tmp_path / "photo.png")
    monkeypatch.setattr(Image.Image, "getexif", fail)  # what only EXIF has wrong is no matter
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.getexif", fail)
    assert photo_size(path) == (40, 20)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(OSError, match=r"damaged header \(.+\)"):
        photo_size(path)


def test_a_photo_larger_than_any_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"536,870,913 bytes, and 536,870,912 are the most"):
        read_photo(large(tmp_path / "photo.jpg", MAX_BYTES + 1))


def test_names_that_no_photo_has(tmp_path: Path) -> None:
    index = index_folder(tmp_path / "index")
    files = PhotoFiles(BoxIndex.open(index), tmp_path)
    for name in ("a\0b", "\ud800", "x" * 300, ""):
        with pytest.raises(OSError):
            photo_size(tmp_path / name)
        with pytest.raises(OSError):
            files.read(training.data.index.Photo(name, None, range(1), None))
