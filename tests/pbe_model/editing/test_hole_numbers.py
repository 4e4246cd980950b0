"""Holes are numbered as one reads, or as their masks come."""

import numpy as np
import pytest
import torch

from pbe_model.editing.batch import BatchEditor
from pbe_model.editing.crop_settings import CropSettings
from pbe_model.editing.hole_numbers import join_holes, number_holes

AT_64 = CropSettings(resolution=64, multiple=16)
BOXES = {  # number: x0, y0, x1, y1
    1: (5, 14, 20, 30),  # lower than its neighbour, but in its row
    2: (60, 5, 90, 25),
    3: (120, 20, 140, 40),
    4: (10, 50, 40, 70),
    5: (70, 60, 90, 95),
}


def masks(*numbers: int) -> torch.Tensor:
    """(K, 100, 150), a hole each."""
    drawn = torch.zeros(len(numbers), 100, 150)
    for mask, number in zip(drawn, numbers, strict=True):
        x0, y0, x1, y1 = BOXES[number]
        mask[y0:y1, x0:x1] = 1
    return drawn


def test_holes_are_numbered_left_to_right_row_after_row():
    numbers = number_holes(masks(*BOXES).amax(0))
    assert numbers.max() == len(BOXES)
    for number, (x0, y0, x1, y1) in BOXES.items():
        assert (numbers[y0:y1, x0:x1] == number).all()
    assert np.array_equal(numbers > 0, masks(*BOXES).amax(0).numpy() > 0.5)


def test_no_hole_has_no_number():
    assert not number_holes(torch.zeros(4, 6)).any()


def test_masks_number_their_holes_and_later_ones_lie_on_top():
    several = masks(4, 1)
    several[1, 60:80, 30:60] = 1  # over a corner of the first
    hole_mask, numbers = join_holes(several)
    assert torch.equal(hole_mask, several.amax(0))
    assert numbers[55, 15] == 1 and numbers[20, 10] == 2 and numbers[65, 35] == 2


def test_numbered_holes_never_share_a_crop_and_keep_their_order():
    photo = torch.rand(100, 150, 3, generator=torch.Generator().manual_seed(0))
    near = masks(2).amax(0)
    near[5:25, 92:110] = 1
    together = BatchEditor([photo], [near], [AT_64], mode="each")
    apart = BatchEditor([photo], [near], [AT_64], mode="each", numbered=True)
    assert (len(together.crops), len(apart.crops)) == (1, 2) and apart.holes == [0, 1]
    assert apart.regions[0][0].photo_blend_mask[10, 100] == 0
    assert apart.regions[0][1].photo_blend_mask[10, 100] == 1

    swapped = BatchEditor([photo], [masks(5, 1)], [AT_64], mode="each", numbered=True)
    for region, number in zip(swapped.regions[0], (5, 1), strict=True):
        x0, y0, x1, y1 = BOXES[number]
        assert (region.photo_blend_mask[y0:y1, x0:x1] == 1).all()
        assert region.photo_blend_mask.sum() < 4 * (x1 - x0) * (y1 - y0)


@pytest.mark.parametrize(
    ("numbers", "mode", "message"),
    [((1, 2), "auto", "go with the region mode 'each'"), ((2, 2), "each", "hole 1 is empty or")],
)
def test_holes_that_cannot_be_painted_apart_are_refused(numbers, mode, message):
    with pytest.raises(ValueError, match=message):
        BatchEditor([torch.rand(100, 150, 3)], [masks(*numbers)], [AT_64], mode=mode, numbered=True)
