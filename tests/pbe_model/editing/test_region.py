"""Crop and stitch: any size, any hole, and nothing but the blend zone changes."""

import itertools

import pytest
import torch

from pbe_model.editing.crop_plan import CROPS, plan_region, plan_regions
from pbe_model.editing.crop_settings import CropSettings
from pbe_model.editing.mask import bounding_box, expand_hole, feather_hole
from pbe_model.editing.region import crop, match_colour, photo_blend_mask, stitch, stitch_all

from ..small import uniform

AT_64 = CropSettings(resolution=64, multiple=16)
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


@pytest.mark.parametrize("mode", CROPS)
@pytest.mark.parametrize(("size", "where"), list(itertools.product(SIZES, HOLES)))
def test_any_size_and_hole(size, where, mode):
    photo, hole = noise(size), hole_of(size, where)
    region = plan_region(hole, AT_64, mode=mode)
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


@pytest.mark.parametrize("mode", CROPS)
@pytest.mark.parametrize("size", SIZES)
def test_a_constant_photo_survives_crop_and_stitch(size, mode):
    photo = torch.full((1, *size, 3), 0.3)
    hole = hole_of(size, "centre")
    region = plan_region(hole, AT_64, mode=mode)
    image, _ = crop(photo, hole[None], region)
    assert torch.allclose(image, torch.tensor(0.3), atol=1e-6)
    assert torch.allclose(stitch(photo, image, region), photo, atol=1e-6)


@pytest.mark.parametrize("where", HOLES)
@pytest.mark.parametrize("size", [(150, 150), (400, 620), (640, 201)])
def test_an_unchanged_crop_changes_nothing_visibly(size, where):
    photo, hole = smooth(size), hole_of(size, where)
    region = plan_region(hole, CropSettings(resolution=128, multiple=16))
    image, _ = crop(photo, hole[None], region)
    assert (stitch(photo, image, region) - photo).abs().max() < 0.01


def test_a_crop_at_its_own_size_is_exact():
    photo, hole = noise((200, 300)), hole_of((200, 300), "all")
    hole[:], hole[80:110, 100:150] = 0, 1
    region = plan_region(hole, CropSettings(resolution=96, multiple=16, context=96 / 54, blend=2))
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
        crop = CropSettings(resolution=64, multiple=16, blend=0, **options)
        return plan_region(hole, crop).box

    assert box(140, 40, 160, 60, context=2) == (130, 30, 170, 70)  # centred
    assert box(0, 0, 20, 20, context=2) == (0, 0, 40, 40)  # in the corner
    assert box(280, 90, 300, 100, context=2) == (260, 60, 300, 100)
    assert box(120, 10, 190, 80, context=2) == (105, 0, 205, 100)  # smaller, not beyond the rim
    assert box(100, 0, 200, 100, context=2) == (90, -10, 210, 110)  # 1.2 times the hole: overflows
    assert box(0, 0, 300, 100, context=2) == (0, -100, 300, 200)  # never beyond the long side
    assert box(150, 50, 151, 51) == (146, 46, 154, 54)  # upscaled 8 times at most


def test_overflow_repeats_the_edges():
    photo, hole = noise((2, 4)), torch.ones(2, 4)
    region = plan_region(hole, CropSettings(resolution=4, multiple=4))
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
    _, hole_crop = crop(noise((1000, 1000)), hole, plan_region(hole[0], AT_64))
    assert (hole_crop[0].max(0).values == 1).all()


def test_blend_mask_fades_over_its_pixels_and_stops():
    hole = torch.zeros(40, 40)
    hole[:, :20] = 1
    row = plan_region(hole, CropSettings(blend=4), mode="whole").photo_blend_mask[20]
    expected = torch.tensor([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0])
    assert torch.allclose(row[18:26], expected)
    hard = plan_region(hole, CropSettings(blend=0), mode="whole").photo_blend_mask
    assert torch.equal(hard, hole)


def test_a_feathered_mask_widens_the_blend_zone_but_noise_does_not():
    hole = torch.zeros(60, 60)
    hole[20:40, 20:40] = 1
    feathered = feather_hole(hole, 8)
    blend = plan_region(feathered, CropSettings(blend=2), mode="whole").photo_blend_mask
    row = blend[30, 36:52]
    assert (row[:4] == 1).all() and (row.diff() <= 0).all() and (row[-4:] == 0).all()
    assert 0 < row[8] < 1  # five pixels outside: beyond the 2 of `blend`
    noisy = torch.where(hole == 1, hole, torch.full_like(hole, 0.09))
    plain, disturbed = (
        plan_region(mask, CropSettings(blend=3)).photo_blend_mask for mask in (hole, noisy)
    )
    assert torch.equal(plain, disturbed)


