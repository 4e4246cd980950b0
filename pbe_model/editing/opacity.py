"""Pictures with opacity: as they look on white, which models see, and results that keep it."""

from __future__ import annotations

import torch
from torch import Tensor


def over_white(colour: Tensor, alpha: Tensor | None) -> Tensor:
    """A picture as it looks on white paper.

    Args:
        colour: (..., 3) in [0, 1], not multiplied by the opacity.
        alpha: (...), 1 = opaque; None changes nothing.
    """
    if alpha is None:
        return colour
    white = torch.ones((), dtype=colour.dtype, device=colour.device).expand_as(colour)
    return torch.lerp(white, colour, alpha[..., None])


def with_opacity(
    images: Tensor, colour: Tensor, alpha: Tensor, blend_mask: Tensor, hole_mask: Tensor
) -> Tensor:
    """Edits of a photo on white, with the opacity that the photo has.

    Where the hole is itself transparent in the photo, as in one that was erased there, what is
    painted becomes visible.

    Args:
        images: (N, H, W, 3), edits of `over_white(colour, alpha)`.
        colour: (H, W, 3), the photo as it was, not multiplied by the opacity.
        alpha: (H, W), its opacity.
        blend_mask: (H, W), share of what was painted in each pixel.
        hole_mask: (H, W), 1 = repaint.

    Returns:
        (N, H, W, 4); over white they look like `images`, and where nothing was blended in they are
        the photo to the last bit, also below what is transparent.
    """
    hole = hole_mask > 0.5
    erased = hole.any() and (alpha[hole] < 0.5).float().mean() > 0.5
    opacity = torch.lerp(alpha, torch.ones_like(alpha), blend_mask) if erased else alpha
    covering = opacity[..., None]
    straight = (images - (1 - covering)) / covering.clamp_min(1 / 255)
    painted = torch.where(covering > 0, straight.clamp(0, 1), images)
    colours = torch.where(blend_mask[..., None] > 0, painted, colour)
    return torch.cat([colours, covering.expand(len(images), -1, -1, -1)], -1)
