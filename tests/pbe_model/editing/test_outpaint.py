"""A photo on a larger canvas: what is new is the hole, the rest is the photo."""

import pytest
import torch

from pbe_model.editing.outpaint import extend_canvas, padding_to_aspect

from ..small import uniform

PHOTO = uniform(2, 20, 30, 3)


def test_the_new_rim_is_the_hole_and_repeats_the_edge():
    canvas, hole = extend_canvas(PHOTO, (5, 1, 2, 3))
    assert canvas.shape == (2, 24, 37, 3) and hole.shape == (2, 24, 37)
    assert torch.equal(canvas[:, 1:21, 5:35], PHOTO)
    assert torch.equal(canvas[:, 0, 5:35], PHOTO[:, 0]) and torch.equal(
        canvas[:, 1:21, -1], PHOTO[:, :, -1]
    )
    assert not hole[:, 1:21, 5:35].any()
    assert hole.sum() == 2 * (24 * 37 - 20 * 30)


def test_the_overlap_eats_into_the_photo_at_the_sides_that_grow():
    _, hole = extend_canvas(PHOTO, (5, 0, 0, 4), overlap=3)
    keep = hole[0] == 0
    assert keep[:17, 8:].all() and keep.sum() == 17 * 27
    _, hole = extend_canvas(PHOTO, (1, 0, 0, 0), overlap=100)
    assert hole.all()  # no more than the photo


def test_holes_inside_the_photo_stay():
    inside = torch.zeros(2, 20, 30)
    inside[1, 4:6, 7:9] = 0.8
    _, hole = extend_canvas(PHOTO, (0, 10, 0, 0), hole_mask=inside)
    assert torch.allclose(hole[1, 14:16, 7:9], torch.tensor(0.8)) and not hole[0, 10:].any()


@pytest.mark.parametrize(
    ("size", "aspect", "place", "expected"),
    [
        ((100, 100), 1.5, (0.5, 0.5), (25, 0, 25, 0)),
        ((100, 100), 1.5, (0.0, 0.5), (0, 0, 50, 0)),
        ((100, 100), 0.5, (0.5, 1.0), (0, 100, 0, 0)),
        ((90, 160), 16 / 9, (0.5, 0.5), (0, 0, 0, 0)),
        ((101, 100), 1, (0.5, 0.5), (0, 0, 1, 0)),
    ],
)
def test_padding_to_an_aspect(size, aspect, place, expected):
    assert padding_to_aspect(size, aspect, place) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: extend_canvas(PHOTO, (0, 0, 0, 0)), "nothing is added"),
        (lambda: extend_canvas(PHOTO, (-1, 0, 0, 5)), "give 0 pixels or more"),
        (lambda: extend_canvas(PHOTO, (10**6, 10**6, 0, 0)), "too large"),
        (lambda: padding_to_aspect((4, 4), 0), "the aspect is 0"),
        (lambda: padding_to_aspect((4, 4), 1, (2, 0)), "the place is"),
    ],
)
def test_what_cannot_be_is_one_clear_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
