"""Planning the crops of a photo: where they are, at what size they are edited, how they blend.

A square around the hole, as large as in training, shifted to stay inside the photo; or a box of
another aspect, for models that take one. A photo may have several holes far from each other: each
can have a crop of its own, and all crops have the model's size, so they are one batch. Cropping and
stitching are in `region`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .crop_settings import DEFAULT_CROP, CropSettings, nearest_multiple
from .mask import bounding_box, expand_hole, feather_hole
from .mask_shapes import Box
from .region import INVISIBLE, Region, clip_box, slices

CROPS = ("auto", "whole", "squash")
MODES = (*CROPS, "each")

_TIGHT_CONTEXT = 1.2
"""Context down to which a crop shrinks to stay inside the photo; below it the crop overflows."""
_MAX_UPSCALE = 8
_MAX_STRETCH = 2
_NOISE = 0.1
"""Mask values up to this are taken for compression noise, not for a feathered edge."""
_SHOWN = 0.25
"""Share of another hole's box that a crop may show before the two holes share a crop."""
_MAX_CROPS = 64


def plan_region(
    hole_mask: Tensor, crop: CropSettings = DEFAULT_CROP, *, mode: str = "auto"
) -> Region:
    """Chooses one crop for all that is to be repainted.

    "auto" takes a square (a box of the aspect of `crop.size`, if it is not square) whose side is
    `context` times the longer side of the hole. It is shifted
    to stay inside the photo; where the photo is too narrow for it, it is made smaller, down to
    1.2 times the hole, and only then overflows. It is never upscaled more than 8 times, so a tiny
    hole gets more context.

    "whole" takes the whole photo, at about as many pixels as `crop.size` has. The aspect is kept up
    to the rounding of both sides to the multiple; aspects beyond 4:1 are squashed.

    "squash" takes the whole photo at `crop.size`, whatever its aspect, as the official code was
    fed.

    Args:
        hole_mask: (H, W), 1 = repaint; the hole is what lies above 0.5.
        crop: Sizes left open are those of the published weights; masks have the size of
            `hole_mask`.
        mode: One of `CROPS`.

    Raises:
        ValueError: Empty mask, unknown mode, or masks of different sizes.
    """
    _check_mode(mode, CROPS)
    _check_masks(hole_mask, crop)
    crop = crop.completed()
    blend, blend_mask, context_mask = crop.blend, crop.blend_mask, crop.context_mask
    height, width = photo_size = (hole_mask.shape[0], hole_mask.shape[1])
    if blend is None:
        side = crop.context * _side(bounding_box(hole_mask)) if mode == "auto" else math.inf
        blend = _blend_of(side, photo_size)

    painted = bounding_box(hole_mask, _NOISE)
    if blend_mask is None:
        painted = zone = clip_box(_grow(painted, math.ceil(blend)), photo_size)
        shares = _blend_mask(hole_mask[slices(zone)], blend)
    else:
        zone = bounding_box(blend_mask, INVISIBLE)
        shares = blend_mask[slices(zone)].clamp(0, 1)
        shares = torch.where(shares > INVISIBLE, shares, 0)

    box, size = (0, 0, width, height), crop.size
    if mode == "auto":
        needed = _union(painted, zone)
        if context_mask is not None and (context_mask > 0.5).any():
            needed = _union(needed, bounding_box(context_mask))
        box = _box_around(painted, needed, photo_size, crop.context, size)
    elif mode == "whole":
        size = _whole_size(photo_size, size, crop.multiple or 1)
    return Region(photo_size, box, size, zone, shares)


def plan_regions(
    hole_mask: Tensor, crop: CropSettings = DEFAULT_CROP, *, mode: str = "auto"
) -> list[Region]:
    """Chooses what to crop: one region, or with mode "each" one for each separate hole.

    A hole is a connected blob of the mask, diagonals included. Holes whose crops would show more
    than a quarter of each other are taken together, so a speck goes with the hole beside it. Soft
    edges, context mask and blend mask go pixel by pixel to the nearest hole; a hole without any
    share in a given blend mask is not painted. Other holes that a crop does show are holes in it
    too: what is about to be painted over is never seen.

    Args:
        hole_mask: (H, W), 1 = repaint; a hole is what lies above 0.5.
        crop: As in `plan_region`, for each hole by itself.
        mode: One of `MODES`.

    Returns:
        The regions, by the topmost pixel of their holes. With one hole "each" is "auto".

    Raises:
        ValueError: As `plan_region`, or more than 64 separate holes.
    """
    _check_mode(mode, MODES)
    if mode != "each":
        return [plan_region(hole_mask, crop, mode=mode)]
    _check_masks(hole_mask, crop)
    size = crop.completed().size
    photo_size = (hole_mask.shape[0], hole_mask.shape[1])

    def crop_around(hole: Box, needed: Box) -> Box:
        blend = crop.blend
        if blend is None:
            blend = _blend_of(crop.context * _side(hole), photo_size)
        painted = clip_box(_grow(hole, math.ceil(blend)), photo_size)
        needed = _union(painted, needed)
        return _box_around(painted, needed, photo_size, crop.context, size)

    nearest, groups = _separate_holes(hole_mask, crop.context_mask, crop_around)
    if len(groups) < 2:
        return [plan_region(hole_mask, crop)]
    if len(groups) > _MAX_CROPS:
        raise ValueError(
            f"the mask has {len(groups)} holes far from each other, more than {_MAX_CROPS} crops; "
            "clean specks out of it or take the region mode 'auto'"
        )
    regions = []
    for group in groups:
        own = torch.from_numpy(np.isin(nearest, group)).to(hole_mask.device)
        part = crop.inside(own)
        if part.blend_mask is None or (part.blend_mask > INVISIBLE).any():
            regions.append(plan_region(torch.where(own, hole_mask, 0), part))
    return regions


