"""Pictures of any size on a device, drawn in batches through affine maps.

Composing pictures one by one in NumPy feeds some hundred samples a second; a graphics card that
trains a small model takes thousands. Here all pictures lie in one flat tensor, each as a pyramid of
halved sizes (Williams, Pyramidal Parametrics, 1983), and a batch of layers is a batch of gathers.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROW = 19
"""Numbers of a layer: the picture's, a 2 x 3 map, a 3 x 4 change of colours. See `layer`."""

EMPTY = -1
"""Number of the picture that is transparent everywhere."""

_SAMPLES = 2  # a pixel is the mean of so many by so many bilinear samples
_LEVELS = 6


def layer(picture: int, matrix: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """A picture's place and colours in a composite, as one row.

    Args:
        picture: Number of the picture, or `EMPTY`.
        matrix: `(2, 3)`, from the square's coordinates `(u, v, 1)`, in [0, 1] from the upper left
            corner, to the picture's `(x, y)` in pixels.
        colour: `(3, 4)`, from the picture's `(r, g, b, 1)` in [0, 1] to the colour that is drawn.

    Returns:
        `(ROW,)` float32.
    """
    return np.concatenate([[picture], matrix.ravel(), colour.ravel()]).astype(np.float32)


class Textures:
    """Pictures to draw from.

    Args:
        pictures: `(H, W, 4)` with straight alpha or `(H, W, 3)`, uint8. Beyond its edge the former
            is transparent, the latter repeats it.
        device: Where they are kept, at 5 1/3 bytes a pixel.
    """

    def __init__(self, pictures: Sequence[np.ndarray], device: torch.device) -> None:
        transparent = np.zeros((1, 1, 4), np.uint8)
        pyramids = [_pyramid(picture) for picture in [*pictures, transparent]]  # EMPTY is the last
        levels = [level for pyramid in pyramids for level in pyramid]
        pixels = np.concatenate([level.reshape(-1, 4) for level in levels])  # premultiplied
        # Four bytes in one number, which is gathered at once.
        self._pixels = torch.from_numpy(pixels.view(np.int32)[:, 0]).to(device)  # (P,)
        sizes = torch.tensor([level.shape[:2] for level in levels])  # with borders
        starts = sizes.prod(dim=1).cumsum(0) - sizes.prod(dim=1)
        shape = (len(pyramids), _LEVELS)
        self._starts = starts.view(shape).to(device)
        self._heights, self._widths = (sizes[:, i].view(shape).to(device) for i in (0, 1))

    def draw(self, layers: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Lay pictures over one another.

        Args:
            layers: `(B, L, ROW)`, the lowest first; that one is to cover everything.
            size: Side `S` of the results in pixels.

        Returns:
            The composites `(B, 3, S, S)` in [0, 1], and the uppermost layer's alpha `(B, 1, S, S)`.
        """
        device = self._pixels.device
        canvas = alpha = torch.zeros((), device=device)
        with torch.autocast(device.type, enabled=False):  # bfloat16 has too few bits for colours
            for rows in layers.to(device, non_blocking=True).unbind(1):
                rgb, alpha = self._draw_one(rows, size).split([3, 1], dim=1)
                canvas = canvas * (1 - alpha) + rgb
        return canvas, alpha

    def _draw_one(self, rows: Tensor, size: int) -> Tensor:
        """`(B, 4, S, S)` in [0, 1], premultiplied, of `(B, ROW)`."""
        picture = rows[:, 0].long()
        matrix, colour = rows[:, 1:7].view(-1, 2, 3), rows[:, 7:].view(-1, 3, 4)
        side = size * _SAMPLES
        footprint = matrix[..., :2].norm(dim=1).amax(dim=1) / side  # (B,) pixels between samples
        level = footprint.log2().floor().long().clamp(0, _LEVELS - 1)
        start = self._starts[picture, level].view(-1, 1, 1)
        height = self._heights[picture, level].view(-1, 1, 1)
        width = self._widths[picture, level].view(-1, 1, 1)
        # The border of a pixel around each level is not in the picture's coordinates.
        across = (width - 2) / (self._widths[picture, 0].view(-1, 1, 1) - 2)
        down = (height - 2) / (self._heights[picture, 0].view(-1, 1, 1) - 2)

        centre = (torch.arange(side, device=rows.device) + 0.5) / side
        a = matrix[..., None, None]  # (B, 2, 3, 1, 1)
        u, v = centre.view(1, 1, -1), centre.view(1, -1, 1)
        x = (a[:, 0, 0] * u + a[:, 0, 1] * v + a[:, 0, 2]) * across + 0.5  # (B, side, side)
        y = (a[:, 1, 0] * u + a[:, 1, 1] * v + a[:, 1, 2]) * down + 0.5
        x = x.clamp(min=torch.zeros_like(width), max=width - 1)
        y = y.clamp(min=torch.zeros_like(height), max=height - 1)
        left, top = x.floor(), y.floor()
        right_share, lower_share = (x - left)[..., None], (y - top)[..., None]
        left, top = left.long(), top.long()
        right, bottom = torch.minimum(left + 1, width - 1), torch.minimum(top + 1, height - 1)

        def row(at: Tensor) -> Tensor:
            first = start + at * width
            a, b = (
                self._pixels[first + x].unsqueeze(-1).view(torch.uint8).float()
                for x in (left, right)
            )
            return torch.lerp(a, b, right_share)

        rgba = torch.lerp(row(top), row(bottom), lower_share) / 255  # (B, side, side, 4)
        pixels = F.avg_pool2d(rgba.permute(0, 3, 1, 2), _SAMPLES)
        alpha = pixels[:, 3:]
        # Colours are premultiplied, so the constant part of the change counts by alpha.
        changed = torch.einsum("bij,bjhw->bihw", colour, pixels)
        return torch.cat([torch.minimum(changed.clamp(min=0), alpha), alpha], dim=1)


def _pyramid(picture: np.ndarray) -> list[np.ndarray]:
    """Premultiplied `(h, w, 4)` uint8 of `_LEVELS` sizes, each with a border of a pixel."""
    cutout = picture.shape[2] == 4
    pixels = picture.astype(np.float32)
    if cutout:
        pixels[..., :3] *= pixels[..., 3:] / 255
    else:
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.float32)])
    levels = []
    for number in range(_LEVELS):
        if number:
            height, width = (max(1, side // 2) for side in pixels.shape[:2])
            pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
        edge = cv2.BORDER_CONSTANT if cutout else cv2.BORDER_REPLICATE
        bordered = cv2.copyMakeBorder(pixels, 1, 1, 1, 1, edge, value=(0, 0, 0, 0))
        levels.append(np.rint(bordered).astype(np.uint8))
    return levels
