"""Text files of boxes: a JSON object a line, as small collections have them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pbe_model.editing.mask_shapes import Box
from pbe_model.untrusted import numbered_lines, parse_json, shown
from training.data.decode import photo_size
from training.data.index_format import LARGEST, PhotoBoxes


def read_lines(path: Path, root: Path, min_area: float, max_area: float) -> Iterator[PhotoBoxes]:
    """Photos of a text file of boxes, in the order in which they first appear."""
    photos: dict[str, tuple[tuple[int, int], list[Box], list[str]]] = {}
    for number, line in numbered_lines(path):
        try:
            entry = parse_box(line)
            x0, y0, x1, y1 = map(int, entry.box)
            if entry.image not in photos:
                os.fsencode(entry.image)  # not every string can name a file
                width, height = entry.size or _header_size(root / entry.image)
                photos[entry.image] = (int(width), int(height)), [], []
            size, boxes, labels = photos[entry.image]
            pixels = size[0] * size[1]
            fits = not pixels or min_area <= (x1 - x0) * (y1 - y0) / pixels <= max_area
        except (ValueError, OverflowError) as error:
            raise ValueError(
                f"line {number} of '{path}' is no box entry ({shown(line, 80)}); "
                'each line must read {"image": "path", "box": [x0, y0, x1, y1]}'
            ) from error
        if fits:
            x0, y0, x1, y1 = (min(max(n, 0), LARGEST) for n in (x0, y0, x1, y1))
            boxes.append((x0, y0, x1, y1))
            labels.append(entry.label)
    for image, (size, boxes, labels) in photos.items():
        yield PhotoBoxes(path=image, size=size, boxes=np.array(boxes, int), labels=labels)


def _header_size(photo: Path) -> tuple[int, int]:
    try:
        return photo_size(photo)
    except OSError:
        return 0, 0


class BoxLine(NamedTuple):
    """A line of a text file of boxes (see `BoxIndex.open`)."""

    image: str
    box: tuple[float, ...]
    size: tuple[float, ...] | None
    label: str


def parse_box(line: str, labels: tuple[str, ...] = ("label",)) -> BoxLine:
    """Read a line of a text file of boxes.

    Args:
        line: JSON.
        labels: What the label may be called; the first that is there counts.

    Raises:
        ValueError: Not JSON, or not of the right types.
    """
    entry = parse_json(line)
    if not isinstance(entry, dict) or not isinstance(image := entry.get("image"), str):
        raise ValueError("it has no string 'image'")
    label = ""
    for name in labels:
        if name in entry:
            label = entry[name]
            break
    if isinstance(label, (dict, list)):
        raise ValueError("its label is not a string")
    size = entry.get("size")
    box = numbers(entry.get("box"), 4)
    return BoxLine(image, box, numbers(size, 2) if size else None, str(label))


def numbers(value: object, count: int) -> tuple[float, ...]:
    """The numbers of a list that came out of a file.

    Raises:
        ValueError: Not a list of so many numbers.
    """
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"{shown(value, 80)} is not a list of {count} numbers")
    try:
        return tuple(map(float, value))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{shown(value, 80)} are not {count} numbers") from error
