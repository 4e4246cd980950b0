"""Crop and stitch: any size, any hole, and nothing but the blend zone changes."""

import itertools

import pytest
import torch

from pbe_model.mask import bounding_box, feather_hole
from pbe_model.region import MODES, crop, plan_region, stitch

SIZES = [(1, 1), (1, 37), (61, 64), (64, 64), (97, 203), (300, 40)]
HOLES = {
    "pixel": (0.5, 0.5, 0, 0),
    "top left": (0, 0, 0.25, 0.25),
    "bottom right": (0.75, 0.75, 1, 1),
    "centre": (0.3, 0.4, 0.6, 0.7),
    "wide": (0, 0.4, 1, 0.5),
    "all": (0, 0, 1, 1),
}


def hole_of(size: tuple[int, int], where: str) -> torch.Tensor:
    """Hole mask (H, W) of at least one pixel, its box given in shares of the picture."""
    height, width = size
    x0, y0, x1, y1 = HOLES[where]
    left, top = min(int(x0 * width), width - 1), min(int(y0 * height), height - 1)
    mask = torch.zeros(size)
    mask[top : max(top + 1, int(y1 * height)), left : max(left + 1, int(x1 * width))] = 1
    return mask


def noise(size: tuple[int, int], batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, *size, 3, generator=torch.Generator().manual_seed(0))


def smooth(size: tuple[int, int]) -> torch.Tensor:
    y = torch.linspace(0, 3, size[0])[:, None]
    x = torch.linspace(0, 4, size[1])[None]
    return torch.stack([y.sin() * x.cos(), (x + y).cos(), y * x / 12], -1)[None] * 0.4 + 0.5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "where"), list(itertools.product(SIZES, HOLES)))
def test_any_size_and_hole(size, where, mode):
    photo, hole = noise(size), hole_of(size, where)
    region = plan_region(hole, mode=mode, resolution=64, size_multiple=16)
    image, hole_crop = crop(photo, hole[None], region)

    height, width = region.size
    assert height % 16 == 0 and width % 16 == 0 and min(region.size) >= 32
    assert image.shape == (1, height, width, 3) and hole_crop.shape == (1, height, width)
    assert image.min() >= 0 and image.max() <= 1
    assert hole_crop.max() == 1

    # The hole is in the crop, and it is replaced entirely.
    x0, y0, x1, y1 = bounding_box(hole)
    for left, top, right, bottom in (region.box, region.blend_box):
        assert left <= x0 and top <= y0 and x1 <= right and y1 <= bottom
    blend = region.photo_blend_mask
    assert blend.shape == size and (blend[hole == 1] == 1).all()
    if mode == "auto":
        box = region.box
        assert box[2] - box[0] == box[3] - box[1] <= max(size)  # square: no stretching

    result = stitch(photo, torch.full_like(image, 2.0), region)  # 2 is clamped to 1
    assert torch.equal(result[0][blend == 0], photo[0][blend == 0])
    assert (result[0][hole == 1] == 1).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_a_constant_photo_survives_crop_and_stitch(size, mode):
    photo = torch.full((1, *size, 3), 0.3)
    hole = hole_of(size, "centre")
    region = plan_region(hole, mode=mode, resolution=64, size_multiple=16)
    image, _ = crop(photo, hole[None], region)
    assert torch.allclose(image, torch.tensor(0.3), atol=1e-6)
    assert torch.allclose(stitch(photo, image, region), photo, atol=1e-6)


@pytest.mark.parametrize("where", HOLES)
@pytest.mark.parametrize("size", [(150, 150), (400, 620), (640, 201)])
def test_an_unchanged_crop_changes_nothing_visibly(size, where):
    photo, hole = smooth(size), hole_of(size, where)
    region = plan_region(hole, resolution=128, size_multiple=16)
    image, _ = crop(photo, hole[None], region)
    assert (stitch(photo, image, region) - photo).abs().max() < 0.01


def test_a_crop_at_its_own_size_is_exact():
    photo, hole = noise((200, 300)), hole_of((200, 300), "all")
    hole[:], hole[80:110, 100:150] = 0, 1
    region = plan_region(hole, resolution=96, size_multiple=16, context=96 / 54, blend=2)
    assert region.box == (77, 47, 173, 143)
    image, hole_crop = crop(photo, hole[None], region)
    assert torch.equal(image[0], photo[0, 47:143, 77:173])
    assert torch.equal(hole_crop[0], hole[47:143, 77:173])
    assert torch.equal(stitch(photo, image, region), photo)


def test_the_square_shifts_before_it_overflows():
    size = (100, 300)

    def box(x0, y0, x1, y1, **options):
        hole = torch.zeros(size)
        hole[y0:y1, x0:x1] = 1
        return plan_region(hole, resolution=64, size_multiple=16, blend=0, **options).box

    assert box(140, 40, 160, 60, context=2) == (130, 30, 170, 70)  # centred
    assert box(0, 0, 20, 20, context=2) == (0, 0, 40, 40)  # in the corner
    assert box(280, 90, 300, 100, context=2) == (260, 60, 300, 100)
    assert box(120, 10, 190, 80, context=2) == (105, 0, 205, 100)  # smaller, not beyond the rim
    assert box(100, 0, 200, 100, context=2) == (90, -10, 210, 110)  # 1.2 times the hole: overflows
    assert box(0, 0, 300, 100, context=2) == (0, -100, 300, 200)  # never beyond the long side
    assert box(150, 50, 151, 51) == (146, 46, 154, 54)  # upscaled 8 times at most