def plan_numbered(
    hole_mask: Tensor, numbers: np.ndarray, crop: CropSettings = DEFAULT_CROP
) -> list[Region]:
    """Chooses one crop for each numbered hole, however near they are: each is painted by itself.

    Args:
        hole_mask: (H, W), 1 = repaint; a hole is what lies above 0.5.
        numbers: (H, W) integers: the number of the hole that a pixel belongs to, from 1; 0 outside.
        crop: As in `plan_regions`.

    Returns:
        The regions, in the order of their numbers.

    Raises:
        ValueError: As `plan_region`, more than 64 holes, or one of them is not in the mask.
    """
    _check_masks(hole_mask, crop)
    count = int(numbers.max())
    if count > _MAX_CROPS:
        raise ValueError(f"the mask has {count} holes; give at most {_MAX_CROPS}")
    nearest = _spread(numbers)
    regions = []
    for number in range(1, count + 1):
        own = torch.from_numpy(nearest == number).to(hole_mask.device)
        hole = torch.where(own, hole_mask, 0)
        if not (hole > 0.5).any():
            raise ValueError(
                f"hole {number} is empty or lies under later ones; draw masks side by side"
            )
        regions.append(plan_region(hole, crop.inside(own)))
    return regions


def untouched_region(
    photo_size: tuple[int, int], crop: CropSettings = DEFAULT_CROP, *, mode: str = "auto"
) -> Region:
    """The region of a photo without a hole: all of it, of which nothing is blended in.

    Args:
        photo_size: (H, W).
        crop: As in `plan_region`.
        mode: One of `MODES`; the region has the size that a photo with a hole would have.
    """
    _check_mode(mode, MODES)
    crop = crop.completed()
    size = _whole_size(photo_size, crop.size, crop.multiple or 1) if mode == "whole" else crop.size
    box = (0, 0, photo_size[1], photo_size[0])
    return Region(photo_size, box, size, (0, 0, 0, 0), torch.zeros(0, 0))


def _blend_mask(hole_mask: Tensor, blend: float) -> Tensor:
    """1 in the hole, a ramp of `blend` pixels around it, and the mask's own soft edge."""
    hole = (hole_mask > 0.5).to(hole_mask)
    ramp = feather_hole(expand_hole(hole, blend / 2), blend / 2)
    # A feathered edge crosses 0.5 at the hole's edge; only its outer half is outside the hole.
    soft = ((hole_mask - _NOISE) / (0.5 - _NOISE)).clamp(0, 1)
    return torch.maximum(ramp, soft)


def _check_mode(mode: str, modes: Sequence[str]) -> None:
    if mode not in modes:
        raise ValueError(f"unknown region mode {mode!r}; choose one of {', '.join(modes)}")


def _check_masks(hole_mask: Tensor, crop: CropSettings) -> None:
    for name, other in (("context", crop.context_mask), ("blend", crop.blend_mask)):
        if other is not None and other.shape != hole_mask.shape:
            raise ValueError(
                f"the {name} mask has shape {tuple(other.shape)} and the hole's mask "
                f"{tuple(hole_mask.shape)}; give masks of the photo's size"
            )
    if crop.blend_mask is not None and not (crop.blend_mask > INVISIBLE).any():
        raise ValueError(
            "the blend mask is empty, so nothing of the photo would change; paint white where "
            "the result should show, or leave the blend mask out"
        )


def _box_around(
    painted: Box, needed: Box, photo_size: tuple[int, int], context: float, size: tuple[int, int]
) -> Box:
    """Box of the aspect of `size`, `context` times what is painted, holding all that is needed."""
    # Lengths are measured in the sides of a box of this aspect whose area is 1.
    unit = math.sqrt(size[0] * size[1])
    sides = size[1] / unit, size[0] / unit  # of x and y, both 1 for a square
    lengths = [length / side for length, side in zip(reversed(photo_size), sides, strict=True)]
    hole, short, long = _side(painted, sides), min(lengths), max(lengths)
    wanted = max(context * hole, unit / _MAX_UPSCALE)
    wanted = min(wanted, max(short, _TIGHT_CONTEXT * hole), long)
    scale = max(_side(needed, sides), round(wanted))
    spans = []
    for i, length in enumerate(reversed(photo_size)):
        span = max(needed[i + 2] - needed[i], round(scale * sides[i]))
        spans.append((_place(painted[i::2], needed[i::2], span, length), span))
    (left, width), (top, height) = spans
    return left, top, left + width, top + height


