"""Sample pictures of a run as one titled grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_GAP = 2
_TITLE = 16  # pixels of height
_NARROWEST = 96  # columns, so that their titles can be read


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Pictures in rows.

    Attributes:
        images: `(N, 3, H, W)` in [-1, 1], row by row.
        titles: What the columns show; as many as there are columns.
    """

    images: Tensor
    titles: tuple[str, ...]


def picture_grid(pictures: Pictures) -> Tensor:
    """Lay out pictures below the titles of their columns.

    Small ones are enlarged by a whole factor, pixel by pixel.

    Returns:
        uint8 `(H', W', 3)`, on white.
    """
    images = ((pictures.images.float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    factor = max(1, -(-_NARROWEST // images.shape[-1]))
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    count, _, height, width = images.shape
    columns = min(count, len(pictures.titles))
    rows = -(-count // columns)
    canvas = Image.new(
        "RGB", (columns * (width + _GAP) - _GAP, _TITLE + rows * (height + _GAP) - _GAP), "white"
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=_TITLE - 4)
    for column, title in enumerate(pictures.titles[:columns]):
        draw.text((column * (width + _GAP), 0), title, "black", font)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(number, columns)
        place = (column * (width + _GAP), _TITLE + row * (height + _GAP))
        canvas.paste(Image.fromarray(image), place)
    return torch.from_numpy(np.array(canvas))
