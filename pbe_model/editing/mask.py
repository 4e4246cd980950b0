"""What an artist does to a mask: grow, feather, fill or clean it, or replace it by another shape.

Conventions:
- A `hole_mask` is 1 where to repaint, a `keep_mask` is 1 where to keep the photo.
- A box is `(x0, y0, x1, y1)` in pixels, x1 and y1 excluded.
- Masks are torch float32 in [0, 1]; the shapes of `mask_shapes` are NumPy.
- A soft mask's edge runs where it crosses 0.5; exactly 0.5 is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial import ConvexHull
from torch import Tensor

from .mask_shapes import Box, bezier_mask, box_mask, extend_box

SHAPES = ("as is", "box", "bezier", "hull")

_MOST_BETWEEN = 2**28  # pixels of a mask after the first of the two directions is resized


def resize_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """A mask at another size, antialiased; stretched where the aspect differs.

    Args:
        mask: (..., H, W) float.
        size: (h, w).

    Returns:
        (..., h, w).

    Raises:
        ValueError: The shapes differ so much that resizing would take gigabytes.
    """
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask
    if mask.shape[-2] * size[1] > _MOST_BETWEEN:
        raise ValueError(
            f"a mask of {mask.shape[-1]} x {mask.shape[-2]} pixels does not fit a photo of "
            f"{size[1]} x {size[0]}; give one of about the same shape"
        )
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    resized = F.interpolate(in_full(flat), size=tuple(size), mode="bilinear", antialias=True)
    return resized.to(mask.dtype).reshape(*mask.shape[:-2], *size)


def in_full(values: Tensor) -> Tensor:
    """Values of half precision as float32: much of torch computes with none on the CPU."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def bounding_box(hole_mask: Tensor, threshold: float = 0.5) -> Box:
    """Smallest box around the hole.

    Args:
        hole_mask: (H, W), 1 = repaint.
        threshold: Values strictly above it belong to the hole.

    Raises:
        ValueError: The mask is empty.
    """
    hole = hole_mask > threshold
    columns, rows = hole.any(0).nonzero(), hole.any(1).nonzero()
    if not len(rows):
        height, width = hole_mask.shape
        raise ValueError(
            f"the mask is empty: none of its {width}x{height} pixels is above {threshold:g}; "
            "paint white where the exemplar should go"
        )
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def with_threshold(hole_mask: Tensor, threshold: float) -> Tensor:
    """A mask whose edge runs at another value, with that value moved to 0.5.

    Args:
        hole_mask: Any shape; what lies above the threshold is the hole.
        threshold: From 0 to below 1; at 0.5 the mask stays as it is.

    Returns:
        Same shape, soft edges kept: 0 and 1 stay, values between are stretched evenly.

    Raises:
        ValueError: The threshold is out of range.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"the mask's threshold is {threshold:g}; give a number from 0 to below 1")
    if threshold == 0.5:
        return hole_mask
    below = hole_mask / (2 * threshold) if threshold else torch.zeros_like(hole_mask)
    above = 0.5 + (hole_mask - threshold) / (2 - 2 * threshold)
    # Rounding must not move a pixel across the edge.
    below, above = below.clamp_max(0.5), above.clamp_min(0.5 + 2**-20)
    return torch.where(hole_mask > threshold, above, below)


def expand_hole(hole_mask: Tensor, pixels: float) -> Tensor:
    """Grows the hole by a Euclidean disc, or shrinks it.

    Args:
        hole_mask: (H, W) or (B, H, W), 1 = repaint.
        pixels: Radius of the disc; negative shrinks. The picture's own rim does not eat into a
            hole that touches it.

    Returns:
        Same shape, 0 or 1; where `pixels` is 0, the mask as it came, soft values included.
    """
    if pixels == 0:
        return hole_mask

    def expand_one(hole: np.ndarray) -> np.ndarray:
        depth = _depth(hole, abs(pixels))
        return depth >= 0.5 - pixels if pixels > 0 else depth > -0.5 - pixels

    return _map(expand_one, hole_mask)


def feather_hole(hole_mask: Tensor, pixels: float) -> Tensor:
    """Softens the hole's edge to a straight ramp.

    The ramp is 1 from `pixels` inside the edge, 0 from `pixels` outside it, and crosses 0.5 at
    the edge itself: thresholding the result gives the hole back exactly.

    Args:
        hole_mask: (H, W) or (B, H, W), 1 = repaint. Soft values are replaced by the ramp.
        pixels: Half the ramp's width; 0 changes nothing.

    Raises:
        ValueError: `pixels` is negative.
    """
    if pixels < 0:
        raise ValueError(f"feather is {pixels}; give 0 pixels or more")
    if pixels == 0:
        return hole_mask
    return _map(lambda hole: (0.5 + _depth(hole, pixels) / (2 * pixels)).clip(0, 1), hole_mask)


def fill_enclosed(hole_mask: Tensor) -> Tensor:
    """Fills the islands that the hole encloses; soft outer edges stay.

    Args:
        hole_mask: (H, W) or (B, H, W), 1 = repaint.
    """
    return torch.maximum(hole_mask, _map(ndimage.binary_fill_holes, hole_mask))


def remove_specks(hole_mask: Tensor, pixels: float) -> Tensor:
    """Removes the parts of the hole that are too small; the largest always stays.

    A part is what touches, corners included. A soft edge goes or stays with the part next to it.

    Args:
        hole_mask: (H, W) or (B, H, W), 1 = repaint.
        pixels: Parts of fewer pixels than this go; 0 and 1 change nothing.

    Raises:
        ValueError: `pixels` is negative.
    """
    if pixels < 0:
        raise ValueError(f"drop specks is {pixels}; give 0 pixels or more")

    def kept(hole: np.ndarray) -> np.ndarray:
        labelled: Any = ndimage.label(hole, structure=np.ones((3, 3)))
        parts = labelled[0]  # 0 is the background
        areas = np.bincount(parts.ravel())
        areas[0] = 0
        stays = areas >= min(pixels, areas.max())
        nearest: Any = ndimage.distance_transform_edt(
            ~hole, return_distances=False, return_indices=True
        )
        return stays[parts[tuple(nearest)]]

    return hole_mask if pixels <= 1 else hole_mask * _map(kept, hole_mask)


def convex_hull(hole_mask: Tensor) -> Tensor:
    """The hole's convex hull: every pixel whose centre lies in it, 0 or 1.

    Args:
        hole_mask: (H, W) or (B, H, W), 1 = repaint. An empty mask stays empty.
    """
    return _map(_convex_hull, hole_mask)


def augment(
    hole_mask: Tensor,
    shape: str = "as is",
    *,
    expand: float = 0,
    feather: float = 0,
    fill_holes: bool = False,
    drop_specks: float = 0,
    seed: int = 0,
    variations: int = 1,
) -> Tensor:
    """A mask, its bounding box, its hull or random Bezier shapes around it, grown and feathered.

    In this order: fill holes, drop specks, shape, expand, feather. So a ring counts with what it
    encloses, and a stray dot does not stretch the box.

    Args:
        hole_mask: (H, W) or (B, H, W), 1 = repaint.
        shape: One of `SHAPES`. "bezier" draws as training does: the hole's bounding box, extended
            at random, then `bezier_mask` with its jitter scaled to picture and box. Only this shape
            is random; the others repeat over the variations.
        expand: Pixels to grow the shape by; negative shrinks.
        feather: Pixels of soft edge to either side.
        fill_holes: Fill islands enclosed by the hole.
        drop_specks: Parts of fewer pixels than this are removed; the largest always stays.
        seed: Variation k of mask b depends on (seed, b, k) only.
        variations: How many of each mask.

    Returns:
        (B * variations, H, W), the variations of one mask side by side.

    Raises:
        ValueError: Unknown shape, no variations, negative feather or specks, an empty mask, or a
            hole that a negative `expand` shrinks to nothing.
    """
    if shape not in SHAPES:
        raise ValueError(f"unknown mask shape {shape!r}; choose one of {', '.join(SHAPES)}")
    if variations < 1:
        raise ValueError(f"variations is {variations}; give 1 or more")
    results = []
    for number, single in enumerate(_batched(hole_mask)):
        if fill_holes:
            single = fill_enclosed(single)
        single = remove_specks(single, drop_specks)
        box = bounding_box(single)
        for variation in range(variations):
            rng = np.random.default_rng([seed, number, variation])
            shaped = expand_hole(_reshape(single, shape, box, rng), expand)
            if not (shaped > 0.5).any():
                raise ValueError(
                    f"expand {expand:g} shrinks the mask to nothing; use a value nearer to 0"
                )
            results.append(feather_hole(shaped, feather))
    return torch.stack(results)


def _reshape(hole_mask: Tensor, shape: str, box: Box, rng: np.random.Generator) -> Tensor:
    if shape == "as is":
        return hole_mask
    if shape == "hull":
        return convex_hull(hole_mask)
    height, width = hole_mask.shape
    if shape == "box":
        drawn = box_mask(height, width, box)
    else:
        extended = extend_box(box, height, width, rng)
        # OpenImages' photos are 1,024 pixels long, its boxes large: cap it for small holes.
        jitter = min(5.0 * max(height, width) / 1024, min(box[2] - box[0], box[3] - box[1]) / 20)
        drawn = bezier_mask(height, width, box, extended, rng, jitter=jitter)
    return torch.from_numpy(drawn).to(hole_mask)


def _batched(hole_mask: Tensor) -> Tensor:
    if hole_mask.ndim not in (2, 3):
        raise ValueError(
            f"the mask has shape {tuple(hole_mask.shape)}; it must be (H, W) or (B, H, W)"
        )
    return hole_mask if hole_mask.ndim == 3 else hole_mask[None]


def _map(function: Callable[[np.ndarray], Any], hole_mask: Tensor) -> Tensor:
    """Applies a function of one boolean (H, W) array to each mask; the result is a tensor like it.

    Uniform masks have no edge, so no function here changes them.
    """
    results = []
    for single in _batched(hole_mask):
        hole = (single > 0.5).cpu().numpy()
        uniform = hole.all() or not hole.any()
        results.append(torch.from_numpy(np.asarray(hole if uniform else function(hole))))
    return torch.stack(results).to(hole_mask).view_as(hole_mask)


def _depth(hole: np.ndarray, reach: float) -> np.ndarray:
    """Signed distance of pixel centres from the hole's edge: positive inside, in pixels.

    Exact up to `reach` outside; -inf farther out, so that a small hole in a large photo is cheap.
    """
    x0, y0, x1, y1 = bounding_box(torch.from_numpy(hole), 0)
    pad = math.ceil(reach) + 1
    window = np.s_[max(0, y0 - pad) : y1 + pad, max(0, x0 - pad) : x1 + pad]
    inner = hole[window]
    depth = np.full(hole.shape, -np.inf, np.float32)
    # Neighbours across the edge are one pixel apart, half a pixel from the edge each.
    inside, outside = _distance(inner), _distance(~inner)
    depth[window] = np.where(inner, inside - 0.5, 0.5 - outside)
    return depth


def _distance(region: np.ndarray) -> np.ndarray:
    """Distance of each pixel of a region to the nearest one outside it; 0 outside."""
    return np.asarray(ndimage.distance_transform_edt(region), np.float32)


def _convex_hull(hole: np.ndarray) -> np.ndarray:
    rows = np.flatnonzero(hole.any(1))
    left = hole[rows].argmax(1)
    right = hole.shape[1] - 1 - hole[rows, ::-1].argmax(1)
    # A speck around each pixel's centre gives even a single pixel, or a line of them, an area.
    speck = 1e-3
    corners = [
        (x + dx, rows + dy)
        for x in (left, right)
        for dx in (-speck, speck)
        for dy in (-speck, speck)
    ]
    points = np.concatenate([np.stack(corner, axis=1) for corner in corners])  # (8 rows, 2)
    a, b, c = ConvexHull(points).equations.T[:, :, None]  # a x + b y + c <= 0 inside, (N, 1) each

    # A convex set meets a row in one interval; the slanted edges bound it.
    y = np.arange(rows[0], rows[-1] + 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = -(b * y + c) / a  # (N, rows)
    low = np.where(a < 0, crossings, -np.inf).max(0)
    high = np.where(a > 0, crossings, np.inf).min(0)
    x = np.arange(hole.shape[1])
    hull = np.zeros_like(hole)
    hull[rows[0] : rows[-1] + 1] = (x >= low[:, None]) & (x <= high[:, None])
    return hull
