"""From boxes as annotated to boxes to train on: scaled to the photo, clipped, filtered, counted."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from training.prepare.faults import Fault, Faults

from .base import NO_FLAGS, Annotated, MarkedBox, Unusable

CLIPPED = "clipped"
"""Counted beside the reasons that drop boxes."""
_TOLERANCE = 1e-9  # shares that are stored in decimals meet the limits only up to rounding
_WITHOUT_AREA = "without area"
_OUTSIDE = "outside the photo"
_NO_SHARES = "not in shares of the photo, 0 to 1"
_NO_PIXELS = "in shares of the photo, not in pixels"
_FAULTS = frozenset((_WITHOUT_AREA, _OUTSIDE, _NO_SHARES, _NO_PIXELS))  # the rest is as wished
_MOST_SHARES = 2  # a box that reaches beyond twice the photo is in percent or pixels
_SAME_SHAPE = 0.02  # of the width, by which a resized photo may miss its shape as annotated


@dataclass(frozen=True, kw_only=True)
class BoxFilter:
    """Which boxes are kept. Limits are inclusive; the area limits are the paper's.

    Attributes:
        min_area: Smallest share of the photo's area.
        max_area: Largest share.
        min_side: Smallest side in pixels.
        max_aspect: Largest ratio of the longer side to the shorter one; `None` allows any.
        drop: Flags whose boxes are dropped (see `FLAGS`).
        include: Labels to keep; empty keeps all.
        exclude: Labels to drop.
    """

    min_area: float = 0.02
    max_area: float = 0.8
    min_side: int = 1
    max_aspect: float | None = None
    drop: frozenset[str] = NO_FLAGS
    include: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.min_area <= self.max_area <= 1:
            raise ValueError(
                f"the limits of the area share are {self.min_area} and {self.max_area}; they have "
                "to lie between 0 and 1, the smaller first"
            )
        if self.max_aspect is not None and self.max_aspect < 1:
            raise ValueError(f"the largest aspect ratio is {self.max_aspect}; it starts at 1")

    def apply(
        self,
        photo: Annotated,
        size: tuple[int, int],
        counts: Counter[str],
        faults: Faults | None = None,
    ) -> tuple[np.ndarray, list[str]]:
        """Boxes of a photo that are kept, clipped to it and rounded to whole pixels.

        Args:
            photo: As annotated.
            size: Width and height of the upright photo.
            counts: Is told why boxes were dropped, the first reason only, and how many clipped.
            faults: Lists those that no photo can have.

        Returns:
            The boxes `(n, 4)` int64, x0, y0, x1, y1 in pixels, right and bottom exclusive, and a
            label for each.

        Raises:
            Unusable: The photo's shape is not that of the annotations.
        """
        scale = _scale(photo.frame, size)
        boxes, labels = [], []
        for marked in photo.boxes:
            box = _place(marked, scale, size, counts)
            reason = self._reason(marked, box, size, photo.frame)
            if reason is None:
                boxes.append([round(value) for value in box])
                labels.append(marked.label)
                continue
            counts[reason] += 1
            if faults is not None and reason in _FAULTS:
                corners = " ".join(f"{value:.6g}" for value in marked[:4])
                faults.mention(Fault(photo.path, f"a box {reason}", corners))
        return np.array(boxes, np.int64).reshape(-1, 4), labels

    def _reason(
        self,
        marked: MarkedBox,
        box: tuple[float, ...],
        size: tuple[int, int],
        frame: tuple[float, float] | None,
    ) -> str | None:
        if flags := marked.flags & self.drop:
            return f"marked {min(flags)}"
        if self.include and marked.label not in self.include:
            return "label not included"
        if marked.label in self.exclude:
            return "label excluded"
        if not (marked.x0 < marked.x1 and marked.y0 < marked.y1):  # NaN too
            return _WITHOUT_AREA
        if frame == (1, 1) and max(marked.x1, marked.y1) > _MOST_SHARES:
            return _NO_SHARES
        if frame != (1, 1) and _are_shares(marked):
            return _NO_PIXELS
        x0, y0, x1, y1 = box
        if not (x0 < x1 and y0 < y1):
            return _OUTSIDE
        share = (x1 - x0) * (y1 - y0) / (size[0] * size[1])
        if share < self.min_area - _TOLERANCE:
            return "area too small"
        if share > self.max_area + _TOLERANCE:
            return "area too large"
        sides = round(x1) - round(x0), round(y1) - round(y0)
        if min(sides) < max(1, self.min_side):
            return "side too short"
        if self.max_aspect is not None and max(sides) > self.max_aspect * min(sides):
            return "too oblong"
        return None


def _are_shares(marked: MarkedBox) -> bool:
    """Whether they cannot be pixels: all in the first one, and not whole."""
    inside = min(marked.x0, marked.y0) >= -1 and 0 < max(marked.x1, marked.y1) <= 1
    return inside and not all(float(value).is_integer() for value in marked[:4])


def _scale(frame: tuple[float, float] | None, size: tuple[int, int]) -> tuple[float, float]:
    """Pixels of the upright photo a unit of the frame."""
    if frame is None:
        return 1.0, 1.0
    if not all(0 < side < math.inf for side in frame):
        raise Unusable("annotated with a size of no photo", f"{frame[0]:.9g} x {frame[1]:.9g}")
    scale = size[0] / frame[0], size[1] / frame[1]
    off = abs(frame[0] * scale[1] - size[0])  # pixels that a resize would have to stretch
    if frame != (1, 1) and off > max(1.0, _SAME_SHAPE * size[0]):
        raise Unusable(
            "annotated in another shape",
            f"{frame[0]:.9g} x {frame[1]:.9g}, but upright it is {size[0]} x {size[1]}",
        )
    return scale


def _place(
    marked: MarkedBox, scale: tuple[float, float], size: tuple[int, int], counts: Counter[str]
) -> tuple[float, ...]:
    """The box in pixels, clipped to the photo; counted where that took more than rounding does."""
    corners = [
        marked.x0 * scale[0], marked.y0 * scale[1], marked.x1 * scale[0], marked.y1 * scale[1]
    ]  # fmt: skip
    clipped = tuple(min(max(value, 0.0), size[i % 2]) for i, value in enumerate(corners))
    if any(abs(a - b) > 0.5 for a, b in zip(corners, clipped, strict=True)):
        counts[CLIPPED] += 1
    return clipped
