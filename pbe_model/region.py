"""Crop around the hole at the model's resolution, and stitch the result back.

A diffusion model paints best at the resolution it was trained at, with the object filling about as
much of the picture as in training. So the photo's size does not matter: `plan_region` chooses a
square around the hole, `crop` brings it to the model's resolution, and `stitch` resizes the result
back and blends it in. The order of the steps follows ComfyUI-Inpaint-CropAndStitch, the most used
pack for this.

Two masks are kept apart. The *sampling* mask is what the network repaints: the cropped hole. The
*blend* mask is where the photo may change: 1 in the hole, fading to 0 a few pixels outside it.
Where it is 0 the photo comes back bit-identical.

Images are float32 (B, H, W, C) in [0, 1], ComfyUI's layout; masks are (B, H, W), 1 = repaint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask import Box, bounding_box, expand_hole, feather_hole

MODES = ("auto", "whole", "squash")

_TIGHT_CONTEXT = 1.2
"""Context below which pixels are invented beyond the photo's rim rather than cropped closer."""
_MAX_UPSCALE = 8
_MAX_STRETCH = 2
_NOISE = 0.1
"""Mask values up to this are taken for compression noise, not for a feathered edge."""


@dataclass(frozen=True, eq=False)
class Region:
    """What is cropped out of a photo, at what size it is edited, and where it is blended back.

    Attributes:
        photo_size: (H, W) of the photo.
        box: The crop in the photo's pixels. May overflow the photo; `crop` replicates its edges.
        size: (h, w) at which the model works, multiples of its `size_multiple`.
        blend_box: The part of the photo that may change; inside photo and crop.
        blend_mask: For the pixels of `blend_box`, in [0, 1]: the share of the result in each.
    """

    photo_size: tuple[int, int]
    box: Box
    size: tuple[int, int]
    blend_box: Box
    blend_mask: Tensor

    @property
    def photo_blend_mask(self) -> Tensor:
        """The blend mask at the photo's size, (H, W)."""
        whole = self.blend_mask.new_zeros(self.photo_size)
        whole[_slices(self.blend_box)] = self.blend_mask
        return whole


def plan_region(
    hole_mask: Tensor,
    *,
    mode: str = "auto",
    resolution: int = 512,
    size_multiple: int = 64,
    context: float = 1.8,
    blend: float | None = None,
) -> Region:
    """Chooses what to crop.

    "auto" takes a square whose side is `context` times the longer side of the hole. It is shifted
    to stay inside the photo; where the photo is too narrow for it, it is made smaller, down to
    1.2 times the hole, and only then overflows. It is never upscaled more than 8 times, so a tiny
    hole gets more context.

    "whole" takes the whole photo, at about resolution x resolution pixels. The aspect is kept up
    to the rounding of both sides to the multiple; aspects beyond 4:1 are squashed.

    "squash" takes the whole photo at resolution x resolution pixels, whatever its aspect, as the
    official code was fed.

    Args:
        hole_mask: (H, W), 1 = repaint; the hole is what lies above 0.5.
        mode: One of `MODES`.
        resolution: Side in pixels that the model was trained at, a multiple of `size_multiple`.
        size_multiple: What the model's sides must be multiples of.
        context: Side of the crop over the longer side of the hole, blend zone included. The
            default lets it take 55 % of the side, about the middle of what training shows.
        blend: Pixels of the photo over which the result fades out around the hole; 0 cuts at its
            edge. Default: 1/64 of the crop's side, at least 2. A feathered mask widens it: values
            between 0.1 and 0.5 count as its soft edge.

    Raises:
        ValueError: Empty mask, unknown mode, context below 1, negative blend, or a resolution
            that is no multiple of `size_multiple`.
    """
    if mode not in MODES:
        raise ValueError(f"unknown region mode {mode!r}; choose one of {', '.join(MODES)}")
    if context < 1:
        raise ValueError(f"context is {context:g}; the crop must hold the hole, so give 1 or more")
    if blend is not None and blend < 0:
        raise ValueError(f"blend is {blend:g}; give a number of pixels of at least 0")
    if resolution < size_multiple or resolution % size_multiple:
        nearest = max(1, round(resolution / size_multiple)) * size_multiple
        raise ValueError(
            f"resolution {resolution} is no multiple of {size_multiple}, as this model needs; "
            f"use {nearest}"
        )
    height, width = photo_size = (hole_mask.shape[0], hole_mask.shape[1])
    hole_side = _side(bounding_box(hole_mask))
    if blend is None:
        span = min(context * hole_side, max(photo_size)) if mode == "auto" else max(photo_size)
        blend = max(2.0, span / 64)

    pad = math.ceil(blend)
    x0, y0, x1, y1 = bounding_box(hole_mask, _NOISE)
    zone = _clip((x0 - pad, y0 - pad, x1 + pad, y1 + pad), photo_size)
    box, size = (0, 0, width, height), (resolution, resolution)
    if mode == "auto":
        box = _square_around(zone, photo_size, context, resolution)
    elif mode == "whole":
        size = _whole_size(photo_size, resolution, size_multiple)

    blend_mask = _blend_mask(hole_mask[_slices(zone)], blend)
    return Region(photo_size, box, size, zone, blend_mask)


