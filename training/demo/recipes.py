"""What is drawn where in endless composites, sample by sample: numbers only, no pixels.

`composite` makes a set of files once; a training that goes through millions of samples has seen
each of them hundreds of times. Here every photo is drawn anew, on the training's own device
(`textures`). A photo's number, and a sample's, fix all that is random in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import torch
from pydantic import Field
from torch.utils.data import Dataset

from pbe_model.editing.mask_shapes import Box, bezier_outline
from pbe_model.editing.region import clip_box
from pbe_model.untrusted import numbered_lines, parse_json, shown
from training.data.augment import SampleGeometry, Share, hole_window, resize_square
from training.data.dataset import Stream, keyed_rng

from .composite import MARGIN, MAX_ENLARGE, OPAQUE
from .sources import read_picture
from .textures import EMPTY, ROW, Textures, layer

INDEX = "objects.jsonl"

_CANVAS = 512  # pixels of a photo on which holes are drawn before they are shrunk
_Side = Annotated[float, Field(gt=0, le=1)]
_EDGE = 0.04  # of the object's longer side, between object and hole
_HULL_SIDE = 64  # cut-outs are shrunk to this before their outline is taken


@dataclass(frozen=True, kw_only=True)
class RecipeConfig:
    """How composites vary, beyond place and size.

    Attributes:
        reuse: Samples that take their photo from those of about one new photo. Encoding a photo
            costs more than a sample's step, so each is seen so many times, with other noise and
            another exemplar.
        pool: Newest photos that a sample's is drawn from; their latents are kept in memory.
        recolour: Probability that an object has its hues turned.
        stretch: Largest factor between an object's two sides, and its inverse.
        distractor: Probability of a second object, behind the first.
        flip: Probability that an exemplar is mirrored against its photo.
        extent: Least and greatest longer side of the object to be painted, over the photo's side.
            An edit shows the model a hole of 0.55 (`crop_settings.CONTEXT`), or a longer one where
            the photo ends before the crop does.
        off_centre: How far that object's middle may lie from the photo's, in photo sides.
        room: How much longer than its object a hole may be in one direction, over the object's
            longer side. The object is in the middle of it.
        turn: Degrees that photo and exemplar may each be turned by, either way.
        light: A picture's light in its place is 1 - `light` to 1 + `light` of its own.

    The last three say what the exemplar and the hole do not: where in its hole an object is, how
    far turned, how bright. A denoiser can only guess at it, and paints pure noise as the mean of
    all that may be. A model with little time learns objects sooner where that is little.
    """

    reuse: Annotated[int, Field(ge=1, le=2**16)] = 8
    pool: Annotated[int, Field(ge=1, le=2**20)] = 4096
    recolour: Share = 0.5
    stretch: Annotated[float, Field(ge=1, le=4)] = 1.25
    distractor: Share = 0.1
    flip: Share = 0.0
    extent: tuple[_Side, _Side] = (0.45, 0.95)
    off_centre: Share = 0.2
    room: Share = 0.15
    turn: Annotated[float, Field(ge=0, le=180)] = 3.0
    light: Share = 0.05


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A picture of the demo set: pixels, uint8, and the corners of a cut-out's outline."""

    pixels: np.ndarray
    outline: np.ndarray | None
    """`(K, 2)`, x and y in pixels, convex; `None` of a background."""


def read_pictures(root: Path, split: str) -> list[Prepared]:
    """The pictures of a split that `pbe-train prepare demo` made.

    Raises:
        ValueError: No such set, a malformed line, no cut-out or fewer than two backgrounds, or a
            picture that cannot be read.
    """
    path = Path(root) / INDEX
    if not path.is_file():
        raise ValueError(f"no {path}; make the demo set with `pbe-train prepare demo --out {root}`")
    pictures = []
    for number, line in numbered_lines(path):
        entry = parse_json(line)
        if not isinstance(entry, dict) or not isinstance(entry.get("file"), str):
            raise ValueError(f"{path}, line {number}: {shown(line)} names no file; make it again")
        if entry.get("split") == split:
            pixels = np.asarray(read_picture(Path(root) / entry["file"], "make the set again"))
            outline = _outline(pixels) if pixels.shape[2] == 4 else None
            pictures.append(Prepared(pixels=pixels, outline=outline))
    backgrounds = sum(picture.outline is None for picture in pictures)
    if backgrounds < 2 or backgrounds == len(pictures):
        raise ValueError(
            f"{path} lists {len(pictures) - backgrounds} cut-outs and {backgrounds} backgrounds in "
            f"{split!r}; composites need one and two"
        )
    return pictures