def _place(painted: tuple[int, ...], needed: tuple[int, ...], side: int, length: int) -> int:
    """Start of a stretch of `side` pixels: around what is painted, shifted into the photo if it
    fits, and then as far as it takes to hold what is needed."""
    if side > length:
        return -((side - length) // 2)
    start = min(max(0, round(sum(painted) / 2 - side / 2)), length - side)
    return max(min(start, needed[0]), needed[1] - side)


def _separate_holes(
    hole_mask: Tensor, context_mask: Tensor | None, crop_around: Callable[[Box, Box], Box]
) -> tuple[np.ndarray, list[list[int]]]:
    """Finds the blobs of a mask that share a crop.

    Returns:
        The number of the nearest blob for each pixel, (H, W) from 1, and the groups of numbers.
    """
    hole = (hole_mask > 0.5).cpu().numpy()
    blobs = np.zeros(hole.shape, np.int32)
    ndimage.label(hole, structure=np.ones((3, 3)), output=blobs)
    boxes = _boxes(blobs, int(blobs.max()))
    if len(boxes) > 1:
        blobs = _spread(blobs)
    marked = 0 if context_mask is None else blobs * (context_mask > 0.5).cpu().numpy()
    context_boxes = _boxes(np.broadcast_to(marked, hole.shape), len(boxes))

    groups: list[tuple[list[int], Box, Box, Box]] = []  # blobs, their box, with context, their crop
    for number, (box, context_box) in enumerate(zip(boxes, context_boxes, strict=True), start=1):
        assert box is not None
        members, needed = [number], _union(box, context_box or box)
        while True:
            area = crop_around(box, needed)
            near = next((g for g in groups if _shows(area, g[1]) or _shows(g[3], box)), None)
            if near is None:
                break
            groups.remove(near)  # and look again: the crop of both is larger
            members, box, needed = near[0] + members, _union(box, near[1]), _union(needed, near[2])
        groups.append((members, box, needed, area))
    return blobs, sorted(sorted(group[0]) for group in groups)


def _spread(numbers: np.ndarray) -> np.ndarray:
    """Gives each pixel that is 0 the number of the nearest one that is not, (H, W)."""
    indices = ndimage.distance_transform_edt(
        numbers == 0, return_distances=False, return_indices=True
    )
    return numbers[tuple(np.asarray(indices))]


def _boxes(labels: np.ndarray, count: int) -> list[Box | None]:
    """The box of each label from 1 to `count`, None where there is no such pixel."""
    found = ndimage.find_objects(labels.astype(np.int32), count) if count else []
    return [s and (s[1].start, s[0].start, s[1].stop, s[0].stop) for s in found]


def _shows(shown: Box, box: Box) -> bool:
    """Whether a crop shows much of a box."""
    x0, y0 = max(shown[0], box[0]), max(shown[1], box[1])
    x1, y1 = min(shown[2], box[2]), min(shown[3], box[3])
    area = max(0, x1 - x0) * max(0, y1 - y0)
    return area > _SHOWN * (box[2] - box[0]) * (box[3] - box[1])


def _blend_of(side: float, photo_size: tuple[int, int]) -> float:
    """Width of the blend zone for a crop of this side."""
    return max(2.0, min(side, max(photo_size)) / 64)


def _whole_size(
    photo_size: tuple[int, int], size: tuple[int, int], multiple: int
) -> tuple[int, int]:
    """Sizes of the photo's aspect with as many pixels as `size`."""
    resolution = math.sqrt(size[0] * size[1])
    scale = resolution / math.sqrt(photo_size[0] * photo_size[1])
    height, width = (
        round(min(max(length * scale, resolution / _MAX_STRETCH), resolution * _MAX_STRETCH))
        for length in photo_size
    )
    return nearest_multiple(height, multiple), nearest_multiple(width, multiple)


def _grow(box: Box, pixels: int) -> Box:
    return box[0] - pixels, box[1] - pixels, box[2] + pixels, box[3] + pixels


def _union(*boxes: Box) -> Box:
    starts_x, starts_y, stops_x, stops_y = zip(*boxes, strict=True)
    return min(starts_x), min(starts_y), max(stops_x), max(stops_y)


def _side(box: Box, sides: tuple[float, float] = (1, 1)) -> float:
    """The longer side of a box, each measured in a unit of its own."""
    return max((box[2] - box[0]) / sides[0], (box[3] - box[1]) / sides[1])