def test_overflow_repeats_the_edges():
    photo, hole = noise((2, 4)), torch.ones(2, 4)
    region = plan_region(hole, resolution=4, size_multiple=4)
    image, hole_crop = crop(photo, hole[None], region)
    assert region.box == (0, -1, 4, 3)
    assert torch.equal(image[0], photo[0][[0, 0, 1, 1]])
    assert torch.equal(hole_crop, torch.ones(1, 4, 4))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 100), (512, 512)),
        ((681, 1024), (448, 640)),
        ((1024, 681), (640, 448)),
        ((1, 5000), (256, 1024)),
    ],
)
def test_whole_keeps_the_aspect_to_the_multiple(size, expected):
    region = plan_region(torch.ones(size), mode="whole")
    assert region.size == expected and region.box == (0, 0, size[1], size[0])


@pytest.mark.parametrize("size", [(512, 512), (681, 1024), (1, 5000)])
def test_squash_takes_the_whole_photo_at_the_resolution(size):
    hole = hole_of(size, "centre")
    region = plan_region(hole, mode="squash")
    assert region.size == (512, 512) and region.box == (0, 0, size[1], size[0])
    if size == (512, 512):
        photo = noise(size)
        image, hole_crop = crop(photo, hole[None], region)
        assert torch.equal(image, photo) and torch.equal(hole_crop[0], hole)


def test_a_thin_hole_survives_shrinking():
    hole = torch.zeros(1, 1000, 1000)
    hole[:, 333, :] = 1
    _, hole_crop = crop(
        noise((1000, 1000)), hole, plan_region(hole[0], resolution=64, size_multiple=16)
    )
    assert (hole_crop[0].max(0).values == 1).all()


def test_blend_mask_fades_over_its_pixels_and_stops():
    hole = torch.zeros(40, 40)
    hole[:, :20] = 1
    row = plan_region(hole, mode="whole", blend=4).photo_blend_mask[20]
    expected = torch.tensor([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0])
    assert torch.allclose(row[18:26], expected)
    hard = plan_region(hole, mode="whole", blend=0).photo_blend_mask
    assert torch.equal(hard, hole)


def test_a_feathered_mask_widens_the_blend_zone_but_noise_does_not():
    hole = torch.zeros(60, 60)
    hole[20:40, 20:40] = 1
    feathered = feather_hole(hole, 8)
    blend = plan_region(feathered, mode="whole", blend=2).photo_blend_mask
    row = blend[30, 36:52]
    assert (row[:4] == 1).all() and (row.diff() <= 0).all() and (row[-4:] == 0).all()
    assert 0 < row[8] < 1  # five pixels outside: beyond the 2 of `blend`
    noisy = torch.where(hole == 1, hole, torch.full_like(hole, 0.09))
    plain, disturbed = (plan_region(mask, blend=3).photo_blend_mask for mask in (hole, noisy))
    assert torch.equal(plain, disturbed)


def test_stitch_broadcasts_and_takes_upscaled_crops():
    photo, hole = noise((80, 90)), hole_of((80, 90), "centre")
    region = plan_region(hole, resolution=64, size_multiple=16)
    crops = torch.rand(3, 128, 128, 3)
    results = stitch(photo, crops, region)
    assert results.shape == (3, 80, 90, 3)
    assert torch.equal(results[1:2], stitch(photo, crops[1:2], region))
    assert stitch(noise((80, 90), 3), crops[:1], region).shape == (3, 80, 90, 3)
    with pytest.raises(ValueError, match="2 photos and 3 edited crops"):
        stitch(noise((80, 90), 2), crops, region)


def test_stitch_neither_writes_to_its_inputs_nor_lets_nan_out_of_the_blend_zone():
    photo, hole = noise((80, 90)), hole_of((80, 90), "top left")
    before = photo.clone()
    region = plan_region(hole, resolution=64, size_multiple=16)
    result = stitch(photo, torch.full((1, 64, 64, 3), float("nan")), region)
    outside = region.photo_blend_mask == 0
    assert torch.equal(photo, before)
    assert torch.equal(result[0][outside], photo[0][outside])
    assert result[0][hole == 1].isnan().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"mode": "half"}, "'half'; choose one of auto, whole"),
        ({"context": 0.5}, "context is 0.5"),
        ({"blend": -1}, "blend is -1"),
        ({"resolution": 500}, "500 is no multiple of 64.*use 512"),
        ({"resolution": 0}, "use 64"),
    ],
)
def test_bad_values_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan_region(torch.ones(10, 10), **arguments)


def test_bad_sizes_and_empty_masks_are_named():
    with pytest.raises(ValueError, match="mask is empty"):
        plan_region(torch.full((10, 10), 0.5))
    region = plan_region(torch.ones(10, 12))
    with pytest.raises(ValueError, match=r"mask has 10x12 pixels.*planned for 12x10"):
        crop(noise((10, 12)), torch.ones(1, 12, 10), region)
    with pytest.raises(ValueError, match="photo has 64x64 pixels"):
        stitch(noise((64, 64)), noise((64, 64)), region)
