"""Files in and out: what pictures come as, and one clear sentence for each way to fail."""

import numpy as np
import pytest
import torch
from PIL import Image

from pbe_model import image_io, picture_headers
from pbe_model.image_io import read_exemplar, read_image, read_mask, write_image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def save(path, pixels, mode=None, **options):
    Image.fromarray(np.asarray(pixels)).convert(mode).save(path, **options)
    return path


# ---- reading pictures -----------------------------------------------------------------------


def test_colour_is_exact(tmp_path):
    image = read_image(save(tmp_path / "a.png", PIXELS))
    assert image.dtype == torch.float32
    assert torch.equal(image, torch.from_numpy(PIXELS) / 255)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey_has_three_equal_channels(tmp_path, mode):
    path = save(tmp_path / "a.png", PIXELS, mode)
    image = read_image(path)
    grey = np.array(Image.open(path).convert("L"))
    assert torch.equal(image, torch.from_numpy(grey)[..., None].expand(-1, -1, 3) / 255)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        image = read_image(tmp_path / name)
        assert torch.allclose(image[0, :, 1], torch.tensor([0, 257, 32768, 65535]) / 65535)


def test_sixteen_bit_colour(tmp_path):
    cv2 = pytest.importorskip("cv2")  # Pillow reads such files but does not write them
    cv2.imwrite(str(tmp_path / "a.png"), PIXELS[..., ::-1].astype(np.uint16) * 257)
    assert torch.equal(read_image(tmp_path / "a.png"), torch.from_numpy(PIXELS) / 255)


