"""What a photo with a box becomes before the model sees it: exemplar, and photo with a hole.

Two halves, each a pure function of its generator (Paint by Example, arXiv 2211.13227, sections 3.2
and 3.4; amounts as in the official `OpenImageDataset`, which uses albumentations 0.4.3):

* `augment_exemplar` distorts the crop of the box, so that it cannot simply be pasted back.
* `training_geometry` draws a random hole around the box and a random square that holds it.

`recolour_photo`, which the paper does not have, comes before both.

Pixel amounts in the configurations are those of the official sizes (exemplars of 224 pixels, photos
of about 1024 x 768); they are scaled to the sizes at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from pbe_model.editing.mask_shapes import Box, bezier_outline, extend_box, polygon_mask

OFFICIAL_EXEMPLAR_SIDE = 224
OFFICIAL_PHOTO_SIDE = 1024
"""Longer side of the paper's training photos (OpenImages)."""

# Checked where configurations are read.
Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0, le=10_000)]


@dataclass(frozen=True, kw_only=True)
class ExemplarAugment:
    """Distortions of the exemplar and their probabilities; a probability of 0 switches one off.

    Attributes:
        flip: Probability of a horizontal flip.
        rotate: Probability of a rotation about the centre.
        rotate_degrees: Largest angle, either way.
        blur: Probability of a box blur.
        blur_widths: Kernel widths to choose from, in pixels on 224.
        affine: Probability of moving three control points. (The official "elastic transform" is
            this; its displacement field proper reaches 0.003 pixels and is left out.)
        affine_pixels: Largest move of a control point along each axis, in pixels on 224.
        antialias: Average over the source when shrinking the crop; the paper does not. Worth having
            when exemplars are much smaller than the crops they are made from.
    """

    flip: Share = 0.5
    rotate: Share = 0.5
    rotate_degrees: Amount = 20.0
    blur: Share = 0.3
    blur_widths: Annotated[
        tuple[Annotated[int, Field(ge=1, le=OFFICIAL_EXEMPLAR_SIDE)], ...],
        Field(min_length=1, max_length=100),
    ] = (3, 5, 7)
    affine: Share = 0.3
    affine_pixels: Amount = 50.0
    antialias: bool = False


@dataclass(frozen=True, kw_only=True)
class SampleGeometry:
    """How the exemplar is cut out, the hole shaped and the photo cropped.

    Attributes:
        exemplar_padding: Pixels of surroundings kept around the box in the exemplar.
        extend: The hole grows on each side by up to this share of the free space there.
        bezier: Probability of a Bezier-shaped hole; otherwise it is the extended box.
        jitter: Random move of the outline's points, in pixels.
        zoom: The square crop shrinks on all sides by up to this share of the free space.
        pixel_scale: Factor on the pixel amounts (padding, jitter). `None` takes the photo's longer
            side / 1024, so that what is learned does not depend on the size the photos are stored
            at; 1.0 takes them as they are.
        zoom_fixed: Crop and zoom also where only one square of the photo's shorter side holds the
            hole: in square photos, and where the box touches an end of the longer side. The paper
            squashes the whole photo there.
        antialias: Average over the source when shrinking the crop; the paper does not.
    """

    exemplar_padding: Amount = 10.0
    extend: Share = 0.4
    bezier: Share = 0.5
    jitter: Amount = 5.0
    zoom: Share = 0.6
    zoom_fixed: bool = False
    pixel_scale: Annotated[float, Field(gt=0)] | None = None
    antialias: bool = False

    def scale_for(self, photo: np.ndarray) -> float:
        """Factor on the pixel amounts for a photo `(H, W, 3)`."""
        if self.pixel_scale is not None:
            return self.pixel_scale
        return max(photo.shape[:2]) / OFFICIAL_PHOTO_SIDE


