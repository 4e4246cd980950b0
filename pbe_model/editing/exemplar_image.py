"""The exemplar as a picture: brought to the tower's square, and several of them weighted."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .checks import check_mask

Fit = Literal["squash", "crop", "pad"]

_NEUTRAL = 127  # 8-bit grey for padding and a masked-out background


def preprocess(
    exemplar: Tensor, size: int, *, fit: Fit = "squash", exemplar_mask: Tensor | None = None
) -> Tensor:
    """Bring an exemplar to the tower's input size, as 8-bit Pillow bicubic does.

    Args:
        exemplar: `(H, W, 3)` in [0, 1].
        size: Side in pixels of the tower's input.
        fit: `"squash"` ignores the aspect (official), `"crop"` cuts the centre square, `"pad"`
            adds grey to a square.
        exemplar_mask: `(H, W)` in [0, 1], 1 = belongs to the object: the exemplar is cut to the
            mask's bounding box and the rest is greyed.

    Returns:
        `(3, size, size)` in [0, 1]; `normalise` follows.

    Raises:
        ValueError: An exemplar, or what its mask marks, under 8 pixels; an unknown `fit`; an empty
            or ill-sized mask.
    """
    if fit not in get_args(Fit):
        raise ValueError(f"unknown fit {fit!r}; choose from {list(get_args(Fit))}")
    array = (exemplar.float().clamp(0, 1).cpu().numpy() * 255).round().astype(np.uint8)
    if exemplar_mask is not None:
        array = _cut_out(array, exemplar_mask)
    height, width = array.shape[:2]
    if min(height, width) < 8:
        place = "" if exemplar_mask is None else "inside its mask "
        raise ValueError(
            f"the exemplar {place}is {width} x {height} pixels; give one of at least 8 x 8 pixels"
        )
    if fit == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        array = array[top : top + side, left : left + side]
    elif fit == "pad":
        side = max(height, width)
        square = np.full((side, side, 3), _NEUTRAL, np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = array
        array = square
    resized = Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255


def _cut_out(array: np.ndarray, exemplar_mask: Tensor) -> np.ndarray:
    check_mask("exemplar_mask", exemplar_mask.float())
    mask = exemplar_mask.float().clamp(0, 1).cpu().numpy()
    if mask.shape != array.shape[:2]:
        raise ValueError(
            f"the exemplar mask is {mask.shape[1]} x {mask.shape[0]} pixels but the exemplar is "
            f"{array.shape[1]} x {array.shape[0]}; make them the same size"
        )
    rows, columns = np.nonzero((mask > 0.5).any(1))[0], np.nonzero((mask > 0.5).any(0))[0]
    if not len(rows):
        raise ValueError("the exemplar mask is empty; mark the object with white (values over 0.5)")
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    alpha = mask[box][..., None]
    return (array[box] * alpha + _NEUTRAL * (1 - alpha)).round().astype(np.uint8)


def weighted_mean(contexts: Tensor, weights: Sequence[float] | None = None) -> Tensor:
    """One context of several exemplars.

    With one token, cross-attention is an affine map of it, so this is the mean of what the
    exemplars would each have added to the picture's features.

    Args:
        contexts: `(B, M, D)`, one exemplar a row.
        weights: B numbers of at least 0, which need not add up to 1; `None` counts all the same.

    Returns:
        `(1, M, D)`.

    Raises:
        ValueError: Too many weights or too few, a negative or infinite one, or nothing but zeros.
    """
    if weights is None:
        return contexts.mean(dim=0, keepdim=True)
    check_weights(weights, len(contexts))
    largest = max(weights)
    shares = contexts.new_tensor([weight / largest for weight in weights])[:, None, None]
    return (contexts * (shares / shares.sum())).sum(dim=0, keepdim=True)


def check_weights(weights: Sequence[float], count: int) -> None:
    """Raise `ValueError` unless there are `count` weights of at least 0, and not all of them 0."""
    if len(weights) != count:
        raise ValueError(
            f"the number of weights is {len(weights)} and that of exemplars {count}; give "
            "one weight for each, or none to count all the same"
        )
    for weight in weights:
        if not 0 <= weight < math.inf:
            raise ValueError(f"{weight:g} is not a weight; give numbers of at least 0")
    if not any(weights):
        raise ValueError("all weights are 0; give at least one exemplar a weight above 0")


def parse_weights(text: str) -> list[float] | None:
    """Weights as people write them, `"1, 0.5, 2"`; `None` where nothing is written.

    Raises:
        ValueError: Anything but numbers separated by commas or blanks.
    """
    words = [word for word in re.split(r"[,;\s]+", text) if word]
    weights = []
    for word in words:
        try:
            weights.append(float(word))
        except ValueError:
            raise ValueError(
                f"{word!r} is not a weight; write one number for each exemplar, such as 1, 0.5"
            ) from None
    return weights or None
