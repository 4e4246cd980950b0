"""What a node shows of its results in the page."""

from __future__ import annotations

import torch
from comfy_api.latest import ui

from ..pbe_model.editing.batch import EditResult
from ..pbe_model.editing.outline import with_outline
from .convert import row

_LONGEST = 768
"""Pixels of a shown picture's longer side, at most: quick to write, and enough for a node."""
_SHOWN = 4
"""Of a long batch, the first ones."""


def outlined(results: list[EditResult], masks: torch.Tensor) -> ui.PreviewImage:
    """The first results with a line around their holes, as small files in the temporary folder.

    Args:
        results: One for each photo.
        masks: (B, H, W), from `mask_like`: one for each result or for all, or for a single result
            those of its holes.
    """
    single = masks.amax(dim=0, keepdim=True) if len(results) == 1 else masks
    pictures = [
        with_outline(result.images[0], row(single, i), _LONGEST)
        for i, result in enumerate(results[:_SHOWN])
    ]
    return ui.PreviewImage(torch.stack(pictures))