def test_stitch_broadcasts_and_takes_upscaled_crops():
    photo, hole = noise((80, 90)), hole_of((80, 90), "centre")
    region = plan_region(hole, AT_64)
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
    region = plan_region(hole, AT_64)
    result = stitch(photo, torch.full((1, 64, 64, 3), float("nan")), region)
    outside = region.photo_blend_mask == 0
    assert torch.equal(photo, before)
    assert torch.equal(result[0][outside], photo[0][outside])
    assert result[0][hole == 1].isnan().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"context": 0.5}, "context is 0.5"),
        ({"context": float("nan")}, "context is nan"),
        ({"resolution": 16384}, "resolution is 16384; give at most 10000"),
        ({"context_mask": torch.ones(1, 4, 4)}, r"context_mask has shape \(1, 4, 4\)"),
        ({"blend_mask": torch.ones(4, 4) > 0}, "blend_mask is of type torch.bool"),
        ({"blend": -1}, "blend is -1"),
        ({"resolution": 500}, "500 is not a multiple of 64.*use 512"),
        ({"resolution": 0}, "resolution (is )?0.*(use 64|give 1 or more)"),
    ],
)
def test_bad_values_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        CropSettings(multiple=64, **arguments)
    if "resolution" in arguments:  # also where the model says later what it needs
        with pytest.raises(ValueError, match=sentence):
            CropSettings(**arguments).completed(resolution=256, multiple=64)


def test_what_is_left_open_is_the_models():
    mask = torch.ones(4, 4)
    crop = CropSettings(context=2, context_mask=mask).completed(resolution=96, multiple=32)
    assert (crop.context, crop.resolution, crop.multiple) == (2, 96, 32)
    assert crop.context_mask is mask and crop.blend_mask is None
    assert CropSettings(resolution=64).completed(resolution=96, multiple=32).resolution == 64
    published = CropSettings().completed()
    assert (published.resolution, published.multiple) == (512, 64)


def test_unknown_modes_are_named():
    with pytest.raises(ValueError, match=r"'half'; choose one of auto, whole, squash$"):
        plan_region(torch.ones(10, 10), mode="half")
    with pytest.raises(ValueError, match="'half'; choose one of auto, whole, squash, each"):
        plan_regions(torch.ones(10, 10), mode="half")


def test_bad_sizes_and_empty_masks_are_named():
    with pytest.raises(ValueError, match="mask is empty"):
        plan_region(torch.full((10, 10), 0.5))
    with pytest.raises(ValueError, match="mask is empty"):
        plan_regions(torch.zeros(10, 10), mode="each")
    for name in ("context", "blend"):
        with pytest.raises(ValueError, match=rf"{name} mask has shape \(10, 9\).*\(10, 10\)"):
            plan_region(torch.ones(10, 10), CropSettings(**{f"{name}_mask": torch.ones(10, 9)}))
    with pytest.raises(ValueError, match="blend mask is empty"):
        plan_region(torch.ones(10, 10), CropSettings(blend_mask=torch.zeros(10, 10)))
    with pytest.raises(ValueError, match="blend mask is empty"):
        plan_each(squares((20, 20), (150, 90)), blend_mask=torch.zeros(120, 200))
    region = plan_region(torch.ones(10, 12))
    with pytest.raises(ValueError, match=r"mask has 10x12 pixels.*planned for 12x10"):
        crop(noise((10, 12)), torch.ones(1, 12, 10), region)
    with pytest.raises(ValueError, match="photo has 64x64 pixels"):
        stitch(noise((64, 64)), noise((64, 64)), region)


# ---- several holes -----------------------------------------------------------------------------


def squares(*corners: tuple[int, int], side: int = 10, size: tuple[int, int] = (120, 200)):
    """Hole mask with squares at these (x, y)."""
    mask = torch.zeros(size)
    for x, y in corners:
        mask[y : y + side, x : x + side] = 1
    return mask


def plan_each(hole_mask: torch.Tensor, **options):
    return plan_regions(hole_mask, CropSettings(resolution=32, multiple=16, **options), mode="each")


