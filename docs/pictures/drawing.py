"""Parts of pictures: what fits into a cell, a hole that can be seen, rows of captioned cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

Size = tuple[int, int]
"""Width and height."""

_VEIL = 150
"""How much white lies over a hole, of 255."""
_GAP = 8
_CAPTION = 24


@dataclass(frozen=True)
class View:
    """The part of a picture that a cell shows, as shares of the picture's sides."""

    left: float
    top: float
    right: float
    bottom: float

    def of(self, picture: Image.Image, size: Size) -> Image.Image:
        """That part, at a cell's size."""
        width, height = picture.size
        box = (self.left * width, self.top * height, self.right * width, self.bottom * height)
        return picture.resize(size, Image.Resampling.LANCZOS, box=box)


def view_around(hole: Image.Image, size: Size, share: float, zoom: float) -> View:
    """What a cell shows of a photo, so that it is filled and the hole is in its middle.

    Args:
        hole: white where the photo is repainted, black elsewhere; of the photo's size.
        size: of the cell.
        share: of the cell's shorter side that the hole's longer one should take.
        zoom: the most by which the view may be narrower than the largest that fits.
    """
    x0, y0, x1, y1 = bounding_box(hole)
    fit = min(hole.width / size[0], hole.height / size[1])  # photo's pixels for each of the cell's
    wanted = max(x1 - x0, y1 - y0) / (share * min(size))
    scale = min(fit, max(wanted, fit / zoom))
    width, height = scale * size[0], scale * size[1]
    left = min(max((x0 + x1 - width) / 2, 0), hole.width - width)
    top = min(max((y0 + y1 - height) / 2, 0), hole.height - height)
    right, bottom = min(left + width, hole.width), min(top + height, hole.height)
    return View(left / hole.width, top / hole.height, right / hole.width, bottom / hole.height)


def bounding_box(hole: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the hole; of the whole picture where there is none."""
    return hole.point(_is_hole).getbbox() or (0, 0, *hole.size)


def show_hole(photo: Image.Image, hole: Image.Image) -> Image.Image:
    """A photo with a veil over its hole and a line around it; both of the size to be seen."""
    hole = hole.point(_is_hole)
    veil = hole.point([0] * 255 + [_VEIL])
    shown = Image.composite(Image.new("RGB", photo.size, "white"), photo, veil)
    inner = ImageChops.subtract(hole.filter(ImageFilter.MaxFilter(3)), hole)
    outer = ImageChops.subtract(hole.filter(ImageFilter.MaxFilter(7)), hole)
    shown.paste("black", mask=outer)
    shown.paste("white", mask=inner)
    return shown


def contained(picture: Image.Image, size: Size) -> Image.Image:
    """A picture as large as fits into a cell, whole."""
    return ImageOps.contain(picture, size, Image.Resampling.LANCZOS)


def to_picture(pixels: np.ndarray) -> Image.Image:
    """8-bit pixels as an RGB picture."""
    return Image.fromarray(pixels).convert("RGB")


def to_hole(pixels: np.ndarray) -> Image.Image:
    """8-bit pixels of a mask's picture, as one channel."""
    return Image.fromarray(pixels).convert("L")


def captioned(rows: list[list[tuple[str, Image.Image]]], cell: Size) -> Image.Image:
    """Rows of pictures on white, each above its caption.

    Args:
        rows: captions and pictures, which are made to fit.
        cell: what each picture has at most.
    """
    rows = [[(caption, contained(picture, cell)) for caption, picture in row] for row in rows]
    heights = [max(picture.height for _, picture in row) for row in rows]
    columns = max(map(len, rows))
    width = columns * (cell[0] + _GAP) + _GAP
    canvas = Image.new("RGB", (width, sum(heights) + len(rows) * (_CAPTION + _GAP) + _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for number, (caption, picture) in enumerate(row):
            centre = _GAP + number * (cell[0] + _GAP) + cell[0] // 2
            place = centre - picture.width // 2, top + (height - picture.height) // 2
            canvas.paste(picture, place)
            draw.text((centre, top + height + 4), caption, "black", font, anchor="ma")
        top += height + _CAPTION + _GAP
    return canvas


def _is_hole(level: int) -> int:
    return 255 if level > 127 else 0