def crop(image: Tensor, hole_mask: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """Cuts the region out of photo and mask and brings both to the model's resolution.

    What overflows the photo repeats its edge pixels, in the mask too: the smear of an object that
    is about to be painted over must not stay visible beside the hole.

    Args:
        image: (B, H, W, C) in [0, 1].
        hole_mask: (B, H, W), 1 = repaint.
        region: From `plan_region`.

    Returns:
        image: (B, h, w, C) in [0, 1].
        hole_mask: (B, h, w). A pixel takes the largest value it touches, so that a thin hole does
            not vanish and nothing of what it covers shows at its edge.

    Raises:
        ValueError: Image or mask are not of the photo's size.
    """
    for name, tensor in (("image", image), ("mask", hole_mask)):
        if tuple(tensor.shape[1:3]) != region.photo_size:
            raise ValueError(_size_error(name, tensor, region))
    image = resize(_cut(image.movedim(-1, 1), region), region.size).clamp(0, 1)
    hole_mask = F.adaptive_max_pool2d(_cut(hole_mask[:, None], region), region.size)
    return image.movedim(1, -1), hole_mask[:, 0]


def stitch(photo: Tensor, crop_result: Tensor, region: Region) -> Tensor:
    """Resizes an edited crop back and blends it into the photo.

    Args:
        photo: (B, H, W, C) in [0, 1]; one photo serves all results.
        crop_result: (N, h, w, C) in [0, 1], at any size: it may have been upscaled since.
        region: The one it was cropped with.

    Returns:
        (max(B, N), H, W, C), equal to the photo to the last bit where the blend mask is 0.

    Raises:
        ValueError: The photo is not of the region's size, or the batches do not match.
    """
    if tuple(photo.shape[1:3]) != region.photo_size:
        raise ValueError(_size_error("photo", photo, region))
    if len(photo) != len(crop_result) and 1 not in (len(photo), len(crop_result)):
        raise ValueError(
            f"{len(photo)} photos and {len(crop_result)} edited crops do not match; "
            "give one photo, or as many as crops"
        )
    x0, y0, x1, y1 = region.box
    patch = resize(crop_result.movedim(-1, 1), (y1 - y0, x1 - x0)).clamp(0, 1).movedim(1, -1)
    rows, columns = _slices(region.blend_box, origin=region.box)
    patch = patch[:, rows, columns].to(photo)

    result = photo.repeat(max(1, len(crop_result) // len(photo)), 1, 1, 1)
    rows, columns = _slices(region.blend_box)
    window = result[:, rows, columns]  # a view
    alpha = region.blend_mask.to(photo)[..., None]
    # `where`, because a weight of 0 would still let a NaN of the crop through.
    window.copy_(torch.where(alpha > 0, torch.lerp(window, patch, alpha), window))
    return result


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's bicubic resize: antialiased where it shrinks. Overshoots; clamp the result.

    Args:
        image: (B, C, H, W).
        size: (h, w).
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size=size, mode="bicubic", antialias=True)


def _blend_mask(hole_mask: Tensor, blend: float) -> Tensor:
    """1 in the hole, a ramp of `blend` pixels around it, and the mask's own soft edge."""
    hole = (hole_mask > 0.5).to(hole_mask)
    ramp = feather_hole(expand_hole(hole, blend / 2), blend / 2)
    # A feathered edge crosses 0.5 at the hole's edge; only its outer half is outside the hole.
    soft = ((hole_mask - _NOISE) / (0.5 - _NOISE)).clamp(0, 1)
    return torch.maximum(ramp, soft)


def _square_around(zone: Box, photo_size: tuple[int, int], context: float, resolution: int) -> Box:
    needed, short, long = _side(zone), min(photo_size), max(photo_size)
    wanted = max(context * needed, resolution / _MAX_UPSCALE)
    wanted = min(wanted, max(short, _TIGHT_CONTEXT * needed), long)
    side = max(needed, round(wanted))
    x0, y0, x1, y1 = zone
    top, left = (
        _place((low + high) / 2, side, length)
        for low, high, length in ((y0, y1, photo_size[0]), (x0, x1, photo_size[1]))
    )
    return left, top, left + side, top + side


def _place(centre: float, side: int, length: int) -> int:
    """Start of a stretch of `side` pixels: around `centre`, shifted into the photo if it fits."""
    if side > length:
        return -((side - length) // 2)
    return min(max(0, round(centre - side / 2)), length - side)


def _whole_size(
    photo_size: tuple[int, int], resolution: int, size_multiple: int
) -> tuple[int, int]:
    scale = resolution / math.sqrt(photo_size[0] * photo_size[1])
    height, width = (
        round(min(max(length * scale, resolution / _MAX_STRETCH), resolution * _MAX_STRETCH))
        for length in photo_size
    )
    return _to_multiple(height, size_multiple), _to_multiple(width, size_multiple)


def _to_multiple(length: int, multiple: int) -> int:
    return max(1, round(length / multiple)) * multiple


def _cut(tensor: Tensor, region: Region) -> Tensor:
    """Region's box of a (B, C, H, W) tensor, its edges replicated where it overflows."""
    x0, y0, x1, y1 = region.box
    left, top, right, bottom = _clip(region.box, region.photo_size)
    inside = tensor[..., top:bottom, left:right]
    return F.pad(inside, (left - x0, x1 - right, top - y0, y1 - bottom), mode="replicate")


def _clip(box: Box, photo_size: tuple[int, int]) -> Box:
    x0, y0, x1, y1 = box
    return max(0, x0), max(0, y0), min(photo_size[1], x1), min(photo_size[0], y1)


def _slices(box: Box, origin: Box = (0, 0, 0, 0)) -> tuple[slice, slice]:
    """Rows and columns of a box, in an array that starts at the corner of `origin`."""
    x0, y0, x1, y1 = box
    return slice(y0 - origin[1], y1 - origin[1]), slice(x0 - origin[0], x1 - origin[0])


def _side(box: Box) -> int:
    return max(box[2] - box[0], box[3] - box[1])


def _size_error(name: str, tensor: Tensor, region: Region) -> str:
    height, width = region.photo_size
    return (
        f"the {name} has {tensor.shape[2]}x{tensor.shape[1]} pixels, but the region was planned "
        f"for {width}x{height}; give the same photo and a mask of its size"
    )