@dataclass(frozen=True, kw_only=True)
class PhotoRecolour:
    """Colours of a photo, its exemplar included, changed at random.

    For collections of a few dozen photos. A model soon knows each of them by its background, and
    paints what was there whatever the exemplar; where one photo comes in many colours, the exemplar
    has to be looked at.

    Attributes:
        probability: Of a change; 0, as in the paper, switches it off.
        hue_degrees: Largest turn of the hues, either way.
        saturation: The saturation is multiplied by 1 - `saturation` to 1 + `saturation`.
        gamma: Values in [0, 1] are raised to a power of 1 / `gamma` to `gamma`.
    """

    probability: Share = 0.0
    hue_degrees: Amount = 180.0
    saturation: Share = 0.4
    gamma: Annotated[float, Field(ge=1)] = 1.4


def recolour_photo(
    photo: np.ndarray, rng: np.random.Generator, config: PhotoRecolour
) -> np.ndarray:
    """Change the colours of a photo `(H, W, 3)` uint8, or leave it as it is."""
    if rng.random() >= config.probability:
        return photo
    degrees = rng.uniform(-config.hue_degrees, config.hue_degrees)
    saturation = 1 + rng.uniform(-config.saturation, config.saturation)
    power = config.gamma ** rng.uniform(-1, 1)
    levels = np.rint((np.arange(256) / 255) ** power * 255).astype(np.uint8)
    return cv2.LUT(recolour(photo, degrees=degrees, saturation=saturation), levels)


def recolour(pixels: np.ndarray, *, degrees: float, saturation: float) -> np.ndarray:
    """Turn the hues of a picture; its lightness stays.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        degrees: By which hues turn.
        saturation: Factor on the saturation, at least 0.

    Returns:
        Like `pixels`.
    """
    hls = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2HLS)
    hls[..., 0] = (hls[..., 0] + degrees) % 360
    hls[..., 2] = np.minimum(hls[..., 2] * saturation, 1)
    colours = cv2.cvtColor(hls, cv2.COLOR_HLS2RGB)
    return np.rint(colours * 255).clip(0, 255).astype(np.uint8)


def resize_square(image: np.ndarray, side: int, antialias: bool = False) -> np.ndarray:
    """Squash `(H, W, ...)` to `(side, side, ...)`, bilinear.

    Without `antialias` this equals the resize of the official code (torch, not antialiased).
    """
    shrinks = image.shape[0] > side or image.shape[1] > side
    interpolation = cv2.INTER_AREA if antialias and shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (side, side), interpolation=interpolation)


def augment_exemplar(
    crop: np.ndarray, size: int, rng: np.random.Generator, config: ExemplarAugment
) -> np.ndarray:
    """Squash the crop of an object to a square and distort it.

    Args:
        crop: `(h, w, 3)` uint8, any size from 1 x 1.
        size: Side `S` of the result in pixels.
        rng: Source of all randomness.
        config: Distortions and their probabilities.

    Returns:
        `(S, S, 3)` uint8.
    """
    scale = size / OFFICIAL_EXEMPLAR_SIDE
    image = resize_square(crop, size, config.antialias)
    image = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)  # four channels are warped in half the time
    if rng.random() < config.flip:
        image = cv2.flip(image, 1)
    if rng.random() < config.rotate:
        angle = rng.uniform(-config.rotate_degrees, config.rotate_degrees)
        image = _warp(image, cv2.getRotationMatrix2D((size / 2, size / 2), angle, 1.0))
    if rng.random() < config.blur:
        width = _odd(float(rng.choice(config.blur_widths)) * scale)
        image = cv2.blur(image, (width, width))
    if rng.random() < config.affine:
        image = _warp(image, _three_point_affine(size, config.affine_pixels * scale, rng))
    return cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )


def _odd(width: float) -> int:
    """Nearest odd kernel width, upwards in a tie: at 64 pixels 7 becomes 3 and 3 becomes none."""
    return max(1, 2 * int(width / 2) + 1)


def _three_point_affine(size: int, amount: float, rng: np.random.Generator) -> np.ndarray:
    """Affine map that moves three corners of the middle square by up to `amount` pixels each."""
    near, far = size // 2 - size // 3, size // 2 + size // 3
    corners = np.array([[far, far], [far, near], [near, near]], dtype=np.float32)
    moved = corners + rng.uniform(-amount, amount, size=corners.shape).astype(np.float32)
    return cv2.getAffineTransform(corners, moved)


