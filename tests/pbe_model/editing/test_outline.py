"""The line around a hole: where it is, that it shows, and what it leaves alone."""

import pytest
import torch

from pbe_model.editing.outline import with_outline


def square(height: int = 40, width: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey noise and a hole in rows 10 to 19, columns 20 to 29."""
    hole_mask = torch.zeros(height, width)
    hole_mask[10:20, 20:30] = 1
    generator = torch.Generator().manual_seed(0)
    return torch.rand(height, width, 3, generator=generator) * 0.5 + 0.25, hole_mask


def test_a_white_line_and_a_black_one_around_the_hole():
    image, hole_mask = square()
    drawn = with_outline(image, hole_mask, 100)
    expected = image.clone()
    expected[8:22, 18:32] = 0
    expected[9:21, 19:31] = 1
    expected[10:20, 20:30] = image[10:20, 20:30]
    assert torch.equal(drawn, expected)


def test_a_soft_edge_counts_above_one_half():
    image, hole_mask = square()
    soft = hole_mask * 0.51
    soft[5] = 0.5
    assert torch.equal(with_outline(image, soft, 100), with_outline(image, hole_mask, 100))


def test_without_a_hole_there_is_no_line():
    image, hole_mask = square()
    assert torch.equal(with_outline(image, hole_mask * 0.5, 100), image)


def test_the_line_ends_where_the_picture_does():
    image, _ = square()
    rim = torch.ones(40, 60)
    rim[5:35, 7:50] = 0
    drawn = with_outline(image, rim, 100)
    assert torch.equal(drawn[:5], image[:5])
    assert (drawn[5, 7:50] == 1).all() and (drawn[6, 8:49] == 0).all()
    assert torch.equal(drawn[7:33, 9:48], image[7:33, 9:48])


@pytest.mark.parametrize(("size", "small"), [((40, 60), (20, 30)), ((61, 30), (30, 15))])
def test_a_large_picture_is_scaled_down_before_the_line_is_drawn(size, small):
    image, _ = square(*size)
    thin = torch.zeros(size)
    thin[12:30, 14] = 1
    drawn = with_outline(image, thin, 30)
    assert drawn.shape == (*small, 3) and drawn.min() >= 0 and drawn.max() <= 1
    white = (drawn == 1).all(-1)
    rows, columns = white.any(1).nonzero()[:, 0], white.any(0).nonzero()[:, 0]
    scale = small[0] / size[0]
    assert abs(int(rows[0]) - (12 * scale - 1)) <= 1 and abs(int(rows[-1]) - 30 * scale) <= 1
    assert abs(int(columns[0]) - (14 * scale - 1)) <= 1 and len(columns) in (3, 4)
    assert (drawn[white.any(1).nonzero()[0, 0], columns[0] - 1] == 0).all()
