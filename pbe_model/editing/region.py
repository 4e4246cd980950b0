"""Crop around the hole at the model's resolution, and stitch the result back.

A diffusion model paints best at the resolution it was trained at, with the object filling about as
much of the picture as in training. So the photo's size does not matter: `crop_plan` chooses a
square around the hole, `crop` brings it to the model's resolution, and `stitch` resizes the result
back and blends it in. The order of the steps follows ComfyUI-Inpaint-CropAndStitch, the most used
pack for this.

Two masks are kept apart. The *sampling* mask is what the network repaints: the cropped hole. The
*blend* mask is where the photo may change: 1 in the hole, fading to 0 a few pixels outside it, or
whatever the caller draws. Where it is 0 the photo comes back bit-identical.

Several holes far from each other have a crop each; `stitch_all` puts them back one by one.

Images are float32 (B, H, W, C) in [0, 1], ComfyUI's layout; masks are (B, H, W), 1 = repaint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .mask import in_full, resize_mask
from .mask_shapes import Box

INVISIBLE = 1 / 512
"""Share of the result below half an 8-bit level, as in the tail of a blur or sigmoid."""

_REACH = 1 / 8
"""Standard deviation of the blur of `match_colour`, over the crop's longer side."""


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
        whole[slices(self.blend_box)] = self.blend_mask
        return whole


