"""Photos of one's own as pairs to evaluate: a box, and its content as the exemplar."""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from training.data.augment import SampleGeometry, exemplar_crop
from training.data.decode import decode_photo
from training.data.index import BoxIndex
from training.data.shards import PhotoFiles
from training.evaluation.pairs import Pair

log = logging.getLogger(__name__)

LONGEST_SIDE = 1024
"""Larger photos are reduced to it, boxes with them: all are in memory at once."""


def load_photos(root: Path, index: str, count: int) -> list[Pair]:
    """Pairs of the boxes of an index: of every photo one, then of every photo another.

    A photo that cannot be read is left out with a warning.

    Args:
        root: Folder that `pbe-train prepare` made.
        index: The index in it.
        count: The most pairs.

    Raises:
        ValueError: No such index, or none of its photos can be read.
    """
    boxes = BoxIndex.open(Path(root) / index, root)
    files = PhotoFiles(boxes, root)
    photos = [boxes.photo(number) for number in range(boxes.num_photos)]
    deepest = max(len(photo.boxes) for photo in photos)
    rounds = (
        (photo, photo.boxes[turn])
        for turn in range(deepest)
        for photo in photos
        if turn < len(photo.boxes)
    )
    pairs = []
    for photo, box in islice(rounds, count):
        try:
            pixels = decode_photo(files.read(photo))
        except OSError as error:
            log.warning("leaving out %s: %s", photo.path, error.strerror or error)
            continue
        pairs.append(_pair(pixels, np.array(boxes.box(box)), photo.path))
    if not pairs:
        raise ValueError(
            f"none of the photos of {Path(root) / index} can be read; check that {root} is the "
            "folder that the index was made for"
        )
    return pairs


def _pair(photo: np.ndarray, box: np.ndarray, group: str) -> Pair:
    height, width = photo.shape[:2]
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if scale < 1:
        photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
        box = np.rint(box * scale).astype(np.int64)
    x0, y0 = np.clip(box[:2], 0, np.array(size) - 1).tolist()
    x1, y1 = np.clip(box[2:], (x0 + 1, y0 + 1), size).tolist()
    pixels = torch.from_numpy(photo).float() / 255
    crop = exemplar_crop(photo, (x0, y0, x1, y1), SampleGeometry())
    exemplar = torch.from_numpy(np.ascontiguousarray(crop)).float() / 255
    return Pair(photo=pixels, exemplar=exemplar, box=(x0, y0, x1, y1), group=group)
