"""Which hole is which: numbers for holes that each get an exemplar of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


def number_holes(hole_mask: Tensor) -> np.ndarray:
    """Numbers the separate holes of a mask as one reads: left to right, row after row.

    A hole is a connected blob, diagonals included. It belongs to the row of the topmost hole that
    is left if the middle of its box is above the lower edge of that one.

    Args:
        hole_mask: (H, W), 1 = repaint; a hole is what lies above 0.5.

    Returns:
        (H, W) integers, 0 outside of all holes.
    """
    labelled: Any = ndimage.label((hole_mask > 0.5).cpu().numpy(), structure=np.ones((3, 3)))
    blobs, count = labelled
    # Blobs are found by their topmost pixel, so the first that is left is the topmost.
    boxes = [
        (place[0].start, place[0].stop, place[1].start) for place in ndimage.find_objects(blobs)
    ]
    order: list[int] = []
    left = list(range(count))
    while left:
        floor = boxes[left[0]][1]
        row = [blob for blob in left if (boxes[blob][0] + boxes[blob][1]) / 2 < floor]
        order += sorted(row, key=lambda blob: boxes[blob][2])
        left = [blob for blob in left if blob not in row]
    numbers = np.zeros(count + 1, np.int32)
    numbers[[blob + 1 for blob in order]] = np.arange(1, count + 1)
    return numbers[blobs]


def join_holes(hole_masks: Tensor) -> tuple[Tensor, np.ndarray]:
    """One mask of several, whose holes have the masks' numbers; later ones lie on top.

    Args:
        hole_masks: (K, H, W), 1 = repaint; a hole is what lies above 0.5.

    Returns:
        hole_mask: (H, W), the largest value of all.
        numbers: (H, W) integers from 1 to K, 0 outside of all holes.
    """
    numbers = np.zeros(tuple(hole_masks.shape[1:]), np.int32)
    for number, mask in enumerate(hole_masks, start=1):
        numbers[(mask > 0.5).cpu().numpy()] = number
    return torch.amax(hole_masks, 0), numbers
