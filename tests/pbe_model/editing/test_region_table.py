"""Forty edits: every size and aspect with every kind of hole, in batches, by all ways to crop."""

from itertools import cycle, product

import pytest
import torch

from pbe_model import PaintByExample, edit
from pbe_model.editing.crop_plan import MODES
from pbe_model.editing.region import stitch_all

from ..small import SMALL, small_model, uniform

SIZES = {
    "square": (64, 64),
    "wide": (40, 150),
    "tall": (150, 40),
    "odd": (97, 203),
    "the model's": (32, 32),
    "smaller": (11, 17),
    "large": (240, 320),
    "a line": (1, 60),
}
HOLES = {  # boxes in shares of width and height
    "corner": [(0, 0, 0.2, 0.25)],
    "edge": [(0.4, 0.8, 0.75, 1)],
    "full": [(0, 0, 1, 1)],
    "one pixel": [(0.6, 0.3, 0.6, 0.3)],
    "two blobs": [(0.05, 0.1, 0.12, 0.2), (0.85, 0.7, 1, 0.9)],
}
MODE, BATCH = cycle(("auto", "whole", "auto", "squash", "each")), cycle((1, 2, 3))
CASES = [
    (size, hole, "each" if hole == "two blobs" else next(MODE), next(BATCH))
    for size, hole in product(SIZES, HOLES)
]


@pytest.fixture(scope="module")
def model() -> PaintByExample:
    return small_model()


def hole_of(size: tuple[int, int], boxes: list[tuple[float, float, float, float]]) -> torch.Tensor:
    """Mask (H, W), of at least one pixel a box."""
    height, width = size
    mask = torch.zeros(size)
    for x0, y0, x1, y1 in boxes:
        left, top = int(x0 * width), int(y0 * height)
        mask[top : max(top + 1, int(y1 * height)), left : max(left + 1, int(x1 * width))] = 1
    return mask


def test_the_table_has_forty_cases_and_all_ways_to_crop():
    assert len(CASES) == len(set(CASES)) == 40
    assert {mode for _, _, mode, _ in CASES} == set(MODES)


@pytest.mark.parametrize(("size", "where", "mode", "num_images"), CASES)
def test_only_the_blend_zone_changes(model, size, where, mode, num_images):
    photo, hole = uniform(*SIZES[size], 3), hole_of(SIZES[size], HOLES[where])
    result = edit(model, photo, hole, uniform(20, 12, 3, seed=1), steps=1, similarity=1.0,
                  region=mode, num_images=num_images)  # fmt: skip

    assert result.images.shape == (num_images, *SIZES[size], 3)
    assert result.images.min() >= 0 and result.images.max() <= 1
    kept, inside = result.blend_mask == 0, hole == 1
    assert torch.equal(result.images[:, kept], photo[kept].expand(num_images, -1, -1))
    assert (result.blend_mask[inside] == 1).all()
    assert (result.images[:, inside] != photo[inside]).float().mean() > 0.9
    assert len({picture.sum().item() for picture in result.images}) == num_images

    crops = 2 if where == "two blobs" else 1
    assert len(result.regions) == crops and len(result.crops) == crops * num_images
    height, width = result.crops.shape[1:3]
    multiple = SMALL.size_multiple
    assert height % multiple == width % multiple == 0
    assert mode == "whole" or (height, width) == (SMALL.resolution, SMALL.resolution)
    assert torch.equal(stitch_all(photo[None], result.crops, result.regions), result.images)