def test_one_hole_by_itself_is_auto():
    hole = feather_hole(squares((30, 40)), 3)
    hole[100, 180] = 0.3  # a faint speck belongs to the hole as well
    shares = hole.roll(4, 1)
    for options in ({}, {"blend_mask": shares}):
        auto = plan_region(hole, CropSettings(resolution=32, multiple=16, **options))
        [each] = plan_each(hole, **options)
        assert torch.equal(auto.blend_mask, each.blend_mask)
        assert (auto.box, auto.size, auto.blend_box) == (each.box, each.size, each.blend_box)


def test_distant_holes_have_crops_of_their_own():
    corners = [(150, 10), (20, 50), (120, 90)]
    hole = squares(*corners)
    regions = plan_each(hole, context=2, blend=2)
    assert [region.size for region in regions] == [(32, 32)] * 3
    for region, (x, y) in zip(regions, corners, strict=True):  # from top to bottom
        assert region.box == (x - 9, y - 9, x + 19, y + 19)  # twice the hole with its blend
        alone = squares((x, y))
        assert torch.equal(region.photo_blend_mask, plan_each(alone, blend=2)[0].photo_blend_mask)
    together = photo_blend_mask(regions)
    assert torch.equal(together, plan_region(hole, CropSettings(blend=2)).photo_blend_mask)


@pytest.mark.parametrize(
    ("gap", "crops"), [(0, 1), (1, 1), (6, 1), (7, 2), (60, 2)], ids=lambda value: str(value)
)
def test_holes_that_would_see_each_other_are_taken_together(gap, crops):
    """The crop shows 9 pixels beside its hole: at a gap of 6, 3 of the neighbour's 10."""
    regions = plan_each(squares((80, 50), (90 + gap, 50)), context=2, blend=2)
    assert len(regions) == crops


def test_joining_goes_on_until_nothing_shows():
    """Only the crop of the first three squares shows the fourth."""
    row = [(20, 50), (35, 50), (50, 50), (85, 50)]
    assert len(plan_each(squares(*row[2:]), context=2)) == 2
    assert len(plan_each(squares(*row), context=2)) == 1
    assert len(plan_each(squares(*row[::3]), context=2)) == 2


def test_touching_corners_make_one_hole_and_a_speck_goes_with_its_neighbour():
    assert len(plan_each(squares((50, 50), (60, 60)), context=1, blend=0)) == 1
    assert len(plan_each(squares((50, 50), (61, 60)), context=1, blend=0)) == 2
    hole = squares((50, 50), (60, 60), (150, 50))
    hole[58, 147] = 1
    assert len(plan_each(hole)) == 2


def test_a_soft_edge_goes_to_the_nearest_hole():
    hole = squares((60, 50), (100, 50))
    hole[52:58, 70:80], hole[52:58, 95:100] = 0.4, 0.3
    left, right = plan_each(hole, blend=0)
    for region, inside, outside in ((left, (75, 65), 97), (right, (97, 105), 75)):
        shares = region.photo_blend_mask[55]
        assert all(shares[x] > 0 for x in inside) and shares[outside] == 0


def test_a_crop_greys_whatever_will_be_painted_over():
    """A neighbour that is only touched by a crop is a hole in it, yet blended elsewhere."""
    hole = squares((60, 50), (77, 50))
    left, right = plan_each(hole, context=2, blend=2)
    _, seen = crop(noise((120, 200)), hole[None], left)
    assert left.box == (51, 41, 79, 69) and left.size == (32, 32)
    assert seen[0, 16, -1] == 1  # the neighbour's first two columns
    assert (left.photo_blend_mask[:, 72:] == 0).all()
    assert (right.photo_blend_mask[:, :75] == 0).all()


def test_too_many_holes_are_refused():
    hole = torch.zeros(200, 200)
    hole[::20, ::20] = 1
    with pytest.raises(ValueError, match="100 holes far from each other, more than 64"):
        plan_each(hole)


def test_crops_of_several_regions_are_stitched_one_after_another():
    photo, hole = noise((120, 200)), squares((20, 30), (150, 80))
    regions = plan_each(hole)
    crops = torch.rand(4, 32, 32, 3)
    results = stitch_all(photo, crops, regions)
    for result, (first, second) in zip(results, crops.split(2), strict=True):
        expected = stitch(photo, first[None], regions[0])
        assert torch.equal(result, stitch(expected, second[None], regions[1])[0])
    outside = photo_blend_mask(regions) == 0
    assert torch.equal(results[:, outside], photo[:, outside].expand(2, -1, -1))
    with pytest.raises(ValueError, match="3 edited crops do not match 2 regions"):
        stitch_all(photo, crops[:3], regions)


