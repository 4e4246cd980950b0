"""Our augmentation against the paper's own libraries, albumentations 0.4.3 and bezier.

Rates are compared by a two-proportion z-test, distributions by a two-sample Kolmogorov-Smirnov test
(counts of a few values by chi-squared), all at 1e-3 with fixed seeds. What is deterministic given
its parameters is compared pixel by pixel.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
import pytest
from scipy import stats

from pbe_model.editing.mask_shapes import Box, bezier_mask, bezier_outline, box_mask, extend_box
from training.data.augment import (
    ExemplarAugment,
    SampleGeometry,
    augment_exemplar,
    exemplar_crop,
    square_crop,
    training_geometry,
)

if not (find_spec("albumentations") and find_spec("bezier")):
    pytest.skip("needs the paper's own libraries: make peers", allow_module_level=True)

from benchmarks import official_dataset as official

functional = official.A.augmentations.functional

LEVEL = 1e-3
DRAWS = 2000
SIDE = 224
CORNERS = np.array([[186, 186], [186, 38], [38, 38]], np.float64)
"""Control points of the affine: 224 // 2 -+ 224 // 3."""


def same_distribution(a: Any, b: Any) -> bool:
    return stats.ks_2samp(a, b).pvalue > LEVEL


def same_rate(count: int, other: int, draws: int) -> bool:
    pooled = (count + other) / (2 * draws)
    deviation = math.sqrt(2 * pooled * (1 - pooled) / draws)
    return abs(count - other) / draws <= stats.norm.isf(LEVEL / 2) * deviation


def same_counts(a: list[int], b: list[int]) -> bool:
    values = sorted({*a, *b})
    table = [[x.count(value) for value in values] for x in (a, b)]
    return stats.chi2_contingency(table).pvalue > LEVEL


# ---- exemplar ----------------------------------------------------------------------------------


@dataclass
class Drawn:
    """What one augmentation did, read off its calls of OpenCV."""

    order: str = ""
    """f flip, r rotation, b blur, a affine."""
    angle: float = 0.0
    """Degrees, counter-clockwise."""
    width: int = 0
    moves: np.ndarray | None = None
    """(3, 2): how far the control points went, in pixels."""
    borders: frozenset[int] = frozenset()


class Probe:
    """Stands between OpenCV and whoever calls it, and notes the parameters."""

    def __init__(self, patch: pytest.MonkeyPatch, *, compute: bool) -> None:
        self.drawn = Drawn()
        self.compute = compute
        for name in ("flip", "blur", "warpAffine"):
            patch.setattr(cv2, name, self.wrap(getattr(self, name), getattr(cv2, name)))

    def wrap(self, note: Callable[..., None], function: Callable[..., Any]) -> Callable[..., Any]:
        def call(image: np.ndarray, *args: Any, **options: Any) -> np.ndarray:
            note(*args, **options)
            return function(image, *args, **options) if self.compute else image

        return call

    def flip(self, code: int) -> None:
        assert code == 1
        self.drawn.order += "f"

    def blur(self, ksize: tuple[int, int]) -> None:
        self.drawn.order += "b"
        self.drawn.width = ksize[0]
        assert ksize[0] == ksize[1]

    def warpAffine(
        self, M: np.ndarray, dsize: tuple[int, int], flags: int, borderMode: int, **_: Any
    ) -> None:
        assert dsize == (SIDE, SIDE) and flags == cv2.INTER_LINEAR
        self.drawn.borders |= {borderMode}
        linear = M[:, :2]
        if np.abs(linear @ linear.T - np.eye(2)).max() < 1e-9:
            self.drawn.order += "r"
            self.drawn.angle = math.degrees(math.atan2(linear[0, 1], linear[0, 0]))
            assert np.abs(linear @ [112, 112] + M[:, 2] - 112).max() < 1e-9
        else:
            self.drawn.order += "a"
            self.drawn.moves = CORNERS @ linear.T + M[:, 2] - CORNERS

    def take(self) -> Drawn:
        drawn, self.drawn = self.drawn, Drawn()
        return drawn


class WithoutFields(np.random.RandomState):
    """Saves the time of drawing displacement fields that nobody looks at."""

    def rand(self, *shape: int) -> float:  # type: ignore[override]
        return 0.0


