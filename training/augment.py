"""What a photo with a box becomes before the model sees it: exemplar, and photo with a hole.

Two halves, each a pure function of its generator (Paint by Example, arXiv 2211.13227, sections 3.2
and 3.4; amounts as in the official `OpenImageDataset`, which uses albumentations 0.4.3):

* `augment_exemplar` distorts the crop of the box, so that it cannot simply be pasted back.
* `training_geometry` draws a random hole around the box and a random square that holds it.

Pixel amounts in the configurations are those of the official sizes (exemplars of 224 pixels, photos
of about 1024 x 768); they are scaled to the sizes at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pbe_model.mask import Box, bezier_mask, box_mask, extend_box

OFFICIAL_EXEMPLAR_SIDE = 224
OFFICIAL_PHOTO_SIDE = 1024
"""Longer side of the paper's training photos (OpenImages)."""


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

    flip: float = 0.5
    rotate: float = 0.5
    rotate_degrees: float = 20.0
    blur: float = 0.3
    blur_widths: tuple[int, ...] = (3, 5, 7)
    affine: float = 0.3
    affine_pixels: float = 50.0
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
        antialias: Average over the source when shrinking the crop; the paper does not.
    """

    exemplar_padding: float = 10.0
    extend: float = 0.4
    bezier: float = 0.5
    jitter: float = 5.0
    zoom: float = 0.6
    pixel_scale: float | None = None
    antialias: bool = False

    def scale_for(self, photo: np.ndarray) -> float:
        """Factor on the pixel amounts for a photo `(H, W, 3)`."""
        if self.pixel_scale is not None:
            return self.pixel_scale
        return max(photo.shape[:2]) / OFFICIAL_PHOTO_SIDE


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
    return image


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
    height: int, width: int, box: Box, rng: np.random.Generator, zoom: float = 0.6
) -> Box:
    """Draw a square of the photo that holds `box`.

    A square as large as the photo allows is placed at random, then shrunk about its centre by up
    to `zoom` of the free space between it and the box. Where the box is longer than the photo's
    shorter side there is no such square, and the whole photo is returned, to be squashed. (The
    official code also leaves square photos whole; here they are zoomed like the others.)

    Args:
        height: Photo height in pixels.
        width: Photo width in pixels.
        box: What the crop must hold, inside the photo.
        rng: Source of all randomness.
        zoom: Largest share of the free space to cut off, 0 to 1.

    Returns:
        The crop as a box inside the photo.
    """
    x0, y0, x1, y1 = box
    side = min(height, width)
    if x1 - x0 > side or y1 - y0 > side:
        return 0, 0, width, height
    left = int(rng.integers(max(0, x1 - side), min(x0, width - side), endpoint=True))
    top = int(rng.integers(max(0, y1 - side), min(y0, height - side), endpoint=True))
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
    if rng.random() < config.bezier:
        jitter = config.jitter * config.scale_for(photo)
        hole_mask = bezier_mask(height, width, box, extended, rng, jitter=jitter)
    else:
        hole_mask = box_mask(height, width, extended)
    x0, y0, x1, y1 = square_crop(height, width, extended, rng, config.zoom)
    return (
        resize_square(photo[y0:y1, x0:x1], resolution, config.antialias),
        resize_square(hole_mask[y0:y1, x0:x1] * np.uint8(255), resolution, config.antialias),
    )