def _outline(rgba: np.ndarray) -> np.ndarray:
    """Corners of the convex hull of the object in a cut-out, `(K, 2)` float32 in pixels."""
    height, width = rgba.shape[:2]
    side = min(_HULL_SIDE, max(height, width))
    small = cv2.resize(rgba[..., 3], (side, side), interpolation=cv2.INTER_AREA)
    rows, columns = np.nonzero(small >= OPAQUE * 255)
    corners = np.stack([columns, rows], axis=-1)[:, None] + np.array(
        [[0, 0], [1, 0], [0, 1], [1, 1]]
    )
    hull = cv2.convexHull(corners.reshape(-1, 2).astype(np.int32))[:, 0]
    return (hull * [width / side, height / side]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class _Object:
    """What a photo and its exemplars share of an object."""

    picture: int
    shape: np.ndarray  # (2, 2) stretch and flip, before any rotation
    colour: np.ndarray  # (3, 4)


class Recipes(Dataset[dict[str, Any]]):
    """Endless training samples: what to draw, numbered over the whole run.

    Args:
        pictures: Of one split, as `Textures` has them.
        config: What varies.
        geometry: Of the holes (`bezier`, `jitter`).
        size: Side `R` of a photo in pixels.
        seed: Key of all randomness.
        with_photo: Whether samples hold their photo's layers, for the first stage; the second takes
            latents from a pool.
    """

    def __init__(
        self,
        pictures: list[Prepared],
        config: RecipeConfig,
        geometry: SampleGeometry,
        *,
        size: int,
        seed: int,
        with_photo: bool = False,
    ) -> None:
        self.pictures = pictures
        self.config = config
        self.geometry = geometry
        self.size = size
        self.seed = seed
        self.with_photo = with_photo
        self._cutouts = [i for i, p in enumerate(pictures) if p.outline is not None]
        self._backgrounds = [i for i, p in enumerate(pictures) if p.outline is None]

    def __getitem__(self, sample_index: int) -> dict[str, Any]:
        """A sample: `exemplar_layers` (2, ROW), `cache_key` (its photo's number), `index`."""
        number = self.photo_of(sample_index)
        sample: dict[str, Any] = {"index": sample_index, "skipped": 0, "cache_key": number}
        if self.with_photo:
            sample["photo_layers"] = self.photo(sample_index)[0]
        else:
            sample["exemplar_layers"] = self.exemplar(number, sample_index)
        return sample

    def photo_of(self, sample_index: int) -> int:
        """Number of the photo that a sample shows: one of the newest."""
        newest = sample_index // self.config.reuse
        rng = keyed_rng(self.seed, sample_index, Stream.CHOICE)
        return newest - int(rng.integers(min(self.config.pool, newest + 1)))

    def photo(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Layers `(3, ROW)` of a photo, and its hole `(R, R)` uint8, 255 repaint."""
        rng = keyed_rng(self.seed, number, Stream.GEOMETRY)
        thing = self._object(rng)
        background = self._background(rng, self.size)
        behind = np.zeros(ROW, np.float32)
        behind[0] = EMPTY
        if rng.random() < self.config.distractor:
            behind, _ = self._place(rng, self._object(rng), off_centre=0.5)
        front, box = self._place(rng, thing, off_centre=self.config.off_centre)
        return np.stack([background, behind, front]), self._hole(rng, box)

    def exemplar(self, number: int, sample_index: int) -> np.ndarray:
        """Layers `(2, ROW)` of an exemplar of photo `number`: the object before something else."""
        thing = self._object(keyed_rng(self.seed, number, Stream.GEOMETRY))
        rng = keyed_rng(self.seed, sample_index, Stream.EXEMPLAR)
        background = self._background(rng, 2 * self.size)
        flip = -1.0 if rng.random() < self.config.flip else 1.0
        shape = self._turned(rng, np.diag([flip, 1]) @ thing.shape)
        low, high = self._extent(thing, shape)
        margin = rng.uniform(0.5, 1.5, size=(2, 2)) * MARGIN
        side = (high - low) * (1 + margin.sum(axis=0))  # of the exemplar's frame, in turned pixels
        corner = low - (high - low) * margin[0]
        inverse = np.linalg.inv(shape)
        matrix = np.column_stack([inverse * side, inverse @ corner])
        return np.stack([background, self._layer(rng, thing, matrix)])

    # ---- parts ---------------------------------------------------------------------------------

    def _object(self, rng: np.random.Generator) -> _Object:
        """Draw an object; always the first draws of a photo's generator."""
        config = self.config
        picture = self._cutouts[int(rng.integers(len(self._cutouts)))]
        flip = -1.0 if rng.random() < 0.5 else 1.0
        stretch = config.stretch ** rng.uniform(-0.5, 0.5)
        turned, degrees, saturation = rng.random(), rng.uniform(0, 360), rng.uniform(0.6, 1.4)
        contrast = rng.uniform(0.8, 1.2)
        recoloured = turned < config.recolour
        return _Object(
            picture=picture,
            shape=np.diag([flip * stretch, 1 / stretch]),
            colour=_colours(degrees, saturation, contrast) if recoloured else _colours(0, 1, 1),
        )

    def _extent(self, thing: _Object, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest x and y of an object after a linear map."""
        outline = self.pictures[thing.picture].outline
        assert outline is not None
        turned = outline @ shape.T
        return turned.min(axis=0), turned.max(axis=0)

    def _place(
        self, rng: np.random.Generator, thing: _Object, off_centre: float
    ) -> tuple[np.ndarray, Box]:
        """The layer of an object in a photo, and its box on the canvas for holes."""
        shape = self._turned(rng, thing.shape)
        low, high = self._extent(thing, shape)
        extent = high - low
        # Of a turned pixel, in photo sides.
        scale = min(rng.uniform(*self.config.extent) / extent.max(), MAX_ENLARGE / self.size)
        shift = off_centre * rng.uniform(-1, 1, size=2)
        corner = (0.5 + shift - scale * extent / 2).clip(0, 1 - scale * extent)
        inverse = np.linalg.inv(scale * shape)
        matrix = np.column_stack([inverse, inverse @ (scale * low - corner)])
        first = np.floor(corner * _CANVAS).astype(int)
        last = np.maximum(first + 1, np.ceil((corner + scale * extent) * _CANVAS).astype(int))
        box = (int(first[0]), int(first[1]), min(_CANVAS, int(last[0])), min(_CANVAS, int(last[1])))
        return self._layer(rng, thing, matrix), box

    def _layer(self, rng: np.random.Generator, thing: _Object, matrix: np.ndarray) -> np.ndarray:
        """An object with the light of its place."""
        return layer(thing.picture, matrix, thing.colour * self._light(rng))

    def _background(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """The layer of a random square of a background."""
        picture = self._backgrounds[int(rng.integers(len(self._backgrounds)))]
        height, width = self.pictures[picture].pixels.shape[:2]
        largest = min(height, width)
        side = np.exp(rng.uniform(np.log(min(size, largest)), np.log(largest)))
        x, y = rng.uniform(0, 1, size=2) * (width - side, height - side)
        sign = -1.0 if rng.random() < 0.5 else 1.0
        matrix = np.array([[sign * side, 0, x + (sign < 0) * side], [0, side, y]])
        recoloured = rng.random() < self.config.recolour
        degrees, saturation = rng.uniform(0, 360), rng.uniform(0.6, 1.4)
        colour = _colours(degrees, saturation, 1.0) if recoloured else _colours(0, 1, 1)
        return layer(picture, matrix, colour * self._light(rng))

    def _light(self, rng: np.random.Generator) -> float:
        return rng.uniform(1 - self.config.light, 1 + self.config.light)

    def _turned(self, rng: np.random.Generator, shape: np.ndarray) -> np.ndarray:
        return _turn(rng.uniform(-self.config.turn, self.config.turn)) @ shape

    def _hole(self, rng: np.random.Generator, box: Box) -> np.ndarray:
        geometry = self.geometry
        extended = _with_room(box, self.config.room, rng)
        outline = None
        if rng.random() < geometry.bezier:
            outline = bezier_outline(box, extended, rng, jitter=geometry.jitter / 2)
        hole = hole_window((0, 0, _CANVAS, _CANVAS), outline, box, extended)
        return resize_square(hole, self.size, antialias=True)


def _with_room(box: Box, room: float, rng: np.random.Generator) -> Box:
    """The box of a hole on the canvas: an edge around the object, more at two opposite sides."""
    x0, y0, x1, y1 = box
    longer = max(x1 - x0, y1 - y0)
    edge, more = _EDGE * longer, rng.uniform(0, room) / 2 * longer
    across, down = (edge + more, edge) if rng.random() < 0.5 else (edge, edge + more)
    grown = round(x0 - across), round(y0 - down), round(x1 + across), round(y1 + down)
    return clip_box(grown, (_CANVAS, _CANVAS))


def _turn(degrees: float) -> np.ndarray:
    """Rotation, `(2, 2)`."""
    angle = np.radians(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


_LIGHTNESS = np.array([0.299, 0.587, 0.114])


def _colours(degrees: float, saturation: float, contrast: float) -> np.ndarray:
    """Turn the hues about the grey axis, then change saturation and contrast: `(3, 4)`."""
    if (degrees, saturation, contrast) == (0, 1, 1):
        return np.eye(3, 4)
    axis = np.full(3, 3**-0.5)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(degrees)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross
    turn += (1 - np.cos(angle)) * np.outer(axis, axis)  # Rodrigues' formula
    grey = np.outer(np.ones(3), _LIGHTNESS)
    matrix = contrast * (grey + saturation * (turn - grey))
    return np.column_stack([matrix, np.full(3, (1 - contrast) / 2)])


def endless(
    root: Path,
    config: RecipeConfig,
    geometry: SampleGeometry,
    *,
    size: int,
    seed: int,
    device: torch.device,
    with_photo: bool = False,
    split: str = "train",
) -> tuple[Recipes, Textures]:
    """Endless samples of a split of the demo set in `root`, and what they are drawn from.

    Raises:
        ValueError: As `read_pictures`.
    """
    pictures = read_pictures(root, split)
    recipes = Recipes(pictures, config, geometry, size=size, seed=seed, with_photo=with_photo)
    return recipes, Textures([picture.pixels for picture in pictures], device)