def crop(image: Tensor, hole_mask: Tensor, region: Region) -> tuple[Tensor, Tensor]:
    """Cuts the region out of photo and mask and brings both to the model's resolution.

    What overflows the photo repeats its edge pixels, in the mask too: the smear of an object that
    is about to be painted over must not stay visible beside the hole.

    Args:
        image: (B, H, W, C) in [0, 1].
        hole_mask: (B, H, W), 1 = repaint.
        region: From `crop_plan`.

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


def crop_mask(mask: Tensor, region: Region) -> Tensor:
    """Cuts a soft mask of any other meaning than the hole out, (B, H, W) to (B, h, w)."""
    return resize(_cut(mask[:, None], region), region.size).clamp(0, 1)[:, 0]


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
    rows, columns = slices(region.blend_box, origin=region.box)
    patch = patch[:, rows, columns].to(photo)

    result = photo.repeat(max(1, len(crop_result) // len(photo)), 1, 1, 1)
    rows, columns = slices(region.blend_box)
    window = result[:, rows, columns]  # a view
    alpha = region.blend_mask.to(photo)[..., None]
    # `where`, because a weight of 0 would still let a NaN of the crop through.
    window.copy_(torch.where(alpha > 0, torch.lerp(window, patch, alpha), window))
    return result


def stitch_all(photo: Tensor, crop_results: Tensor, regions: Sequence[Region]) -> Tensor:
    """Stitches the crops of several regions into the same photo, one after another.

    Args:
        photo: (B, H, W, C) in [0, 1]; one photo serves all results.
        crop_results: (N * K, h, w, C) in [0, 1], the crops of one result side by side.
        regions: The K regions they were cropped with.

    Returns:
        (max(B, N), H, W, C), equal to the photo to the last bit where every blend mask is 0.

    Raises:
        ValueError: As `stitch`, or the number of crops is not a multiple of the regions'.
    """
    if len(crop_results) % len(regions):
        raise ValueError(
            f"{len(crop_results)} edited crops do not match {len(regions)} regions; "
            "give a crop for each, in their order"
        )
    for number, region in enumerate(regions):
        photo = stitch(photo, crop_results[number :: len(regions)], region)
    return photo


def with_share(region: Region, share: Tensor) -> Region:
    """The region with another blend mask: one that was drawn on its crop.

    Args:
        region: Where the crop is.
        share: (h, w) at any size, stretched over the crop: the share of the result in each pixel.
            What lies beyond the photo is cut off.
    """
    x0, y0, x1, y1 = region.box
    inside = clip_box(region.box, region.photo_size)
    share = resize_mask(share, (y1 - y0, x1 - x0))[slices(inside, origin=region.box)].clamp(0, 1)
    share = torch.where(share > INVISIBLE, share, 0)
    return replace(region, blend_box=inside, blend_mask=share)


def photo_blend_mask(regions: Sequence[Region]) -> Tensor:
    """Share of all results together in each pixel of the photo, (H, W); 0 is untouched."""
    share = regions[0].photo_blend_mask
    for region in regions[1:]:
        share = torch.lerp(share, torch.ones_like(share), region.photo_blend_mask)
    return share


def match_colour(painted: Tensor, original: Tensor, hole_mask: Tensor) -> Tensor:
    """Removes the colour cast of a painted crop, so that its kept pixels match the photo's.

    The first stage does not give colours back exactly, and the error of a whole crop shows as a
    step at its rim. What it did to the kept pixels is known: their difference from the photo,
    blurred over them alone (normalised convolution, Knutsson and Westin 1993), is the correction,
    smooth inside the hole. Contrast stays, unlike in the transfer of Reinhard et al. (2001):
    around a hole in a plain sky there is none to measure.

    Args:
        painted: (N, h', w', C) in [0, 1], from the model, at any size.
        original: (N, h, w, C) in [0, 1], the crop before.
        hole_mask: (N, h, w), 1 = repaint; the hole is what lies above 0.5.

    Returns:
        (N, h', w', C) in [0, 1]; where nothing is kept, as it came.
    """
    keep = (hole_mask <= 0.5).to(painted)[:, None]  # (N, 1, h, w)
    seen = resize(painted.movedim(-1, 1), (keep.shape[2], keep.shape[3]))
    error = (original.to(painted).movedim(-1, 1) - seen) * keep
    along_y, along_x = (_gaussian(keep, length) for length in keep.shape[-2:])
    error, weight = (along_y @ channels @ along_x for channels in (error, keep))
    shift = torch.where(weight > 0, error / weight, 0)
    shift = resize(shift, (painted.shape[1], painted.shape[2]))
    return (painted + shift.movedim(1, -1)).clamp(0, 1)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pillow's bicubic resize: antialiased where it shrinks. Overshoots; clamp the result.

    Args:
        image: (B, C, H, W), of floats.
        size: (h, w).
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    # torch does not resize half precision on every device.
    resized = F.interpolate(in_full(image), size=size, mode="bicubic", antialias=True)
    return resized.to(image.dtype)


def _gaussian(like: Tensor, length: int) -> Tensor:
    """Matrix that blurs along a side of the crop, (length, length); its rows need no scale."""
    x = torch.arange(length, device=like.device, dtype=like.dtype)
    return torch.exp(-(((x[:, None] - x) / (_REACH * max(like.shape[-2:]))) ** 2) / 2)


def _cut(tensor: Tensor, region: Region) -> Tensor:
    """Region's box of a (B, C, H, W) tensor, its edges replicated where it overflows."""
    x0, y0, x1, y1 = region.box
    left, top, right, bottom = clip_box(region.box, region.photo_size)
    inside = tensor[..., top:bottom, left:right]
    return F.pad(inside, (left - x0, x1 - right, top - y0, y1 - bottom), mode="replicate")


def clip_box(box: Box, photo_size: tuple[int, int]) -> Box:
    """The part of a box that lies in the photo."""
    x0, y0, x1, y1 = box
    return max(0, x0), max(0, y0), min(photo_size[1], x1), min(photo_size[0], y1)


def slices(box: Box, origin: Box = (0, 0, 0, 0)) -> tuple[slice, slice]:
    """Rows and columns of a box, in an array that starts at the corner of `origin`."""
    x0, y0, x1, y1 = box
    return slice(y0 - origin[1], y1 - origin[1]), slice(x0 - origin[0], x1 - origin[0])


def _size_error(name: str, tensor: Tensor, region: Region) -> str:
    height, width = region.photo_size
    return (
        f"the {name} has {tensor.shape[2]}x{tensor.shape[1]} pixels, but the region was planned "
        f"for {width}x{height}; give the same photo and a mask of its size"
    )