def test_floating_point_is_clamped(tmp_path):
    Image.fromarray(np.array([[-1, 0.25, 2, np.nan]], np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 0.25, 1, 0]


def test_cmyk_and_palette(tmp_path):
    colour = torch.tensor([204.0, 51, 102]) / 255  # in the web palette, so not dithered
    flat = np.full((16, 16, 3), (204, 51, 102), np.uint8)
    ink = save(tmp_path / "a.jpg", flat, "CMYK", quality=95)
    assert Image.open(ink).mode == "CMYK"
    assert (read_image(ink) - colour).abs().max() < 0.02
    for path in (save(tmp_path / "a.png", flat, "P"), save(tmp_path / "a.gif", flat)):
        assert Image.open(path).mode == "P"
        assert torch.equal(read_image(path), colour.expand(16, 16, 3))


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image = read_image(save(tmp_path / "a.png", PIXELS, exif=exif))
    assert torch.equal(image, torch.from_numpy(np.rot90(PIXELS, -1).copy()) / 255)


def test_transparent_turns_white_and_becomes_the_cut_out(tmp_path):
    alpha = np.zeros((5, 7), np.uint8)
    alpha[1:4, 2:5] = 255
    alpha[0, 0] = 51
    path = save(tmp_path / "a.png", np.dstack([PIXELS, alpha]))
    image, exemplar_mask = read_exemplar(path)
    assert exemplar_mask is not None
    assert torch.equal(exemplar_mask, torch.from_numpy(alpha) / 255)
    assert torch.equal(image[1:4, 2:5], torch.from_numpy(PIXELS[1:4, 2:5]) / 255)
    assert (image[4] == 1).all()
    assert torch.allclose(image[0, 0], 0.8 + 0.2 * torch.from_numpy(PIXELS[0, 0]) / 255)
    assert torch.equal(read_image(path), image)


def test_opaque_exemplars_have_no_cut_out(tmp_path):
    opaque = np.dstack([PIXELS, np.full((5, 7), 255, np.uint8)])
    assert read_exemplar(save(tmp_path / "a.png", opaque))[1] is None
    assert read_exemplar(save(tmp_path / "b.png", PIXELS))[1] is None
    with pytest.raises(ValueError, match=r"c\.png is transparent everywhere"):
        read_exemplar(save(tmp_path / "c.png", np.dstack([PIXELS, np.zeros((5, 7), np.uint8)])))


def test_one_pixel(tmp_path):
    path = save(tmp_path / "a.png", np.full((1, 1, 3), 255, np.uint8))
    assert torch.equal(read_image(path), torch.ones(1, 1, 3))
    assert torch.equal(read_mask(path, (3, 2)), torch.ones(3, 2))


def test_large_pictures_are_read_if_their_files_are_large_too(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    monkeypatch.setattr(picture_headers, "MAX_PIXELS", 60)
    photo = save(tmp_path / "photo.png", noise)
    bomb = save(tmp_path / "bomb.png", np.zeros((1000, 1000), np.uint8))
    assert read_image(photo).shape == (20, 20, 3)
    assert bomb.stat().st_size * 128 < 1000 * 1000
    with pytest.raises(ValueError, match=r"bomb\.png: it has more than 0 megapixels, .* smaller"):
        read_image(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match="megapixels"):
        read_image(photo)


# ---- reading masks --------------------------------------------------------------------------


def test_white_is_the_hole(tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[2:4, 3:6] = 255
    expected = torch.from_numpy(mask) / 255
    colour = np.dstack([mask] * 3)
    opaque = np.dstack([colour, np.full((6, 8), 255, np.uint8)])
    for pixels in (mask, mask > 0, colour, opaque, mask.astype(np.uint16) * 257):
        Image.fromarray(pixels).save(tmp_path / "m.png")
        assert torch.allclose(read_mask(tmp_path / "m.png"), expected, atol=1e-6)


def test_holes_made_of_transparency(tmp_path):
    brush = np.zeros((6, 8), np.uint8)
    brush[2:4, 3:6] = 255
    hole = torch.from_numpy(brush) / 255
    photo = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    erased = save(tmp_path / "erased.png", np.dstack([photo, 255 - brush]))
    white_layer = save(tmp_path / "layer.png", np.dstack([np.full_like(photo, 255), brush]))
    black_below = save(tmp_path / "below.png", np.dstack([brush] * 4))
    for path in (erased, white_layer, black_below):
        assert torch.equal(read_mask(path), hole)


def test_masks_of_another_size_are_resized(tmp_path):
    mask = np.zeros((10, 10), np.uint8)
    mask[:, 5:] = 255
    path = save(tmp_path / "m.png", mask)
    larger = read_mask(path, (30, 40))
    assert larger.shape == (30, 40) and larger.min() >= 0 and larger.max() <= 1
    assert (larger > 0.5)[:, 20:].all() and not (larger > 0.5)[:, :20].any()
    smaller = read_mask(path, (4, 2))  # another aspect: stretched
    assert (smaller > 0.5).tolist() == [[False, True]] * 4


def test_empty_masks_are_refused(tmp_path):
    path = save(tmp_path / "m.png", np.full((6, 8), 127, np.uint8))
    with pytest.raises(ValueError, match=r"m\.png is empty.*paint white"):
        read_mask(path)


# ---- files that cannot be read --------------------------------------------------------------


@pytest.mark.parametrize("read", [read_image, read_mask, read_exemplar])
def test_unreadable_files(tmp_path, read):
    large = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in (".png", ".jpg"):
        whole = save(tmp_path / f"whole{suffix}", large).read_bytes()
        (tmp_path / f"short{suffix}").write_bytes(whole[: len(whole) // 2])
    broken = bytearray((tmp_path / "whole.png").read_bytes())
    broken[20] ^= 255  # in the header, whose checksum fails
    (tmp_path / "broken.png").write_bytes(broken)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    sentences = {
        "missing.png": "there is no such file",
        ".": "it is a folder",
        "text.png": "not a picture of a known format",
        "empty.png": "an empty file",
        "short.png": "the picture is damaged",
        "short.jpg": "the picture is damaged",
        "broken.png": "not a picture of a known format|the picture is damaged",
    }
    for name, sentence in sentences.items():
        with pytest.raises(ValueError, match=f"cannot read .*{name}: .*({sentence})") as caught:
            read(tmp_path / name)
        assert "\n" not in str(caught.value)


# ---- writing --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", image_io.SUFFIXES)
def test_write_and_read_again(tmp_path, suffix):
    image = torch.from_numpy(PIXELS) / 255
    path = tmp_path / f"a{suffix.upper()}"
    write_image(path, image)
    again = read_image(path)
    if suffix.startswith(".jp"):
        assert (again - image).abs().mean() < 0.05
    else:
        assert torch.equal(again, image)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_write_rounds_clamps_and_takes_masks(tmp_path):
    write_image(tmp_path / "a.png", torch.tensor([[-0.5, 0.4999 / 255, 0.5001 / 255, 7.0]]))
    assert np.array(Image.open(tmp_path / "a.png")).tolist() == [[0, 0, 1, 255]]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, torch.zeros(2, 2, 3))
    before = path.read_bytes()

    def fail_half_way(self, file, *args, **kwargs):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail_half_way)
    with pytest.raises(ValueError, match=r"cannot write .*a\.png: No space left on device; check"):
        write_image(path, torch.ones(2, 2, 3))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_places_that_cannot_be_written(tmp_path):
    image = torch.zeros(2, 2, 3)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    sentences = {
        "a.xyz": r"unknown suffix '.xyz'; use one of .png, .jpg",
        "a": "unknown suffix ''",
        "none/a.png": "there is no folder .*none; create it first",
        "file/a.png": "there is no folder .*file; create it first",
        "folder.png": "it is a folder",
    }
    for name, sentence in sentences.items():
        with pytest.raises(ValueError, match=f"cannot write .*{name}: {sentence}"):
            write_image(tmp_path / name, image)
    with pytest.raises(ValueError, match="NaN"):
        write_image(tmp_path / "a.png", image / 0)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.png"]
    assert not list((tmp_path / "folder.png").iterdir())
