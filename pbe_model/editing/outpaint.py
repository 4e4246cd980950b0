"""Outpainting: a photo on a larger canvas, whose new rim is the hole."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..untrusted import shown

Padding = tuple[int, int, int, int]
"""Pixels to add at the left, top, right and bottom."""

MOST_PIXELS = 2**28


def padding_to_aspect(
    size: tuple[int, int], aspect: float, place: tuple[float, float] = (0.5, 0.5)
) -> Padding:
    """What to add to a photo so that it gets an aspect; nothing is cut off.

    Args:
        size: (H, W) of the photo.
        aspect: Width over height.
        place: Where the photo lies on the canvas, across and down: 0 is left or top, 1 is right or
            bottom, 0.5 the middle.

    Raises:
        ValueError: The aspect is not a positive number, or a place is outside 0 to 1.
    """
    if not 0 < aspect < float("inf"):
        raise ValueError(f"the aspect is {shown(aspect)}; give width over height, such as 1.5")
    if not all(0 <= share <= 1 for share in place):
        raise ValueError(f"the place is {shown(place)}; give two numbers from 0 to 1")
    height, width = size
    across = max(0, round(height * aspect) - width)
    down = max(0, round(width / aspect) - height)
    left, top = round(across * place[0]), round(down * place[1])
    return left, top, across - left, down - top


def extend_canvas(
    photo: Tensor, padding: Padding, *, overlap: int = 0, hole_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Puts photos on a larger canvas, whose new part is the hole.

    Args:
        photo: (B, H, W, C) in [0, 1].
        padding: Pixels to add.
        overlap: Pixels of the photo beside each new part that are painted again, so that what is
            new may grow into it.
        hole_mask: (B, H, W), 1 = repaint: holes inside the photo, too.

    Returns:
        photo: (B, H', W', C); the new part repeats the photo's edge, for models that look at it.
        hole_mask: (B, H', W'), 1 in the new part.

    Raises:
        ValueError: Negative padding or overlap, nothing to add, or a canvas that is too large.
    """
    left, top, right, bottom = padding
    if min(padding) < 0 or overlap < 0:
        raise ValueError(
            f"padding is {shown(padding)} and overlap {shown(overlap)}; give 0 pixels or more"
        )
    batch, height, width = photo.shape[:3]
    if (height + top + bottom) * (width + left + right) > MOST_PIXELS:
        raise ValueError(
            f"a canvas of {shown(width + left + right)} x {shown(height + top + bottom)} pixels is "
            "too large; add less"
        )
    if not any(padding):
        raise ValueError(
            "nothing is added to the photo; give a number of pixels for a side, or an aspect that "
            "the photo does not have yet"
        )
    edges = (left, right, top, bottom)
    canvas = F.pad(photo.movedim(-1, 1), edges, mode="replicate").movedim(1, -1)
    # What stays is the photo, less the overlap on the sides that grow.
    inner = [
        min(overlap, extent) if added else 0
        for added, extent in zip(edges, (width, width, height, height), strict=True)
    ]
    keep = photo.new_zeros(batch, height, width)
    keep[:, inner[2] : height - inner[3], inner[0] : width - inner[1]] = 1
    if hole_mask is not None:
        keep = torch.minimum(keep, 1 - hole_mask.to(keep))
    return canvas, 1 - F.pad(keep, edges)
