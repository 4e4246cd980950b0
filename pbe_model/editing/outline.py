"""A small picture of a result with a line around its hole, for people to look at."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .region import resize


def with_outline(image: Tensor, hole_mask: Tensor, longest: int) -> Tensor:
    """Scales a picture down and draws a line around its hole.

    The line is white with a black one around it, so that it shows on any ground. It lies outside
    the hole, whose pixels all stay in sight, and ends where the picture does.

    Args:
        image: (H, W, 3) in [0, 1].
        hole_mask: (H, W), 1 = repaint; the hole is what lies above 0.5. Without one there is no
            line.
        longest: Side of the result in pixels, the longer of the two, at most; smaller pictures stay
            as they are.

    Returns:
        (h, w, 3) in [0, 1].
    """
    height, width = image.shape[:2]
    scale = min(1.0, longest / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = resize(image.movedim(-1, 0)[None], size)[0].movedim(0, -1).clamp(0, 1)
    # The largest value, so that a thin hole does not vanish.
    hole = F.adaptive_max_pool2d((hole_mask > 0.5).to(image)[None], size)  # (1, h, w)
    line, around = (F.max_pool2d(hole, 2 * n + 1, stride=1, padding=n) for n in (1, 2))
    small = small * (1 - around + hole)[0, ..., None]
    return small + (line - hole)[0, ..., None]
