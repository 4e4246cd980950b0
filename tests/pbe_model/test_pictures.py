"""What every kind of picture means."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from pbe_model.colour_profiles import is_srgb
from pbe_model.image_io import read_exemplar, read_image, read_mask, read_note, write_image
from pbe_model.pictures import Pixels, decode_picture

from ..picture_files import (
    ALPHA,
    COLOUR,
    FILES,
    GREY,
    HEIGHT,
    RGB,
    SIDE_INFORMATION,
    WIDTH,
    chunk,
    encoded,
    exif_entry,
    grey_profile,
    srgb_profile,
    swapped_profile,
)


def decoded(name: str, managed: bool = True) -> Pixels:
    return decode_picture(io.BytesIO(FILES[name]), managed=managed)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 0.51) -> bool:
    return (
        found.shape == expected.shape and np.abs(found.astype(float) - expected).max() < tolerance
    )


# ---- meaning --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("RGB ")])
def test_colours(name: str) -> None:
    if "see-through" in name:
        hidden = np.where((COLOUR == (90, 120, 108)).all(-1), 0, 255)
        assert (hidden == 0).any()
        assert close(decoded(name).over_white(), over_white(COLOUR, hidden))
        return
    pixels = decoded(name)
    assert pixels.alpha is None and pixels.colour.dtype == np.uint8
    lossless = name.split()[1] in ("PNG", "TIFF", "BMP", "PPM", "JPEG2000")
    assert np.abs(pixels.colour.astype(int) - COLOUR).mean() < (0.001 if lossless else 2)


@pytest.mark.parametrize("name", ["RGBA PNG", "RGBA TIFF", "16-bit RGBA PNG", "RGBA JPEG2000"])
def test_opacity_is_kept_apart_and_put_over_white(name: str) -> None:
    pixels = decoded(name)
    assert pixels.alpha is not None and (pixels.alpha == ALPHA).all()
    assert (pixels.colour == COLOUR).all()
    assert close(pixels.over_white(), over_white(COLOUR, ALPHA))


@pytest.mark.parametrize("name", [name for name in FILES if "see-through" in name or "LA " in name])
def test_opacity_of_any_kind_of_picture(name: str) -> None:
    pixels = decoded(name)
    has_opacity = "WEBP" not in name or "LA" in name
    assert (pixels.alpha is not None) == has_opacity
    if pixels.alpha is not None:
        assert (pixels.over_white()[pixels.alpha == 0] == 255).all()
        assert pixels.alpha.min() < 255


def test_more_than_eight_bits() -> None:
    for name in ("16-bit grey PNG", "16-bit grey TIFF", "float TIFF", "32-bit TIFF of 8",
                 "32-bit TIFF of 16", "float TIFF of 8 bits", "float TIFF of 16 bits"):  # fmt: skip
        colour = decoded(name).colour
        assert colour.dtype == np.float32
        assert np.abs(colour - GREY[..., None] / 255).max() < 1e-6, name
    see_through = decoded("16-bit see-through grey PNG")
    assert (
        see_through.alpha is not None and (see_through.alpha == 255 * (GREY[0, 30] != GREY)).all()
    )
    assert (decoded("16-bit RGB PNG").colour == COLOUR).all()


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        (GREY.astype(np.int32) * 10_000, "32 bits, from 0 to 2,370,000"),
        (GREY.astype(np.int32) - 5, "32 bits, from -5 to 232"),
        (GREY.astype(np.float32) * 1e4, "floating point of up to"),
    ],
)
def test_numbers_without_a_known_white_are_refused(numbers, reason, tmp_path) -> None:
    (tmp_path / "a.tif").write_bytes(encoded(Image.fromarray(numbers), "TIFF"))
    for read in (read_image, read_mask, read_exemplar):
        with pytest.raises(ValueError, match=f"a.tif: its numbers are .*{reason}.*; save it with"):
            read(tmp_path / "a.tif")


def test_highlights_beyond_white_and_masks_in_floating_point(tmp_path) -> None:
    bright = (GREY / np.float32(200)).astype(np.float32)
    (tmp_path / "a.tif").write_bytes(encoded(Image.fromarray(bright), "TIFF"))
    assert torch.equal(read_image(tmp_path / "a.tif")[..., 0], torch.from_numpy(bright).clamp(0, 1))
    mask = np.zeros((9, 9), np.float32)
    mask[3:6, 3:6] = 255
    mask[3, 3] = 100
    (tmp_path / "m.tif").write_bytes(encoded(Image.fromarray(mask), "TIFF"))
    assert torch.allclose(read_mask(tmp_path / "m.tif"), torch.from_numpy(mask) / 255)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_all_turns(format: str) -> None:
    upright = decoded(f"turned 1 {format}").colour.astype(int)
    undone = {
        2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright, -1), 7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright),
    }  # fmt: skip
    for turn, expected in undone.items():
        assert close(decoded(f"turned {turn} {format}").colour, expected, 3), turn


# ---- colour profiles ------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_profiles_lead_to_srgb(format: str) -> None:
    plain = decoded(f"RGB {format}").colour
    for name in ("sRGB", "nonsense"):  # to the last bit
        assert (decoded(f"{name} profile {format}").colour == plain).all()
    assert close(decoded(f"swapped profile {format}").colour, plain[..., ::-1].astype(int), 2.5)
    assert (decoded(f"swapped profile {format}", managed=False).colour == plain).all()


def test_profiles_of_other_kinds_of_pictures() -> None:
    swapped = decoded("swapped profile RGBA PNG")
    assert close(swapped.colour, COLOUR[..., ::-1].astype(int), 2.5)
    assert swapped.alpha is not None and (swapped.alpha == ALPHA).all()
    palette = decoded("P PNG").colour[..., ::-1].astype(int)
    assert close(decoded("swapped profile P PNG").colour, palette, 2.5)
    for kind in ("L", "CMYK"):  # not for these
        expected = decoded(f"{kind} JPEG").colour
        assert (decoded(f"profile of another kind {kind} JPEG").colour == expected).all()


def test_grey_proportional_to_light_becomes_srgb() -> None:
    light = decoded("L PNG").colour[..., 0] / 255
    srgb = np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    bright = light > 0.03  # LittleCMS is coarse below
    for format in ("PNG", "TIFF"):
        colour = decoded(f"grey profile L {format}").colour
        assert close(colour[bright], srgb[bright][:, None].repeat(3, -1), 2.5)


def test_a_mask_is_its_numbers_whatever_the_profile(tmp_path) -> None:
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    ramp.save(tmp_path / "m.png", icc_profile=grey_profile())
    mask = read_mask(tmp_path / "m.png")
    assert torch.allclose(mask, torch.arange(256)[None] / 255, atol=1e-6)


def test_damaged_and_huge_profiles_are_ignored() -> None:
    sound = swapped_profile()
    rng = np.random.default_rng(0)
    broken = [sound[:200], sound[:128], b"", bytes(2**23), sound + bytes(2**23)]
    for _ in range(50):
        changed = bytearray(sound)
        for place in rng.integers(0, len(sound), 8):
            changed[place] = rng.integers(256)
        broken.append(bytes(changed))
    for profile in broken:
        pixels = decode_picture(io.BytesIO(encoded(RGB, "TIFF", icc_profile=profile)))
        assert pixels.colour.shape == (HEIGHT, WIDTH, 3)
    large = decode_picture(io.BytesIO(encoded(RGB, "TIFF", icc_profile=broken[4])))
    assert (large.colour == COLOUR).all()


# ---- beside the pixels ----------------------------------------------------------------------


@pytest.mark.parametrize("name", SIDE_INFORMATION)
def test_what_stands_beside_the_pixels_never_costs_the_picture(name: str, tmp_path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(SIDE_INFORMATION[name])
    assert torch.equal(read_image(path), torch.from_numpy(COLOUR) / 255)
    assert read_mask(path).shape == (HEIGHT, WIDTH)
    assert read_note(path) is None


def test_what_is_sound_beside_the_pixels_still_counts() -> None:
    whole = encoded(RGB, "PNG", icc_profile=swapped_profile(), exif=b"Exif\0\0" + exif_entry(3, 6))
    at = whole.index(b"IDAT") - 4
    faulty = whole[:at] + chunk(b"pHYs", b"\0") + whole[at:]
    expected = np.rot90(COLOUR[..., ::-1], -1).astype(int)
    assert close(decode_picture(io.BytesIO(faulty)).colour, expected, 2.5)


@pytest.mark.parametrize(
    "nonsense", [b"XXXX", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"]
)
def test_nonsense_exif_of_an_avif(nonsense: bytes) -> None:
    exif = Image.Exif()
    exif[0x010F] = "camera"
    whole = encoded(RGB, "AVIF", exif=exif.tobytes())
    at = max(whole.find(b"MM\0*"), whole.find(b"II*\0"))
    faulty = whole[:at] + nonsense + whole[at + len(nonsense) :]
    assert at > 0
    assert (decode_picture(io.BytesIO(faulty)).colour == decoded("RGB AVIF").colour).all()


def test_faults_of_the_pixels_are_still_faults(tmp_path) -> None:
    path = tmp_path / "a.png"
    for data in (
        SIDE_INFORMATION["short resolution"][:-100],
        SIDE_INFORMATION["text of 2 MB"].replace(b"IDAT", b"JDAT"),
        SIDE_INFORMATION["text of 2 MB"].replace(b"IHDR", b"IHDS"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.png: (the picture is damaged|it is not a pict)"):
            read_image(path)


# ---- names and strangers --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "a.PNG", "a", "a.safetensors", "a.JPEG.txt"])
def test_the_suffix_does_not_matter(name: str, tmp_path) -> None:
    (tmp_path / name).write_bytes(FILES["RGB PNG"])
    assert torch.equal(read_image(tmp_path / name), torch.from_numpy(COLOUR) / 255)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"<!DOCTYPE html><html><body>404</body></html>", "but an HTML page .*download the file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "but a Git LFS pointer .*git lfs pull",
        ),
        (b"%PDF-1.7\n1 0 obj", "but a PDF document"),
        (b'{"error": "not found"}', "but a JSON text"),
        (bytes(100), "a file of zeros"),
        (b"", "it is an empty file"),
        (b"\x89PNG\r\n\x1a\nIHDR", "a PNG picture that is damaged|is damaged"),
    ],
)
def test_strangers_get_their_own_sentence(content: bytes, sentence: str, tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    for read in (read_image, read_mask, read_exemplar):
        with pytest.raises(ValueError, match=f"cannot read .*a.jpg: .*({sentence})") as caught:
            read(tmp_path / "a.jpg")
        assert "\n" not in str(caught.value)


def test_heif_without_its_package_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(ValueError, match=r"a\.heic: it is a HEIF photo; install .*pillow-heif, or"):
        read_image(tmp_path / "a.heic")


# ---- writing --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_opacity_is_written(suffix: str, tmp_path) -> None:
    image = torch.from_numpy(np.dstack([COLOUR, ALPHA])) / 255
    write_image(tmp_path / f"a{suffix}", image)
    with Image.open(tmp_path / f"a{suffix}") as written:
        assert (np.asarray(written) == np.dstack([COLOUR, ALPHA])).all()


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_formats_without_opacity_show_white(suffix: str, tmp_path) -> None:
    image = torch.from_numpy(np.dstack([COLOUR, ALPHA])) / 255
    write_image(tmp_path / f"a{suffix}", image)
    expected = torch.from_numpy(over_white(COLOUR, ALPHA)) / 255
    assert (read_image(tmp_path / f"a{suffix}") - expected).abs().mean() < 0.01


def test_srgb_profiles_are_told_from_others() -> None:
    assert is_srgb(None) and is_srgb(srgb_profile()) and is_srgb(b"nonsense")
    assert not is_srgb(swapped_profile())
    assert is_srgb(swapped_profile(), "L") and not is_srgb(grey_profile(), "L")
