"""Exemplar distortions and sample geometry: rates, bounds, and what masks and crops must hold."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from pbe_model.editing.mask_shapes import Box, box_mask
from training.data.augment import (
    ExemplarAugment,
    PhotoRecolour,
    SampleGeometry,
    augment_exemplar,
    exemplar_crop,
    recolour,
    recolour_photo,
    resize_square,
    square_crop,
    training_geometry,
)

NOTHING = ExemplarAugment(flip=0, rotate=0, blur=0, affine=0)
DRAWS = 400


def rng(number: int) -> np.random.Generator:
    return np.random.default_rng(number)


def smooth_image(side: int) -> np.ndarray:
    """Different ramps in the channels: any warp shows, and none aliases."""
    y, x = np.mgrid[:side, :side] / (side - 1)
    return (255 * np.stack([x, y, x * y], axis=-1)).astype(np.uint8)


def within_sampling_error(count: int, draws: int, probability: float) -> bool:
    return abs(count - draws * probability) < 4 * math.sqrt(draws * probability * (1 - probability))


# ---- exemplar ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (3, 90), (64, 64), (50, 31)])
def test_any_crop_becomes_a_square_of_uint8(shape: tuple[int, int]) -> None:
    crop = rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for number in range(10):
        image = augment_exemplar(crop, 24, rng(number), ExemplarAugment())
        assert image.shape == (24, 24, 3) and image.dtype == np.uint8


def test_same_generator_state_same_exemplar() -> None:
    crop = smooth_image(40)
    first, second, other = (
        augment_exemplar(crop, 32, rng(number), ExemplarAugment()) for number in (7, 7, 8)
    )
    assert np.array_equal(first, second) and not np.array_equal(first, other)


def test_nothing_switched_on_is_a_plain_resize() -> None:
    crop = smooth_image(40)
    assert np.array_equal(augment_exemplar(crop, 32, rng(0), NOTHING), resize_square(crop, 32))


@pytest.mark.parametrize("part", ["flip", "rotate", "blur", "affine"])
def test_each_part_comes_as_often_as_the_paper_says(part: str) -> None:
    crop = rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    probability = getattr(ExemplarAugment(), part)
    # At 24 pixels a kernel of 7 would be none at all, hence the width.
    config = replace(NOTHING, **{part: probability}, blur_widths=(28,))
    changed = sum(
        not np.array_equal(augment_exemplar(crop, 24, rng(number), config), crop)
        for number in range(DRAWS)
    )
    assert within_sampling_error(changed, DRAWS, probability)


def test_angles_are_uniform_within_twenty_degrees() -> None:
    side, config = 65, replace(NOTHING, rotate=1.0)
    ramp = np.repeat(np.linspace(0, 255, side)[None, :, None], side, axis=0).repeat(3, axis=2)
    angles = []
    for number in range(DRAWS):
        image = augment_exemplar(ramp.astype(np.uint8), side, rng(number), config)
        middle = image[20:45, 20:45, 0].astype(float)
        dy, dx = np.gradient(middle)
        angles.append(math.degrees(math.atan2(dy.mean(), dx.mean())))
    assert 19 < max(np.abs(angles)) < 20.5
    assert abs(np.mean(angles)) < 4 * 20 / math.sqrt(3 * DRAWS)
    assert np.std(angles) == pytest.approx(20 / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize(("side", "expected"), [(224, {3: 1, 5: 1, 7: 1}), (64, {1: 2, 3: 1})])
def test_blur_widths_are_equally_frequent(side: int, expected: dict[int, int]) -> None:
    point = np.zeros((side, side, 3), np.uint8)
    point[side // 2, side // 2] = 255
    config = replace(NOTHING, blur=1.0)
    widths = Counter(
        int(np.count_nonzero(augment_exemplar(point, side, rng(number), config)[side // 2, :, 0]))
        for number in range(DRAWS)
    )
    assert set(widths) == set(expected)
    for width, thirds in expected.items():
        assert within_sampling_error(widths[width], DRAWS, thirds / 3)


def test_affine_moves_control_points_uniformly() -> None:
    """A disc around the third control point shows where that point went."""
    side, amount, start = 224, 20.0, 112 - 224 // 3
    photo = np.zeros((side, side, 3), np.uint8)
    cv2.circle(photo, (start, start), 6, (255, 255, 255), -1)
    config = replace(NOTHING, affine=1.0, affine_pixels=amount)
    moves = []
    for number in range(DRAWS // 2):
        disc = augment_exemplar(photo, side, rng(number), config)[..., 0].astype(float)
        centre = [disc.sum(axis) @ np.arange(side) / disc.sum() for axis in (0, 1)]
        moves.append(np.array(centre) - start)
    assert amount - 1 < np.abs(moves).max() < amount + 0.5
    assert np.std(moves) == pytest.approx(amount / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("part", ["rotate", "affine"])
def test_small_exemplars_are_distorted_in_proportion(part: str) -> None:
    config, crop = replace(NOTHING, **{part: 1.0}), smooth_image(224)
    for number in range(20):
        large = augment_exemplar(crop, 224, rng(number), config)
        small = augment_exemplar(crop, 56, rng(number), config)
        difference = np.abs(resize_square(large, 56).astype(float) - small)
        assert difference.mean() < 6


# ---- colours -----------------------------------------------------------------------------------


def colourful() -> np.ndarray:
    return rng(3).integers(0, 256, (20, 30, 3)).astype(np.uint8)


def test_recolouring_by_nothing_is_the_identity() -> None:
    photo = colourful()
    same = recolour(photo, degrees=360, saturation=1)
    assert np.abs(same.astype(int) - photo).max() <= 1


def test_recolour_turns_hues_and_keeps_lightness() -> None:
    red = np.full((1, 1, 3), (200, 40, 40), np.uint8)
    assert recolour(red, degrees=120, saturation=1).ravel().tolist() == [40, 200, 40]
    assert recolour(red, degrees=-120, saturation=1).ravel().tolist() == [40, 40, 200]
    assert recolour(red, degrees=0, saturation=0).ravel().tolist() == [120, 120, 120]


def test_recolour_photo_changes_its_share_within_its_bounds() -> None:
    photo = np.full((2, 2, 3), (200, 40, 40), np.uint8)
    config = PhotoRecolour(probability=0.25, hue_degrees=60, saturation=0.5, gamma=1)
    made = [recolour_photo(photo, rng(number), config) for number in range(400)]
    changed = [picture[0, 0].astype(int) for picture in made if picture is not photo]
    assert 70 <= len(changed) <= 130  # within 3.5 standard deviations
    spread = np.array([colour.max() - colour.min() for colour in changed])
    assert spread.min() >= 79 and spread.max() <= 241  # 160 times 0.5 to 1.5
    assert all(colour[0] >= colour.max() - 1 for colour in changed)  # 60 degrees: red stays most
    greens, blues = np.array(changed)[:, 1:].T
    assert (greens > blues).any() and (blues > greens).any()


def test_gamma_spares_black_and_white() -> None:
    photo = np.array([[[0, 0, 0], [255, 255, 255], [100, 100, 100]]], np.uint8)
    config = PhotoRecolour(probability=1)
    greys = [recolour_photo(photo, rng(number), config)[0] for number in range(50)]
    assert all(g[0].tolist() == [0, 0, 0] and g[1].tolist() == [255, 255, 255] for g in greys)
    middle = [int(g[2, 0]) for g in greys]
    # 255 * (100 / 255) ** 1.4 and ** (1 / 1.4)
    assert 69 <= min(middle) < 80 and 120 < max(middle) <= 131


# ---- geometry ----------------------------------------------------------------------------------


def random_box(generator: np.random.Generator, height: int, width: int) -> Box:
    x0, x1 = sorted(generator.choice(width + 1, 2, replace=False).tolist())
    y0, y1 = sorted(generator.choice(height + 1, 2, replace=False).tolist())
    return x0, y0, x1, y1


@pytest.mark.parametrize("size", [(30, 30), (30, 50), (50, 30), (1, 1), (1, 9)])
@pytest.mark.parametrize("zoom_fixed", [False, True])
def test_crop_is_a_square_that_holds_the_box(size: tuple[int, int], zoom_fixed: bool) -> None:
    height, width = size
    squashed = 0
    for number in range(DRAWS):
        generator = rng(number)
        box = random_box(generator, height, width)
        x0, y0, x1, y1 = square_crop(height, width, box, generator, zoom_fixed=zoom_fixed)
        assert 0 <= x0 <= box[0] and box[2] <= x1 <= width
        assert 0 <= y0 <= box[1] and box[3] <= y1 <= height
        if x1 - x0 != y1 - y0:
            assert (x0, y0, x1, y1) == (0, 0, width, height)
            fits_once = min(size) in (box[2] - box[0], box[3] - box[1])
            too_long = max(box[2] - box[0], box[3] - box[1]) > min(size)
            ends = (box[0], box[2] - width) if width > height else (box[1], box[3] - height)
            assert too_long or (not zoom_fixed and (0 in ends or fits_once))
            squashed += 1
    assert (squashed > 0) == (height != width)


def test_crop_reaches_every_position_and_zoom() -> None:
    crops = [square_crop(100, 200, (90, 40, 110, 60), rng(number)) for number in range(DRAWS)]
    insets = [top for _, top, _, _ in crops]
    lefts = [left - top for left, top, _, _ in crops]
    assert min(lefts) == 10 and max(lefts) == 90  # squares of 100 that hold 90 .. 110
    # Free space is at most 40 above and below: the zoom takes at most 24 of it.
    assert min(insets) == 0 and 20 < max(insets) <= 24


def test_zoom_takes_its_share_of_the_free_space() -> None:
    box = (40, 40, 60, 60)
    insets = [
        square_crop(100, 100, box, rng(number), zoom_fixed=True)[0] for number in range(DRAWS)
    ]
    assert set(insets) == set(range(25))  # 0.6 * 40 = 24, every whole pixel
    assert np.mean(insets) == pytest.approx(12, abs=4 * 7.2 / math.sqrt(DRAWS))
    assert square_crop(100, 100, box, rng(0), zoom=0, zoom_fixed=True) == (0, 0, 100, 100)
    assert square_crop(100, 100, box, rng(0)) == (0, 0, 100, 100)


def test_exemplar_crop_is_padded_in_proportion_and_stays_inside() -> None:
    photo = np.zeros((768, 1024, 3), np.uint8)
    assert exemplar_crop(photo, (100, 200, 150, 260), SampleGeometry()).shape == (80, 70, 3)
    assert exemplar_crop(photo, (0, 0, 1024, 768), SampleGeometry()).shape == photo.shape
    small = photo[::4, ::4]
    assert exemplar_crop(small, (100, 100, 120, 110), SampleGeometry()).shape == (14, 24, 3)
    unscaled = SampleGeometry(pixel_scale=1.0)
    assert exemplar_crop(small, (100, 100, 120, 110), unscaled).shape == (30, 40, 3)


@pytest.mark.parametrize("size", [(96, 128), (128, 96), (100, 100), (40, 160)])
@pytest.mark.parametrize("bezier", [0.0, 1.0])
def test_hole_holds_the_object(size: tuple[int, int], bezier: float) -> None:
    """The object is drawn white: what is white in the image must be hole in the mask."""
    height, width = size
    box = (10, 12, width - 30, height - 10)
    photo = np.repeat(box_mask(height, width, box)[..., None] * np.uint8(255), 3, axis=2)
    for number in range(30):
        image, hole_mask = training_geometry(
            photo, box, 64, rng(number), SampleGeometry(bezier=bezier)
        )
        assert image.shape == (64, 64, 3) and hole_mask.shape == (64, 64)
        assert image.dtype == hole_mask.dtype == np.uint8
        object_pixels = image[..., 0] == 255
        assert object_pixels.any()
        covered = (hole_mask == 255)[object_pixels].mean()
        assert covered == 1 if bezier == 0 else covered > 0.9


def test_half_of_the_holes_are_bezier_shaped() -> None:
    photo = np.zeros((128, 128, 3), np.uint8)
    boxes = 0
    for number in range(DRAWS):
        _, hole_mask = training_geometry(
            photo, (40, 40, 88, 88), 128, rng(number), SampleGeometry(zoom=0)
        )
        rows, columns = np.nonzero(hole_mask)
        boxes += len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    assert within_sampling_error(boxes, DRAWS, 0.5)


def test_photo_without_a_fitting_square_is_squashed() -> None:
    photo = np.zeros((20, 80, 3), np.uint8)
    photo[:, :40, 0] = 255
    image, hole_mask = training_geometry(
        photo, (10, 5, 70, 15), 16, rng(0), SampleGeometry(extend=0, bezier=0)
    )
    assert (image[:, :8, 0] == 255).all() and (image[:, 8:, 0] == 0).all()
    assert np.array_equal(hole_mask, box_mask(16, 16, (2, 4, 14, 12)) * 255)


def test_resize_is_the_official_one_and_antialias_averages() -> None:
    image = rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    official = torch.nn.functional.interpolate(pixels, size=(32, 32), mode="bilinear")
    ours = torch.from_numpy(resize_square(image, 32)).permute(2, 0, 1)[None].float()
    assert (ours - official).abs().max() <= 1
    quarters = resize_square(image[:48, :64], 8, antialias=True)
    means = image[:48, :64].reshape(8, 6, 8, 8, 3).mean(axis=(1, 3))
    assert np.abs(quarters - means).max() <= 1
