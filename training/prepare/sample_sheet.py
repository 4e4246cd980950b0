"""A picture of random samples, made by the code that makes those of the training."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pbe_model.atomic import replacing
from pbe_model.editing.mask_shapes import Box
from training.data.augment import (
    ExemplarAugment,
    SampleGeometry,
    augment_exemplar,
    exemplar_crop,
    training_geometry,
)
from training.data.decode import decode_photo
from training.data.index import BoxIndex
from training.data.shards import PhotoFiles

SAMPLES, COLUMNS, TILE = 12, 2, 256
_EXEMPLAR = 224
_BOX, _HOLE, _CROP = (80, 220, 80), (240, 60, 60), (255, 255, 255)  # green, red, white
_GREY = 127.5


def draw_sample(photo: np.ndarray, box: Box, rng: np.random.Generator) -> np.ndarray:
    """A photo with box (green), hole (red) and crop (white); the crop with its hole; the exemplar.

    Args:
        photo: `(H, W, 3)` uint8.
        box: The object, inside the photo.
        rng: Source of the hole's shape, the crop and the exemplar's distortions.

    Returns:
        `(TILE, 3 * TILE, 3)` uint8: three tiles side by side.
    """
    geometry = SampleGeometry()
    again = np.random.default_rng(int(rng.integers(2**32)))
    state = again.bit_generator.state
    image, hole_mask = training_geometry(photo, box, TILE, again, geometry)
    # The same draw with the coordinates in the place of the colours says where the crop lies.
    again.bit_generator.state = state
    where, _ = training_geometry(_coordinates(photo), box, TILE, again, geometry)
    holed = image + (_GREY - image) * (hole_mask[..., None] / 255)
    exemplar = augment_exemplar(
        exemplar_crop(photo, box, geometry), _EXEMPLAR, again, ExemplarAugment()
    )
    tiles = [_annotate(photo, box, hole_mask, where), holed.astype(np.uint8), _fit(exemplar)]
    return np.concatenate(tiles, axis=1)


def write_sample_sheet(path: Path, index: BoxIndex, root: Path, seed: int = 0) -> None:
    """Draw random samples of an index, a JPEG of `SAMPLES` photos at most.

    Photos that cannot be read are passed over.

    Args:
        path: File to write.
        index: Photos and boxes.
        root: Folder of the data set (see `PhotoFiles`).
        seed: Another one gives other samples.
    """
    rng = np.random.default_rng(seed)
    files, drawn = PhotoFiles(index, root), []
    for number in rng.permutation(index.num_photos).tolist():
        photo = index.photo(number)
        box = index.box(int(rng.choice(photo.boxes)))
        try:
            drawn.append(draw_sample(decode_photo(files.read(photo)), box, rng))
        except OSError:
            continue
        if len(drawn) == SAMPLES:
            break
    drawn += [np.zeros((TILE, 3 * TILE, 3), np.uint8)] * (-len(drawn) % COLUMNS)
    lines = [np.concatenate(drawn[i : i + COLUMNS], 1) for i in range(0, len(drawn), COLUMNS)]
    sheet = np.concatenate(lines or [np.zeros((TILE, TILE, 3), np.uint8)])
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    with replacing(path) as part:
        part.write_bytes(encoded.tobytes())


def _coordinates(photo: np.ndarray) -> np.ndarray:
    height, width = photo.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.stack([x, y, np.zeros_like(x)], axis=-1)


def _annotate(photo: np.ndarray, box: Box, hole_mask: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The photo, fitted into a tile, with the outlines of box, hole and crop."""
    scale = TILE / max(photo.shape[:2])
    tile = _fit(photo)
    outlines, _ = cv2.findContours(
        (hole_mask > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    for outline in outlines:
        columns, rows = outline[:, 0].T
        points = np.rint(where[rows, columns, :2] * scale).astype(np.int32)
        cv2.polylines(tile, [points], True, _HOLE, 1, cv2.LINE_AA)
    low, high = where[0, 0, :2] * scale, where[-1, -1, :2] * scale
    _rectangle(tile, low, high, _CROP)
    _rectangle(tile, np.array(box[:2]) * scale, np.array(box[2:]) * scale, _BOX)
    return tile


def _rectangle(
    tile: np.ndarray, low: np.ndarray, high: np.ndarray, colour: tuple[int, int, int]
) -> None:
    (x0, y0), (x1, y1) = (np.rint(corner).astype(int).tolist() for corner in (low, high))
    cv2.rectangle(tile, (x0, y0), (x1 - 1, y1 - 1), colour, 1)


def _fit(image: np.ndarray) -> np.ndarray:
    """The whole image in the top left of a black tile."""
    height, width = image.shape[:2]
    scale = TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    tile = np.zeros((TILE, TILE, 3), np.uint8)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    tile[: size[1], : size[0]] = cv2.resize(image, size, interpolation=interpolation)
    return tile
