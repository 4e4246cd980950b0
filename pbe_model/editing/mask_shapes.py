"""The shapes of holes that training draws: one implementation for training and for the editor.

Section 3.3 of Paint by Example (arXiv 2211.13227; `ldm/data/open_images.py` of the official code):
a box grown at random, or a polygon along Bezier curves around the box, so that the network learns
to paint into holes of any outline. Masks here are NumPy, uint8 of 0 and 1, 1 = repaint; a box is
`(x0, y0, x1, y1)` in pixels, x1 and y1 excluded.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

Box = tuple[int, int, int, int]

_CURVE_TIMES = np.arange(1, 19)[:, None] * 0.05
_JITTER_STEPS = 5


def box_mask(height: int, width: int, box: Box) -> np.ndarray:
    """Hole mask of a box.

    Args:
        height: The mask's height in pixels.
        width: Its width.
        box: What overflows the picture is cut off.

    Returns:
        (height, width) uint8, 1 inside the box.
    """
    x0, y0, x1, y1 = (max(0, edge) for edge in box)
    hole_mask = np.zeros((height, width), np.uint8)
    hole_mask[y0:y1, x0:x1] = 1
    return hole_mask


def extend_box(
    box: Box, height: int, width: int, rng: np.random.Generator, *, amount: float = 0.4
) -> Box:
    """Moves each side of a box outward by 0 to `amount` of the free space on that side.

    Args:
        box: Inside the picture, whole pixels.
        height: The picture's height in pixels.
        width: Its width.
        rng: Source of the four draws (left, top, right, bottom).
        amount: The paper's 0.4.

    Returns:
        The extended box, inside the picture.
    """
    x0, y0, x1, y1 = box
    left, top, right, bottom = (
        int(rng.integers(0, int(amount * free), endpoint=True))
        for free in (x0, y0, width - x1, height - y1)
    )
    return x0 - left, y0 - top, x1 + right, y1 + bottom


def bezier_mask(
    height: int,
    width: int,
    box: Box,
    extended_box: Box,
    rng: np.random.Generator,
    *,
    jitter: float = 5.0,
) -> np.ndarray:
    """The paper's randomly shaped hole: the polygon of `bezier_outline`.

    Args:
        height: The mask's height in pixels.
        width: Its width.
        box: The object's box; the curves start and end at its corners.
        extended_box: The same box, each side moved outward (see `extend_box`).
        rng: Source of the jitter. The same state gives the same mask.
        jitter: In pixels of this mask. The paper's 5 is for photos of about 1,000 pixels; scale
            it along when the mask is drawn smaller.

    Returns:
        (height, width) uint8, 1 inside the polygon. Never empty where the box meets the picture:
        if jitter tears a box of a few pixels out of sight, the box itself is the hole.
    """
    outline = bezier_outline(box, extended_box, rng, jitter=jitter)
    hole_mask = polygon_mask(outline, (0, 0, width, height))
    return hole_mask.copy() if hole_mask.any() else box_mask(height, width, box)


def bezier_outline(
    box: Box, extended_box: Box, rng: np.random.Generator, *, jitter: float = 5.0
) -> list[float]:
    """Jittered points along four quadratic Bezier curves around a box.

    Each curve joins two corners of `box`; its control point is the middle of that side of
    `extended_box`, so it reaches half way out to it. Points at t = 0.05, 0.10 ... 0.90 are each
    moved by up to `jitter` pixels in x and in y. As in the official code, a point whose x or y
    repeats, to the last bit, that of an earlier point of its curve is dropped: a side that was
    not extended keeps one point, and of a mirrored pair of points about half lose the second.

    Args:
        box: The object's box.
        extended_box: The same box, each side moved outward.
        rng: Source of the jitter.
        jitter: In pixels.

    Returns:
        x0, y0, x1, y1, ... in pixels.
    """
    x0, y0, x1, y1 = box
    left, top, right, bottom = extended_box
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    nodes = np.array(
        [
            [[x0, y0], [middle_x, top], [x1, y0]],
            [[x1, y0], [right, middle_y], [x1, y1]],
            [[x1, y1], [middle_x, bottom], [x0, y1]],
            [[x0, y1], [left, middle_y], [x0, y0]],
        ]
    )[:, :, None]  # (4 curves, 3 nodes, 1, 2)
    start, control, end = nodes[:, 0], nodes[:, 1], nodes[:, 2]
    t, s = _CURVE_TIMES, 1 - _CURVE_TIMES
    # This order of operations is the official library's: it decides which floats are equal.
    curves = (s * start + 2 * t * control) * s + t * t * end  # (4, 18, 2)
    points = np.array([point for curve in curves.tolist() for point in _unrepeated(curve)])
    # Whole steps of a fifth of the amplitude: at 5 pixels this is the official draw.
    steps = rng.integers(-_JITTER_STEPS, _JITTER_STEPS, size=points.shape, endpoint=True)
    return (points + steps * (jitter / _JITTER_STEPS)).ravel().tolist()


def _unrepeated(points: list[list[float]]) -> list[list[float]]:
    """The points less those that repeat a coordinate of an earlier one."""
    kept, seen_x, seen_y = [], set(), set()
    for x, y in points:
        if x not in seen_x and y not in seen_y:
            kept.append([x, y])
            seen_x.add(x)
            seen_y.add(y)
    return kept


def polygon_mask(outline: list[float], window: Box, *, value: int = 1) -> np.ndarray:
    """A window of the picture in which a polygon is filled.

    Args:
        outline: x0, y0, x1, y1, ... in pixels of the picture.
        window: The part of the picture to draw, from 0, 0 on.
        value: What pixels inside are set to, 1 to 255; those outside are 0.

    Returns:
        (height, width) uint8 of the window, read-only.
    """
    # Pillow cuts coordinates to whole pixels towards zero, so they must not be moved.
    canvas = Image.new("L", window[2:])
    ImageDraw.Draw(canvas).polygon(outline, fill=value)
    cut = canvas.crop(window)
    # np.asarray(cut) would copy the bytes once more.
    return np.frombuffer(cut.tobytes(), np.uint8).reshape(cut.height, cut.width)