@pytest.fixture(scope="module")
def drawn() -> Iterator[tuple[list[Drawn], list[Drawn]]]:
    """Parameters of many augmentations, ours and theirs; no pixel is computed."""
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        probe = Probe(patch, compute=False)
        patch.setattr(functional, "gaussian_filter", lambda field, sigma: field)
        patch.setattr(np.random, "RandomState", WithoutFields)
        patch.setattr(np, "meshgrid", lambda x, y: (0.0, 0.0))
        patch.setattr(cv2, "remap", lambda image, **_: image)
        ours, theirs = [], []
        rng = np.random.default_rng(0)
        for _ in range(DRAWS):
            augment_exemplar(image, SIDE, rng, ExemplarAugment())
            ours.append(probe.take())
        random.seed(0)
        transform = official.exemplar_transform()
        for _ in range(DRAWS):
            transform(image=image)
            theirs.append(probe.take())
    yield ours, theirs


@pytest.mark.parametrize(("part", "share"), [("f", 0.5), ("r", 0.5), ("b", 0.3), ("a", 0.3)])
def test_rates(drawn: tuple[list[Drawn], list[Drawn]], part: str, share: float) -> None:
    counts = [sum(part in each.order for each in draws) for draws in drawn]
    assert same_rate(*counts, DRAWS)
    assert same_rate(counts[1], round(share * DRAWS), DRAWS)


def test_parts_are_independent_and_in_this_order(
    drawn: tuple[list[Drawn], list[Drawn]],
) -> None:
    ours, theirs = ([each.order for each in draws] for draws in drawn)
    assert set(ours) == set(theirs)
    assert "frba" in set(ours) and len(set(ours)) == 16
    codes = sorted(set(ours))
    assert same_counts([codes.index(x) for x in ours], [codes.index(x) for x in theirs])


def test_angles(drawn: tuple[list[Drawn], list[Drawn]]) -> None:
    ours, theirs = ([each.angle for each in draws if "r" in each.order] for draws in drawn)
    assert same_distribution(ours, theirs)
    assert 19.5 < max(np.abs(ours)) <= 20


def test_blur_widths(drawn: tuple[list[Drawn], list[Drawn]]) -> None:
    ours, theirs = ([each.width for each in draws if "b" in each.order] for draws in drawn)
    assert set(ours) == set(theirs) == {3, 5, 7}
    assert same_counts(ours, theirs)


def test_affine_maps(drawn: tuple[list[Drawn], list[Drawn]]) -> None:
    ours, theirs = (
        np.array([each.moves for each in draws if each.moves is not None]) for draws in drawn
    )
    for point in range(3):
        for axis in range(2):
            assert same_distribution(ours[:, point, axis], theirs[:, point, axis])
    for each in (ours, theirs):
        assert 49 < np.abs(each).max() <= 50.001

    def singular_values(moves: np.ndarray) -> np.ndarray:
        # The sides of the triangle before and after give the linear map.
        before = np.diff(CORNERS, axis=0)
        maps = np.linalg.solve(before, np.diff(CORNERS + moves, axis=1))
        return np.linalg.svd(maps, compute_uv=False)

    for which in range(2):
        assert same_distribution(singular_values(ours)[:, which], singular_values(theirs)[:, which])


def test_borders_are_reflected(drawn: tuple[list[Drawn], list[Drawn]]) -> None:
    for draws in drawn:
        assert frozenset().union(*(each.borders for each in draws)) == {cv2.BORDER_REFLECT_101}


def picture(height: int, width: int) -> np.ndarray:
    """Noise over ramps: edges of all kinds."""
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], -1)
    noise = np.random.default_rng(0).normal(0, 30, ramps.shape)
    return (ramps + noise).clip(0, 255).astype(np.uint8)


class Given:
    """A `RandomState` whose uniform numbers are known."""

    def __init__(self, moves: np.ndarray) -> None:
        self.moves = moves
        self.rand = np.random.RandomState(0).rand

    def uniform(self, low: float, high: float, size: tuple[int, int]) -> np.ndarray:
        assert (low, high, size) == (-50, 50, (3, 2))
        return self.moves