def test_shares_of_overlapping_results_add_up():
    hole = squares((80, 50), (96, 50))
    regions = plan_each(hole, context=1, blend=8)
    first, second = (region.photo_blend_mask for region in regions)
    both = (first > 0) & (second > 0)
    assert both.any()
    # Of a black photo and white crops, what is white is their share.
    white = stitch_all(torch.zeros(1, 120, 200, 3), torch.ones(2, 32, 32, 3), regions)
    assert torch.allclose(photo_blend_mask(regions), white[0, ..., 0])
    assert torch.allclose(white[0, ..., 0], 1 - (1 - first) * (1 - second))


# ---- context mask and blend mask -----------------------------------------------------------------


def test_the_crop_holds_the_context_mask():
    hole, shown = squares((80, 50)), torch.zeros(120, 200)
    alone = plan_each(hole, context=2, blend=2)[0].box
    assert alone == (71, 41, 99, 69)

    def box(*marked: int, **options):
        x0, y0, x1, y1 = marked
        shown[:] = 0
        shown[y0:y1, x0:x1] = 1
        return plan_each(hole, context=2, blend=2, context_mask=shown, **options)[0].box

    assert box(75, 45, 90, 60) == alone  # shown anyway
    assert box(95, 50, 105, 55) == (77, 41, 105, 69)  # shifted as far as it takes, not grown
    assert box(60, 20, 110, 70) == (60, 20, 110, 70)  # grown
    assert box(0, 0, 200, 1) == (0, -40, 200, 160)  # and beyond the rim
    empty = torch.full((120, 200), 0.5)
    assert plan_each(hole, context=2, blend=2, context_mask=empty)[0].box == alone


def test_a_context_mask_goes_to_the_nearest_hole():
    hole, shown = squares((40, 50), (150, 50)), squares((25, 50), (175, 30))
    for region, (x0, y0, x1, y1) in zip(
        plan_each(hole, context_mask=shown), ((25, 50, 50, 60), (150, 30, 185, 60)), strict=True
    ):
        left, top, right, bottom = region.box
        assert left <= x0 and top <= y0 and right >= x1 and bottom >= y1 and right - left < 50
    near = squares((40, 50), (90, 50))
    assert len(plan_each(near)) == 2
    shown[:, 42] = 1  # the crop of the first, now as high as the photo, shows the second
    assert len(plan_each(near, context_mask=shown)) == 1


def test_the_blend_mask_is_apart_from_the_hole():
    photo, hole = noise((120, 200)), squares((80, 50))
    shares = torch.zeros(120, 200)
    shares[45:65, 82:95], shares[47, 99] = 0.5, 1.5
    plain = plan_region(hole, CropSettings(resolution=32, multiple=16))
    region = plan_region(hole, CropSettings(resolution=32, multiple=16, blend_mask=shares))
    assert torch.equal(region.photo_blend_mask, shares.clamp(0, 1))
    assert region.box[2] == 100 and plain.box[2] < 100  # the crop holds it
    _, seen = crop(photo, hole[None], region)
    x0, y0, x1, y1 = region.box
    assert seen.mean().item() == pytest.approx(100 / (x1 - x0) / (y1 - y0), rel=0.4)
    result = stitch(photo, torch.ones(1, 32, 32, 3), region)
    assert torch.equal(result[0, shares == 0], photo[0, shares == 0])
    assert torch.equal(photo[0, 50, 80:82], result[0, 50, 80:82])  # part of the hole included
    inside = shares == 0.5
    assert torch.allclose(result[0, inside], (photo[0, inside] + 1) / 2)


def test_a_blend_mask_inside_the_crop_leaves_the_crop_alone():
    photo, hole = noise((120, 200)), feather_hole(squares((80, 50), side=20), 4)
    shares = expand_hole(hole, 2)
    regions = [
        plan_region(hole, CropSettings(blend_mask=mask))
        for mask in (shares, shares * 0.3, feather_hole(hole, 2))
    ]
    assert len({region.box for region in regions}) == 1
    images, holes = zip(*(crop(photo, hole[None], region) for region in regions), strict=True)
    for pictures in (images, holes):
        assert all(torch.equal(picture, pictures[0]) for picture in pictures)