def exemplar_crop(photo: np.ndarray, box: Box, config: SampleGeometry) -> np.ndarray:
    """Cut the box with some of its surroundings out of the photo.

    Args:
        photo: `(H, W, 3)`.
        box: The object, inside the photo.
        config: Gives the padding.

    Returns:
        `(h, w, 3)`, a view.
    """
    height, width = photo.shape[:2]
    padding = round(config.exemplar_padding * config.scale_for(photo))
    x0, y0, x1, y1 = box
    return photo[
        max(0, y0 - padding) : min(height, y1 + padding),
        max(0, x0 - padding) : min(width, x1 + padding),
    ]


def square_crop(
    height: int,
    width: int,
    box: Box,
    rng: np.random.Generator,
    zoom: float = 0.6,
    zoom_fixed: bool = False,
) -> Box:
    """Draw a square of the photo that holds `box`.

    A square as large as the photo allows is placed at random, then shrunk about its centre by up
    to `zoom` of the free space between it and the box.

    The whole photo is returned, to be squashed, where the box is longer than the photo's shorter
    side, and, as in the official code, where there is only one place for the square: in square
    photos, and where the box touches an end of the photo's longer side.

    Args:
        height: Photo height in pixels.
        width: Photo width in pixels.
        box: What the crop must hold, inside the photo.
        rng: Source of all randomness.
        zoom: Largest share of the free space to cut off, 0 to 1.
        zoom_fixed: Take a square, and shrink it, also where there is only one place for it.

    Returns:
        The crop as a box inside the photo.
    """
    x0, y0, x1, y1 = box
    side = min(height, width)
    first_left, last_left = max(0, x1 - side), min(x0, width - side)
    first_top, last_top = max(0, y1 - side), min(y0, height - side)
    slack = last_left - first_left, last_top - first_top
    if min(slack) < 0 or (max(slack) == 0 and not zoom_fixed):
        return 0, 0, width, height
    left = int(rng.integers(first_left, last_left, endpoint=True))
    top = int(rng.integers(first_top, last_top, endpoint=True))
    free_space = min(x0 - left, y0 - top, left + side - x1, top + side - y1)
    inset = int(rng.integers(0, int(zoom * free_space), endpoint=True))
    return left + inset, top + inset, left + side - inset, top + side - inset


def training_geometry(
    photo: np.ndarray, box: Box, resolution: int, rng: np.random.Generator, config: SampleGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a hole around the box and a square crop around the hole.

    Args:
        photo: `(H, W, 3)` uint8.
        box: The object, inside the photo.
        resolution: Side `R` of the results in pixels.
        rng: Source of all randomness.
        config: Shapes and amounts.

    Returns:
        The image `(R, R, 3)` uint8 and its hole mask `(R, R)` uint8: 255 repaint, 0 keep, values
        between at the outline, as the network is trained on the soft resized mask.
    """
    height, width = photo.shape[:2]
    extended = extend_box(box, height, width, rng, amount=config.extend)
    hole = None
    if rng.random() < config.bezier:
        jitter = config.jitter * config.scale_for(photo)
        hole = bezier_outline(box, extended, rng, jitter=jitter)
    crop = square_crop(height, width, extended, rng, config.zoom, config.zoom_fixed)
    x0, y0, x1, y1 = crop
    return (
        resize_square(photo[y0:y1, x0:x1], resolution, config.antialias),
        resize_square(hole_window(crop, hole, box, extended), resolution, config.antialias),
    )


def hole_window(crop: Box, outline: list[float] | None, box: Box, extended: Box) -> np.ndarray:
    """The part of the hole mask inside the crop, 0 or 255: drawing the whole photo's takes longer.

    If jitter tears the outline of a box of a few pixels out of sight, the box itself is the hole.
    """
    if outline:
        hole_mask = polygon_mask(outline, crop, value=255)
        if hole_mask.any():
            return hole_mask
    left, top = crop[:2]
    x0, y0, x1, y1 = box if outline else extended
    hole_mask = np.zeros((crop[3] - top, crop[2] - left), np.uint8)
    hole_mask[y0 - top : y1 - top, x0 - left : x1 - left] = 255
    return hole_mask
