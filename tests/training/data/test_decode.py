"""Decoding: OpenCV's pixels whichever library decodes, upright, and an error for cut-off files."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from training.data import decode
from training.data.decode import decode_photo


def photo(height: int = 53, width: int = 87) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 / width, y * 255 / height, (5 * x * y) % 256], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opencv(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_pixels_are_those_of_opencv(mode: str, subsampling: int, progressive: bool) -> None:
    data = encoded(photo().convert(mode), subsampling=subsampling, progressive=progressive)
    pixels = decode_photo(data)
    assert pixels.shape == (53, 87, 3) and pixels.dtype == np.uint8 and pixels.flags.writeable
    assert np.abs(pixels.astype(int) - opencv(data)).max() <= 1


def test_other_formats() -> None:
    assert np.array_equal(decode_photo(encoded(photo(), "PNG")), np.asarray(photo()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(photo(), exif=exif)
    pixels = decode_photo(data)
    assert pixels.shape[:2] == ((53, 87) if orientation < 5 else (87, 53))
    assert np.array_equal(pixels, opencv(data))


@pytest.mark.parametrize("before", [b"", b"\xff", b"\xff\xe2\xff\xff" + bytes(65533)])
def test_turned_wherever_in_the_header_exif_stands(before: bytes) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encoded(photo(), exif=exif)
    at = data.index(b"\xff\xe1")
    data = data[:at] + 2 * before + data[at:]
    assert decode_photo(data).shape == (87, 53, 3)


def test_no_jpeg_of_common_colours_takes_the_slow_way(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "camera"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    monkeypatch.setattr(decode, "decode_picture", lambda *_: None)
    plain = decode_photo(encoded(photo()))
    assert np.array_equal(decode_photo(encoded(photo(), exif=exif)), plain)
    assert np.array_equal(decode_photo(encoded(photo(), icc_profile=srgb)), plain)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_malformed_exif_is_not_fatal(exif: bytes) -> None:
    assert decode_photo(encoded(photo(), exif=exif)).shape == (53, 87, 3)


def test_what_is_cut_off_or_no_image_is_an_error() -> None:
    data = encoded(photo())
    with pytest.raises(OSError, match="truncated"):
        decode_photo(data[:-200])
    assert decode_photo(data + b"maker's trailer").shape == (53, 87, 3)
    for broken, reason in (
        (b"", "empty file"),
        (b"no image", "not a picture of a known format"),
        (b"\xff\xd8\xff\xd9", "not a picture of a known format"),
        (encoded(photo(), "PNG")[:100], "damaged"),
    ):
        with pytest.raises(OSError, match=reason):
            decode_photo(broken)


def test_a_damaged_frame_without_colours_is_an_error() -> None:
    """Its marker has lost a byte; simplejpeg has no name for the colours that it then finds."""
    file = io.BytesIO()
    Image.new("L", (16, 12)).save(file, "JPEG")
    whole = file.getvalue()
    frame = whole.index(b"\xff\xc0")
    with pytest.raises(OSError):
        decode_photo(b"\xff\xd8" + whole[frame + 1 :])
