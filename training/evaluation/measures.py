"""What the evaluation measures on pictures: no learned network, nothing to download."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

from pbe_model.editing.mask_shapes import Box

_SIDE, _CELLS = 32, 4


def descriptor(picture: Tensor, margin: float = 0.0, *, grey: bool = False) -> np.ndarray:
    """Colours and edges of a picture, for comparison by Euclidean distance.

    Three blocks of equal weight, each 1 long or less: the mean Lab colour of 4 x 4 cells, the
    histogram of Lab colours, and histograms of edge directions in the cells. Histograms enter as
    their square roots (Hellinger distance). The middle counts more than the rim, where the
    backgrounds differ.

    Args:
        picture: `(H, W, 3)` in [0, 1]; squashed to a square.
        margin: Share of each side to cut off first.
        grey: Describe the picture without its colours: light and dark, and the edges.

    Returns:
        float64 `(432,)`.
    """
    height, width = picture.shape[:2]
    dy, dx = round(margin * height), round(margin * width)
    pixels = np.ascontiguousarray(picture[dy : height - dy, dx : width - dx].cpu().numpy())
    pixels = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2Lab)  # L from 0 to 100, a and b about -100 to 100
    if grey:
        # Exactly 0, which is where two bins of hues meet: a grey RGB picture misses it by rounding.
        lab[..., 1:] = 0
    ramp = np.linspace(-1, 1, _SIDE)
    weight = np.exp(-2 * (ramp[:, None] ** 2 + ramp**2))  # 0.02 in the corners
    weight /= weight.sum()

    share = _per_cell(weight[..., None])
    colours = _per_cell(lab * weight[..., None]) / share / 100 * np.sqrt(share)  # (16, 3)

    level = np.clip(lab[..., 0] / 25, 0, 3).astype(int)
    hues = np.clip((lab[..., 1:] + 80) / 20, 0, 7).astype(int)
    bins = level * 64 + hues[..., 0] * 8 + hues[..., 1]
    histogram = np.bincount(bins.ravel(), weight.ravel(), minlength=256)

    along_x, along_y = (cv2.Sobel(lab[..., 0], cv2.CV_32F, *d) for d in ((1, 0), (0, 1)))
    direction = np.arctan2(along_y, along_x) % np.pi / np.pi * 8  # in [0, 8], 8 is 0 again
    nearness = 1 - np.abs((direction[..., None] - np.arange(8) + 4) % 8 - 4)  # (32, 32, 8)
    strength = np.hypot(along_x, along_y) * weight
    edges = _per_cell(np.clip(nearness, 0, 1) * strength[..., None])  # (16, 8)
    edges /= edges.sum() + 1e-9  # a flat picture has none
    return np.concatenate([colours.ravel(), np.sqrt(histogram), np.sqrt(edges).ravel()])


def _per_cell(values: np.ndarray) -> np.ndarray:
    """Sum `(32, 32, C)` over each of 4 x 4 cells: `(16, C)`."""
    side = _SIDE // _CELLS
    split = values.reshape(_CELLS, side, _CELLS, side, -1)
    return split.sum((1, 3)).reshape(_CELLS**2, -1)


def outline_step(picture: Tensor, box: Box) -> float:
    """Mean absolute difference of neighbouring pixels on the two sides of a box's outline.

    Args:
        picture: `(H, W, 3)` in [0, 1].
        box: Sides on the picture's border are left out.

    Returns:
        0 to 1; 0 where all sides are on the border.
    """
    x0, y0, x1, y1 = box
    height, width = picture.shape[:2]
    rows = [y for y in (y0, y1) if 0 < y < height]
    columns = [x for x in (x0, x1) if 0 < x < width]
    steps = [picture[y, x0:x1] - picture[y - 1, x0:x1] for y in rows]
    steps += [picture[y0:y1, x] - picture[y0:y1, x - 1] for x in columns]
    return torch.cat(steps).abs().mean().item() if steps else 0.0


def mean_laplacian(picture: Tensor, box: Box) -> float:
    """Mean absolute Laplacian of the lightness inside a box, at the picture's own size.

    Args:
        picture: `(H, W, 3)` in [0, 1].
        box: Pixels on its rim only count as neighbours, so the step across its outline does not.

    Returns:
        From 0 to 400, the difference of a white pixel from four black ones; 0 if the box is less
        than 3 pixels wide or high.
    """
    x0, y0, x1, y1 = box
    if min(x1 - x0, y1 - y0) < 3:
        return 0.0
    pixels = np.ascontiguousarray(picture[y0:y1, x0:x1].float().cpu().numpy())
    lightness = cv2.cvtColor(pixels, cv2.COLOR_RGB2Lab)[..., 0]  # from 0 to 100
    laplacian = cv2.Laplacian(lightness, cv2.CV_32F)  # 4 neighbours
    return float(np.abs(laplacian[1:-1, 1:-1]).mean(dtype=np.float64))


def psnr(picture: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of two pictures in [0, 1], infinite where they are equal."""
    error = (picture - truth).square().mean().item()
    return -10 * math.log10(error) if error else math.inf


def cosine(one: np.ndarray, two: np.ndarray) -> float:
    """Cosine of the angle between two descriptors: 1 where they say the same."""
    return float(one @ two / np.sqrt((one @ one) * (two @ two)))


def wilson(hits: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's interval of a share (1927); at the default `z` it covers 95 %."""
    share = hits / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * (share * (1 - share) / total + (z / (2 * total)) ** 2) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