@pytest.mark.parametrize("part", ["", "flip", "rotate", "blur", "affine", "all"])
def test_pixels_are_theirs_given_the_parameters(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their functions with our parameters, without the displacement field."""
    monkeypatch.setattr(functional, "gaussian_filter", lambda field, sigma: 0 * field)
    parts = {name: float(part in (name, "all")) for name in ("flip", "rotate", "blur", "affine")}
    crop = picture(301, 187)
    with monkeypatch.context() as patch:
        probe = Probe(patch, compute=True)
        results = []
        for number in range(8):
            rng = np.random.default_rng(number)
            results.append(
                (augment_exemplar(crop, SIDE, rng, ExemplarAugment(**parts)), probe.take())
            )
    for ours, drawn in results:
        theirs = functional.resize(crop, SIDE, SIDE)
        if "f" in drawn.order:
            theirs = functional.hflip_cv2(theirs)
        if "r" in drawn.order:
            theirs = functional.rotate(theirs, drawn.angle)
        if "b" in drawn.order:
            theirs = functional.blur(theirs, drawn.width)
        if drawn.moves is not None:
            theirs = functional.elastic_transform(
                theirs, 1, 50, 50, random_state=Given(drawn.moves)
            )
        assert len(drawn.order) == sum(parts.values())
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_displacement_field_can_be_left_out() -> None:
    """Of 0.003 pixels: even in noise few pixels change by more than a level."""
    image = picture(SIDE, SIDE)
    still = functional.elastic_transform(image, 1, 50, 50, random_state=Given(np.zeros((3, 2))))
    change = np.abs(still.astype(int) - image)
    assert change.mean() < 0.2 and change.max() <= 5


def test_parts_are_off_at_zero() -> None:
    crop = picture(90, 120)
    off = ExemplarAugment(flip=0, rotate=0, blur=0, affine=0)
    still = ExemplarAugment(
        flip=0, rotate=1, rotate_degrees=0, blur=1, blur_widths=(1,), affine=1, affine_pixels=0
    )
    plain = functional.resize(crop, SIDE, SIDE)
    for number in range(5):
        rng = np.random.default_rng(number)
        assert np.array_equal(augment_exemplar(crop, SIDE, rng, off), plain)
        assert np.array_equal(augment_exemplar(crop, SIDE, rng, still), plain)


# ---- geometry ----------------------------------------------------------------------------------

SIZES = [(1024, 768), (768, 1024), (1024, 683), (1024, 1024)]
"""Width and height. With a longer side of 1024 pixel amounts are the official ones."""


def objects(number: int) -> list[tuple[int, int, Box]]:
    """Photos with boxes of 2 to 80 % of their area, some of which touch the border."""
    rng = np.random.default_rng(number)
    found = []
    while len(found) < DRAWS // 2:
        width, height = SIZES[len(found) % len(SIZES)]
        x0, x1 = sorted(rng.uniform(-0.1, 1.1, 2).clip(0, 1))
        y0, y1 = sorted(rng.uniform(-0.1, 1.1, 2).clip(0, 1))
        if 0.02 <= (x1 - x0) * (y1 - y0) <= 0.8:
            box = int(x0 * width), int(y0 * height), int(x1 * width), int(y1 * height)
            found.append((width, height, box))
    return found


def test_padded_crop_is_theirs() -> None:
    for width, height, box in objects(0)[:200]:
        photo = np.zeros((height, width, 1), np.uint8)
        x0, y0, x1, y1 = official.padded(list(box), width, height)
        crop = exemplar_crop(photo, box, SampleGeometry())
        assert crop.shape == (y1 - y0, x1 - x0, 1)
        assert np.shares_memory(crop, photo[y0:y1, x0:x1])
        crop[0, 0] = crop[-1, -1] = 1
        assert photo[y0, x0] == photo[y1 - 1, x1 - 1] == 1
        whole = exemplar_crop(photo, box, SampleGeometry(exemplar_padding=0))
        assert whole.shape == (box[3] - box[1], box[2] - box[0], 1)


def test_extended_boxes() -> None:
    random.seed(0)
    rng = np.random.default_rng(0)
    ours, theirs = [], []
    for width, height, box in objects(1):
        space = np.array([box[0], box[1], width - box[2], height - box[3]])
        if space.min() < 50:  # so that whole pixels make no steps in the shares
            continue
        for draw, shares in (
            (extend_box(box, height, width, rng), ours),
            (official.extended(list(box), width, height), theirs),
        ):
            shares.append(np.abs(np.subtract(draw, box)) / space)
    for side in range(4):
        assert same_distribution(np.array(ours)[:, side], np.array(theirs)[:, side])
    assert 0.39 < np.max(ours) <= 0.4
    assert extend_box((5, 6, 7, 8), 50, 50, rng, amount=0) == (5, 6, 7, 8)


def test_ends_of_the_extension_are_drawn_as_often() -> None:
    """`randint` includes its end; a small space shows an error of one."""
    random.seed(0)
    rng = np.random.default_rng(0)
    box, width, height = (10, 5, 20, 20), 30, 28  # 0 .. 4, 0 .. 2, 0 .. 4, 0 .. 3
    ours = np.array([extend_box(box, height, width, rng) for _ in range(DRAWS)])
    theirs = np.array([official.extended(list(box), width, height) for _ in range(DRAWS)])
    for side in range(4):
        assert same_counts(ours[:, side].tolist(), theirs[:, side].tolist())


def test_bezier_masks_are_theirs_given_the_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same points of the curves, repeated ones dropped alike, same polygon filled alike."""
    rng = np.random.default_rng(0)
    for number, (width, height, box) in enumerate(objects(2)[:12]):
        outer = extend_box(box, height, width, rng)
        steps = iter(
            np.random.default_rng(number).integers(-5, 5, size=(200,), endpoint=True).tolist()
        )
        monkeypatch.setattr(random, "randint", lambda low, high, steps=steps: next(steps))
        keep = official.keep_mask(list(box), list(outer), width, height, 1.0)[0].numpy()
        ours = bezier_mask(height, width, box, outer, np.random.default_rng(number))
        assert np.array_equal(1 - ours, keep)


def test_boxes_are_theirs() -> None:
    for width, height, box in objects(3)[:20]:
        keep = official.keep_mask(list(box), list(box), width, height, 0.0)[0].numpy()
        assert np.array_equal(1 - box_mask(height, width, box), keep)


def test_jitter_is_off_at_zero() -> None:
    """Then the curves around a box that was not extended are its sides."""
    outline = bezier_outline(
        (40, 50, 120, 90), (40, 50, 120, 90), np.random.default_rng(0), jitter=0
    )
    points = np.reshape(outline, (-1, 2))
    assert len(points) >= 4
    assert np.isclose(points[:, :, None], [[[40, 120], [50, 90]]]).any((1, 2)).all()


def crops(number: int) -> tuple[list[tuple[int, int, Box, Box, Box | None]], ...]:
    """Width, height, extended box, our crop, theirs: for the same extended boxes."""
    random.seed(number)
    rng = np.random.default_rng(number)
    found = []
    for width, height, box in objects(number):
        outer = extend_box(box, height, width, rng)
        theirs = official.square_window(list(outer), width, height)
        ours = square_crop(height, width, outer, rng)
        found.append((width, height, outer, ours, theirs and tuple(theirs)))
    return found


def test_the_same_photos_are_squashed() -> None:
    squashed = 0
    for width, height, _, ours, theirs in crops(4):
        assert (ours == (0, 0, width, height)) == (theirs is None)
        squashed += theirs is None
    assert DRAWS // 2 * 0.3 < squashed < DRAWS // 2 * 0.9


def test_crops_have_the_same_sides_and_places() -> None:
    ours, theirs = [], []
    for width, height, outer, our_crop, their_crop in crops(5):
        if their_crop is not None:
            for crop, rows in ((our_crop, ours), (their_crop, theirs)):
                side = crop[2] - crop[0]
                assert side == crop[3] - crop[1]
                left, top = outer[0] - crop[0], outer[1] - crop[1]
                right, bottom = crop[2] - outer[2], crop[3] - outer[3]
                rows.append(
                    [
                        side / min(width, height),
                        side / max(width, height),
                        left / side,
                        top / side,
                        left / max(1, left + right),
                        top / max(1, top + bottom),
                    ]
                )
    for ours_of_kind, theirs_of_kind in zip(np.transpose(ours), np.transpose(theirs), strict=True):
        assert same_distribution(ours_of_kind, theirs_of_kind)


def test_zoom_is_off_at_zero_and_possible_everywhere() -> None:
    rng = np.random.default_rng(0)
    assert square_crop(60, 100, (30, 20, 50, 40), rng, zoom=0)[1] == 0
    insets = {square_crop(60, 60, (20, 20, 40, 40), rng, zoom_fixed=True)[0] for _ in range(200)}
    assert insets == set(range(13))  # 0.6 * 20


def test_holes_have_the_same_areas_and_shapes() -> None:
    """The whole way, at the size of the photo: share of Bezier masks, area over that of the box."""
    random.seed(6)
    rng = np.random.default_rng(6)
    side = 512
    config = SampleGeometry(pixel_scale=1.0)
    photo = np.zeros((side, side, 3), np.uint8)
    ours, theirs = [], []
    for _, _, box in objects(6)[3:320:4]:
        x0, y0, x1, y1 = box = tuple(edge // 2 for edge in box)  # of 1024 x 1024
        outer = official.extended(list(box), side, side)
        keep = official.keep_mask(list(box), outer, side, side, 0.5)[0].numpy()
        hole = training_geometry(photo, box, side, rng, config)[1] > 127
        for mask, rows in ((hole, ours), (keep < 0.5, theirs)):
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            frame = (ys[-1] - ys[0] + 1) * (xs[-1] - xs[0] + 1)
            area = int(mask.sum())
            rows.append([area / ((x1 - x0) * (y1 - y0)), area / frame, area == frame])
    for column in range(2):
        assert same_distribution(np.array(ours)[:, column], np.array(theirs)[:, column])
    boxes = [int(np.array(rows)[:, 2].sum()) for rows in (ours, theirs)]
    assert same_rate(*boxes, len(ours))
