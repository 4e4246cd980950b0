"""Text files of boxes: a JSON object a line, as small collections have them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pbe_model.editing.mask_shapes import Box
from pbe_model.untrusted import first_line, numbered_lines, parse_json, printable, shown
from training.data.decode import photo_size
from training.data.index_format import LARGEST, MAX_PATH, PhotoBoxes

log = logging.getLogger(__name__)

_SHOWN = 3  # of the lines that are passed over


@dataclass
class _Lines:
    """A photo, and the boxes of its lines."""

    size: tuple[int, int]
    boxes: list[Box] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


def read_lines(path: Path, root: Path, min_area: float, max_area: float) -> Iterator[PhotoBoxes]:
    """Photos of a text file of boxes, in the order in which they first appear.

    Lines that are no box entries are passed over, and a warning says how many and which.

    Raises:
        ValueError: The file cannot be read, or all lines are like that.
    """
    photos: dict[str, _Lines] = {}
    faults, num_faults, num_boxes = [], 0, 0
    for number, line in numbered_lines(path):
        try:
            entry = parse_box(line)
            image = _existing(entry.image, root)
            if image not in photos:
                photos[image] = _Lines(_size(entry, root / image))
            box = _in_pixels(entry)
        except (ValueError, OverflowError) as error:
            num_faults += 1
            if len(faults) < _SHOWN:
                faults.append((number, f"{shown(line, 80)}: {first_line(error)}"))
            continue
        num_boxes += 1
        width, height = photos[image].size
        share = (box[2] - box[0]) * (box[3] - box[1]) / max(width * height, 1)
        if not width * height or min_area <= share <= max_area:
            x0, y0, x1, y1 = (min(max(n, 0), LARGEST) for n in box)
            photos[image].boxes.append((x0, y0, x1, y1))
            photos[image].labels.append(entry.label)
    if num_faults:
        name = printable(path)
        if not num_boxes:
            number, reason = faults[0]
            more = f", and {num_faults - 1:,} more are none" if num_faults > 1 else ""
            raise ValueError(
                f"line {number} of '{name}' is no box entry ({reason}){more}; "
                'each line must read {"image": "path", "box": [x0, y0, x1, y1]}'
            )
        first = "; ".join(f"line {number} ({reason})" for number, reason in faults)
        log.warning("%s: passing over %d lines, the first: %s", name, num_faults, first)
    for image, lines in photos.items():
        boxes = np.array(lines.boxes, int)
        yield PhotoBoxes(path=image, size=lines.size, boxes=boxes, labels=lines.labels)


def _existing(image: str, root: Path) -> str:
    """The path as it is written on this system, where there is no file of the very name."""
    if len(os.fsencode(image)) > MAX_PATH:  # not every string can name a file
        raise ValueError(f"its path has more than {MAX_PATH:,} bytes")
    if "\\" in image and not os.path.exists(root / image):
        return image.replace("\\", "/")
    return image


def _size(entry: BoxLine, photo: Path) -> tuple[int, int]:
    """Width and height as stated, else by the header, else 0."""
    width, height = entry.size or _header_size(photo)
    size = int(width), int(height)
    if not 0 <= min(size) <= max(size) <= LARGEST:
        raise ValueError(f"its size {shown(size, 40)} is not in 0 to {LARGEST} pixels")
    return size


def _in_pixels(entry: BoxLine) -> Box:
    x0, y0, x1, y1 = map(int, entry.box)
    if not (x0 < x1 and y0 < y1):
        raise ValueError("its box has no area in whole pixels, x0 < x1 and y0 < y1")
    return x0, y0, x1, y1


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
