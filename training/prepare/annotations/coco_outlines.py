"""The box around an outline of COCO: polygons, or a mask in runs, compressed or not."""

from __future__ import annotations

from math import isfinite
from typing import Any, NamedTuple

from training.data.box_lines import numbers

_CONTINUES, _SIGN, _BITS, _VALUE = 0x20, 0x10, 5, 0x1F  # of a character of compressed runs
_FIRST = 48  # the character that stands for 0
_MOST_CHARACTERS = 13  # of a number, which is 64 bits


class Outlined(NamedTuple):
    """The box around an outline.

    Attributes:
        corners: Left, top, right and bottom in pixels.
        size: Width and height of the mask, if it is one.
    """

    corners: tuple[float, float, float, float]
    size: tuple[int, int] | None = None


def outlined(outline: Any) -> Outlined | None:
    """The box around an outline, as `segmentation` has it.

    Args:
        outline: Polygons `[[x, y, x, y, ...], ...]`, a single one `[x, y, ...]`, or a mask
            `{"counts": ..., "size": [height, width]}` with a list of runs or with the string that
            pycocotools makes of it.

    Returns:
        `None` if it is none of them, or shows nothing.
    """
    try:
        return _around_runs(outline) if isinstance(outline, dict) else Outlined(_around(outline))
    except (ValueError, OverflowError):
        return None


def _around(outline: Any) -> tuple[float, float, float, float]:
    polygons = outline if isinstance(outline, list) else []
    if polygons and not isinstance(polygons[0], list):
        polygons = [polygons]
    points: list[tuple[float, float]] = []
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise ValueError("not a polygon")
        if polygon and isinstance(polygon[0], list):  # [[x, y], ...]
            pairs = [numbers(point, 2) for point in polygon]
            points += [(x, y) for x, y in pairs]
            continue
        values = numbers(polygon, len(polygon))
        points += zip(values[::2], values[1::2], strict=True)
    if len(points) < 2 or not all(isfinite(x + y) for x, y in points):
        raise ValueError("no points")
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _around_runs(mask: dict[str, Any]) -> Outlined:
    """Runs of 0 and 1 in turns, column by column from the top left."""
    height, width = (int(side) for side in numbers(mask.get("size"), 2))
    counts = mask.get("counts")
    if isinstance(counts, str):
        runs = _uncompressed(counts)
    else:
        runs = [int(run) for run in numbers(counts, len(counts) if isinstance(counts, list) else 0)]
    if height < 1 or width < 1 or min(runs, default=-1) < 0 or sum(runs) > height * width:
        raise ValueError("not the runs of a mask of that size")
    x0, y0, x1, y1 = width, height, 0, 0
    position = 0
    for number, run in enumerate(runs):
        if number % 2 and run:
            left, top = divmod(position, height)
            right, bottom = divmod(position + run - 1, height)
            if left != right:  # it goes on at the top of the next column
                top, bottom = 0, height - 1
            x0, y0, x1, y1 = min(x0, left), min(y0, top), max(x1, right + 1), max(y1, bottom + 1)
        position += run
    if x0 >= x1:
        raise ValueError("nothing is marked")
    return Outlined((x0, y0, x1, y1), (width, height))


def _uncompressed(text: str) -> list[int]:
    """Numbers in groups of five bits, from the fourth on as differences to the last but one."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - _FIRST
        if not 0 <= code < 64 or shift >= _BITS * _MOST_CHARACTERS:
            raise ValueError("not compressed runs")
        value |= (code & _VALUE) << shift
        shift += _BITS
        if code & _CONTINUES:
            continue
        if code & _SIGN:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
        value = shift = 0
    if shift:
        raise ValueError("compressed runs end too early")
    return runs
