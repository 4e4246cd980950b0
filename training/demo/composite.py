"""Composites of a cut-out on a photograph, with the true box: data for the bundled demo model.

Paint by Example (arXiv 2211.13227, section 3.3) learns from photos with object boxes. Pasting
photographic cut-outs gives such photos, and, unlike any photo collection, a second picture of the
very same object for validation.

Composite number `index` is a function of (seed, stream, index) alone, through a counter-based
generator, so processes may share the work in any way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from training.data.augment import recolour

Box = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels; x1 and y1 are outside."""

MARGIN = 0.1
"""What exemplars show around the object's box, as a share of the box."""
MAX_ENLARGE = 1.6  # some cut-outs are 50 pixels: larger would only teach blur
OPAQUE = 0.25  # a pixel belongs to the object from this alpha on
BOX_AREA = (0.045, 0.58)  # share of the picture, before rounding; slivers may fall below
PAIR_SHARE = 0.1  # of the training composites hold two objects
RECOLOUR_SHARE = 0.5  # of the objects in them: a few hundred shall not mean as few colours
TRAIN, VAL, SEEN = 0, 1, 2  # streams of the generator
_ORDER = 2**32 - 1  # an index that no composite has


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A cut-out or a background in memory.

    Attributes:
        id: unique name.
        pixels: (H, W, 4) RGBA with straight alpha or (H, W, 3) RGB, uint8.
        group: near-duplicates share it (cut-outs only).
    """

    id: str
    pixels: np.ndarray
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Composite:
    """A photo with pasted objects: (S, S, 3) float32 in [0, 1], and each object with its box."""

    photo: np.ndarray
    objects: list[tuple[Picture, Box]]


@dataclass(frozen=True, kw_only=True)
class Pair(Composite):
    """A composite with one object, and a tight crop of that object before another background.

    Attributes:
        exemplar: (h, w, 3) float32 in [0, 1], with a margin of `MARGIN`.
    """

    exemplar: np.ndarray


def alpha_box(alpha: np.ndarray) -> Box:
    """The smallest box around the pixels whose alpha, (H, W) in [0, 1], counts as object."""
    opaque = alpha >= OPAQUE
    columns, rows = np.flatnonzero(opaque.any(0)), np.flatnonzero(opaque.any(1))
    assert len(columns) > 0, "an empty cut-out"
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def turn(rgba: np.ndarray, *, degrees: float, flip: bool, gain: float) -> np.ndarray:
    """Flip, rotate and brighten a cut-out.

    Args:
        rgba: (H, W, 4) uint8, straight alpha.
        degrees: counter-clockwise.
        flip: mirror left and right first.
        gain: factor on the colours.

    Returns:
        (h, w, 4) float32 in [0, 1], premultiplied, trimmed to the object. Premultiplied, because
        interpolation would otherwise mix in the colour of transparent pixels: a halo.
    """
    patch = (rgba[:, ::-1] if flip else rgba).astype(np.float32) / 255
    patch[..., :3] = np.minimum(patch[..., :3] * gain, 1) * patch[..., 3:]
    height, width = patch.shape[:2]
    side = int(np.ceil(np.hypot(height, width))) + 2
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
    matrix[:, 2] += (side - width) / 2, (side - height) / 2
    patch = cv2.warpAffine(patch, matrix, (side, side), flags=cv2.INTER_LINEAR)
    x0, y0, x1, y1 = alpha_box(patch[..., 3])
    return patch[y0:y1, x0:x1]


def scale_to_area(patch: np.ndarray, area: float, limit: tuple[int, int]) -> np.ndarray:
    """Resize a premultiplied patch to about `area` pixels, at most `limit` (width, height)."""
    height, width = patch.shape[:2]
    scale = min((area / (height * width)) ** 0.5, limit[0] / width, limit[1] / height, MAX_ENLARGE)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(patch, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def paste(canvas: np.ndarray, patch: np.ndarray, x: int, y: int) -> Box:
    """Blend a premultiplied patch over `canvas`, (H, W, 3) float32 in [0, 1], in place."""
    height, width = patch.shape[:2]
    region = canvas[y : y + height, x : x + width]
    region *= 1 - patch[..., 3:]
    region += patch[..., :3]
    return x, y, x + width, y + height


@dataclass(frozen=True, kw_only=True)
class Composer:
    """Makes numbered composites.

    Attributes:
        cutouts: of one split.
        backgrounds: pairs need two.
        size: side of a composite in pixels.
        seed: first half of the generator's key.
    """

    cutouts: list[Picture]
    backgrounds: list[Picture]
    size: int
    seed: int

    def composite(self, index: int) -> Composite:
        """Training composite `index`: mostly one object, sometimes two side by side."""
        rng = self._generator(TRAIN, index)
        photo = self._background(rng, _pick(rng, self.backgrounds), self.size)
        slots = _halves(self.size, rng) if rng.random() < PAIR_SHARE else [_whole(self.size)]
        objects = []
        for slot in slots:
            cutout = _pick(rng, self.cutouts)
            if rng.random() < RECOLOUR_SHARE:
                degrees, saturation = rng.uniform(0, 360), rng.uniform(0.6, 1.4)
                rgb, alpha = cutout.pixels[..., :3], cutout.pixels[..., 3:]
                rgb = recolour(rgb, degrees=degrees, saturation=saturation)
                cutout = replace(cutout, pixels=np.concatenate([rgb, alpha], axis=-1))
            flip = bool(rng.random() < 0.5)
            objects.append((cutout, self._place(rng, photo, cutout, slot, flip=flip)))
        return Composite(photo=photo, objects=objects)

    def pair(self, index: int, *, stream: int = VAL) -> Pair:
        """Pair `index` of a stream; cut-outs take turns, so each appears equally often.

        The turns are shuffled: fewer pairs than cut-outs still show every kind of object.
        """
        turns = self._generator(stream, _ORDER).permutation(len(self.cutouts))
        cutout = self.cutouts[turns[index % len(turns)]]
        rng = self._generator(stream, index)
        flip = bool(rng.random() < 0.5)
        first, second = rng.choice(len(self.backgrounds), size=2, replace=False)
        photo = self._background(rng, self.backgrounds[first], self.size)
        box = self._place(rng, photo, cutout, _whole(self.size), flip=flip)

        side = 2 * self.size
        other = self._background(rng, self.backgrounds[second], side)
        x0, y0, x1, y1 = self._place(
            rng, other, cutout, _whole(side), flip=flip, degrees=10, area=(0.2, 0.5)
        )
        dx, dy = round(MARGIN * (x1 - x0)), round(MARGIN * (y1 - y0))
        exemplar = other[max(0, y0 - dy) : y1 + dy, max(0, x0 - dx) : x1 + dx]
        return Pair(photo=photo, objects=[(cutout, box)], exemplar=exemplar)

    def _generator(self, stream: int, index: int) -> np.random.Generator:
        # An array, as in `data.dataset.keyed_rng`.
        key = np.array([self.seed, stream << 32 | index], np.uint64)
        return np.random.Generator(np.random.Philox(key=key))

    def _background(self, rng: np.random.Generator, picture: Picture, size: int) -> np.ndarray:
        """A random square of a background, (size, size, 3) float32 in [0, 1]."""
        height, width = picture.pixels.shape[:2]
        largest = min(height, width)
        side = round(float(np.exp(rng.uniform(np.log(min(size, largest)), np.log(largest)))))
        y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
        square = picture.pixels[y : y + side, x : x + side].astype(np.float32) / 255
        square = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:
            square = np.ascontiguousarray(square[:, ::-1])
        return np.minimum(square * np.float32(rng.uniform(0.75, 1.25)), 1)

    def _place(
        self,
        rng: np.random.Generator,
        canvas: np.ndarray,
        cutout: Picture,
        slot: Box,
        *,
        flip: bool,
        degrees: float = 20,
        area: tuple[float, float] = BOX_AREA,
    ) -> Box:
        """Paste a cut-out somewhere into a slot; its box takes a random share of the canvas."""
        x0, y0, x1, y1 = slot
        angle, gain = rng.uniform(-degrees, degrees), rng.uniform(0.75, 1.25)
        patch = turn(cutout.pixels, degrees=angle, flip=flip, gain=gain)
        share = rng.uniform(area[0] ** 0.5, area[1] ** 0.5) ** 2  # uniform in the side
        limit = round(0.96 * (x1 - x0)), round(0.96 * (y1 - y0))
        patch = scale_to_area(patch, share * canvas.shape[0] * canvas.shape[1], limit)
        x = int(rng.integers(x0, x1 - patch.shape[1] + 1))
        y = int(rng.integers(y0, y1 - patch.shape[0] + 1))
        return paste(canvas, patch, x, y)


def _pick(rng: np.random.Generator, pictures: list[Picture]) -> Picture:
    return pictures[int(rng.integers(len(pictures)))]


def _whole(size: int) -> Box:
    return 0, 0, size, size


def _halves(size: int, rng: np.random.Generator) -> list[Box]:
    half = size // 2
    if rng.random() < 0.5:
        return [(0, 0, half, size), (half, 0, size, size)]
    return [(0, 0, size, half), (0, half, size, size)]