def test_invisible_shares_are_none():
    hole = squares((80, 50))
    tail = torch.full((120, 200), 0.001)
    region = plan_region(hole, CropSettings(blend_mask=torch.maximum(hole, tail)))
    assert torch.equal(region.photo_blend_mask, hole)


def test_a_blend_mask_goes_to_the_nearest_hole_and_holes_without_one_are_not_painted():
    hole = squares((20, 20), (100, 20), (170, 90))
    shares = expand_hole(squares((20, 20), (100, 20)), 3)
    left, right = plan_each(hole, blend_mask=shares)
    assert left.box[2] < 60 < right.box[0] and right.box[2] < 150
    assert torch.equal(photo_blend_mask([left, right]), shares)


# ---- colour --------------------------------------------------------------------------------------


def rim_step(picture: torch.Tensor, original: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Mean change of colour just inside the hole, per channel: a step, since outside it is 0."""
    rim = (hole == 1) & (expand_hole(hole, -3) == 0)
    return (picture - original)[rim].mean(0)


@pytest.mark.parametrize("where", ["centre", "bottom right", "wide", "pixel"])
def test_a_cast_leaves_no_step_when_it_is_matched(where):
    photo, hole = smooth((96, 144)), hole_of((96, 144), where)
    region = plan_region(hole, AT_64)
    original, seen = crop(photo, hole[None], region)
    cast = original * 0.8 + torch.tensor([0.1, 0.02, -0.02])  # darker, and another hue
    matched = match_colour(cast, original, seen)
    before, after = (
        rim_step(stitch(photo, picture, region)[0], photo[0], hole) for picture in (cast, matched)
    )
    assert before.abs().max() > 0.05
    assert after.abs().max() < before.abs().max() / 4


def test_a_constant_cast_is_taken_off_exactly_and_what_was_painted_stays():
    original = 0.3 + 0.4 * uniform(2, 40, 64, 3)
    hole = torch.zeros(2, 40, 64)
    hole[0, 10:30, 20:50], hole[1, :, :40] = 1, 1
    painted = torch.where(hole[..., None] == 1, uniform(2, 40, 64, 3, seed=1) * 0.4 + 0.3, original)
    cast = torch.tensor([0.1, -0.05, 0.2])
    assert torch.allclose(match_colour(painted + cast, original, hole), painted, atol=1e-5)
    assert torch.allclose(match_colour(painted, original, hole), painted, atol=1e-6)


def test_colours_stay_where_nothing_is_kept():
    painted = uniform(1, 16, 16, 3)
    assert torch.equal(match_colour(painted, 1 - painted, torch.ones(1, 16, 16)), painted)


def test_a_far_corner_takes_the_colour_of_what_little_is_kept():
    hole = torch.ones(1, 512, 512)
    hole[0, :2, :2] = 0
    original, painted = torch.full((1, 512, 512, 3), 0.4), torch.full((1, 512, 512, 3), 0.6)
    assert torch.allclose(match_colour(painted, original, hole), original, atol=1e-4)


@pytest.mark.parametrize("mode", ["auto", "squash", "each"])
@pytest.mark.parametrize(("size", "where"), list(itertools.product(SIZES, HOLES)))
def test_a_crop_of_any_aspect_holds_the_hole(size, where, mode):
    hole = hole_of(size, where)
    settings = CropSettings(width=96, height=48, multiple=16)
    (region,) = plan_regions(hole, settings, mode=mode)
    assert region.size == (48, 96)
    x0, y0, x1, y1 = bounding_box(hole)
    left, top, right, bottom = region.box
    assert left <= x0 and top <= y0 and x1 <= right and y1 <= bottom
    if mode != "squash" and min(size) > 1:
        width, height = right - left, bottom - top
        assert abs(width / 2 - height) <= 1  # not stretched by more than rounding
    photo = noise(size)
    image, _ = crop(photo, hole[None], region)
    result = stitch(photo, torch.full_like(image, 2.0), region)
    untouched = region.photo_blend_mask == 0
    assert torch.equal(result[0][untouched], photo[0][untouched])


def test_the_whole_photo_takes_the_pixels_of_a_given_size():
    region = plan_region(
        hole_of((300, 40), "centre"), CropSettings(width=96, height=24, multiple=8), mode="whole"
    )
    assert region.size == (96, 24)  # 48 * 48 pixels, of an aspect of at most 4:1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 100, "multiple": 16}, "width 100 is not a multiple of 16"),
        ({"height": 20_000}, "height is 20000"),
    ],
)
def test_sides_that_no_model_takes_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CropSettings(**settings)
