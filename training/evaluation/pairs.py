"""The pairs that the evaluation paints: read from a picture set, and compared with whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from pbe_model.editing.mask_shapes import Box, box_mask
from pbe_model.image_io import read_image
from pbe_model.untrusted import numbered_lines, parse_json, shown
from training.data.box_lines import numbers
from training.data.dataset import Stream, keyed_rng
from training.data.decode import photo_size

SPLIT = "val"
"""Folder of a set with the pairs to evaluate."""
INDEX = "pairs.jsonl"
CANDIDATES = 8

_MAX_PIXELS = 2**27  # of all pairs together, 12 bytes each


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A held-out object twice: in a photo, and alone as the exemplar.

    Attributes:
        photo: `(H, W, 3)` in [0, 1].
        exemplar: `(h, w, 3)` in [0, 1].
        box: Where the object is, in pixels of the photo.
        group: Shared by near-duplicates.
    """

    photo: Tensor
    exemplar: Tensor
    box: Box
    group: str

    @property
    def hole_mask(self) -> Tensor:
        """`(H, W)`, 1 inside the box."""
        height, width = self.photo.shape[:2]
        return torch.from_numpy(box_mask(height, width, self.box)).float()


def load_pairs(root: Path, count: int, split: str = SPLIT) -> list[Pair]:
    """The first `count` pairs of a demo set, from the folder `split` of it.

    Raises:
        ValueError: No index, a malformed line, too few pairs, or pictures that cannot be read or
            are too many pixels together.
    """
    path = Path(root) / split / INDEX
    if not path.is_file():
        raise ValueError(f"no pairs at {path}; make them with `pbe-train prepare demo`")
    lines = list(islice(numbered_lines(path), count))
    if len(lines) < count:
        raise ValueError(f"{path} holds {len(lines)} pairs, not {count}; ask for fewer")
    entries: list[tuple[list[Path], Box, str]] = []
    for number, line in lines:
        try:
            names, box, group = _parse_pair(line)
        except ValueError as error:
            raise ValueError(
                f"line {number} of {path} is not a pair ({shown(line, 80)}); make the set again"
            ) from error
        entries.append(([Path(root) / name for name in names], box, group))
    pixels = sum(_pixels(file) for files, _, _ in entries for file in files)
    if pixels > _MAX_PIXELS:  # they are all in memory at once
        raise ValueError(
            f"the {count} pairs of {path} have {pixels:,} pixels, and {_MAX_PIXELS:,} are the "
            "most; evaluate fewer"
        )
    pairs = []
    for (number, _), (files, box, group) in zip(lines, entries, strict=True):
        photo, exemplar = map(read_image, files)
        height, width = photo.shape[:2]
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(
                f"line {number} of {path} has the box {shown(box, 80)} in a photo of {width} x "
                f"{height} pixels; make the set again"
            )
        pairs.append(Pair(photo=photo, exemplar=exemplar, box=box, group=group))
    return pairs


def _parse_pair(line: str) -> tuple[list[str], Box, str]:
    """Names of photo and exemplar, the box, the group."""
    match parse_json(line):
        case {"photo": str(photo), "exemplar": str(exemplar), "group": str(group), "box": box}:
            x0, y0, x1, y1 = numbers(box, 4)
            if all(map(isfinite, (x0, y0, x1, y1))):
                return [photo, exemplar], (int(x0), int(y0), int(x1), int(y1)), group
    raise ValueError("it lacks a part")


def _pixels(file: Path) -> int:
    try:
        width, height = photo_size(file)
    except OSError:  # for which `read_image` has a sentence
        return 0
    return width * height


def draw_candidates(
    groups: Sequence[str], number: int, seed: int, count: int = CANDIDATES
) -> tuple[list[int], int]:
    """Whom the exemplar of a pair is compared with, drawn for that pair alone.

    Args:
        groups: The group of every pair.
        number: Which pair to draw for.
        seed: Key of the draw.
        count: Candidates, the pair itself among them.

    Returns:
        The pair's own number and one each of `count` - 1 other groups, then one of yet another
        group, whose exemplar the control paints.

    Raises:
        ValueError: There are not that many groups.
    """
    others = sorted(set(groups) - {groups[number]})
    if len(others) < count:
        raise ValueError(
            f"the pairs show {len(others) + 1} groups of objects, but the comparison needs "
            f"{count + 1}; evaluate more pairs"
        )
    rng = keyed_rng(seed, number, Stream.CANDIDATES)
    *drawn, shuffled = (
        int(rng.choice([i for i, group in enumerate(groups) if group == name]))
        for name in rng.choice(others, count, replace=False)
    )
    return [number, *drawn], shuffled
