"""The demonstration: every bundled scene, painted by a model, on one labelled sheet."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..atomic import check_makeable, made_folder, replacing_all
from ..editing.batch import EditResult
from ..editing.edit import edit
from ..image_io import read_image, write_image
from ..model import PaintByExample
from ..sampling.samplers import Callback
from ..scenes import Scene, load_scenes

SEEDS = 3
SIMILARITIES = (0.0, 1.0, 2.0, 4.0)
SIMILARITY_SCENES = 2
"""Number of scenes that the sheet shows at rising similarity."""

_CELL = (224, 168)
_LABEL = 22
_GAP = 6


@dataclass(frozen=True)
class Demo:
    """The outcome of `run`.

    Attributes:
        grid: The sheet.
        images: The single results.
        pixels_outside: Pixels of all results outside the blend zones, as read back from the files.
        pixels_changed: Those of them that differ from the photo; anything but 0 is a defect.
        seconds: How long it took.
    """

    grid: Path
    images: list[Path]
    pixels_outside: int
    pixels_changed: int
    seconds: float


def run(
    model: PaintByExample,
    out: Path,
    *,
    steps: int | None = None,
    progress: Callable[[str], Callback | None] = lambda label: None,
) -> Demo:
    """Paint every scene from a few seeds, and the first ones at rising similarity.

    Args:
        model: The bundled model: the sheet says of each exemplar's object whether that has seen it.
        out: Folder for `grid.png` and `<scene>-seed<k>.png`; made if missing.
        steps: Sampling steps of each edit; `None` takes the model's own.
        progress: Given a label of what is being painted, returns the callback for that edit.

    Raises:
        ValueError: The folder cannot be made or written to; then nothing is written.
    """
    start = time.perf_counter()
    check_makeable(out)
    rows, rising, results = [], [], []
    for number, scene in enumerate(load_scenes()):
        hole = scene.hole_mask[..., None] > 0.5
        given = [
            (f"{scene.name}: photo", scene.photo),
            ("hole", torch.where(hole, 0.5, scene.photo)),
            (f"exemplar, {'other pictures seen' if scene.seen else 'never seen'}", scene.exemplar),
        ]
        label = f"{scene.name}, {SEEDS} seeds"
        result = _paint(model, scene, steps, None, SEEDS, progress(label))
        results.append((scene, result))
        rows.append(given + [(f"seed {seed}", image) for seed, image in enumerate(result.images)])
        if number < SIMILARITY_SCENES:
            rising.append(given[1:])
            for similarity in SIMILARITIES:
                label = f"similarity {similarity:g}"
                callback = progress(f"{scene.name}, {label}")
                painted = _paint(model, scene, steps, similarity, 1, callback).images[0]
                rising[-1].append((label, painted))

    grid = out / "grid.png"
    names = [f"{scene.name}-seed{seed}.png" for scene, _ in results for seed in range(SEEDS)]
    images = [image for _, result in results for image in result.images]
    paths = [out / name for name in names]
    with made_folder(out), replacing_all([grid, *paths]) as (grid_part, *parts):
        write_image(grid_part, sheet([*rows, *rising]))
        for part, image in zip(parts, images, strict=True):
            write_image(part, image)

    pixels_outside = pixels_changed = 0
    for path, (scene, result) in zip(
        paths, [r for r in results for _ in range(SEEDS)], strict=True
    ):
        outside = result.region.photo_blend_mask == 0
        changed = (read_image(path) != scene.photo).any(-1)
        pixels_outside += int(outside.sum())
        pixels_changed += int((changed & outside).sum())
    return Demo(grid, paths, pixels_outside, pixels_changed, time.perf_counter() - start)


def _paint(
    model: PaintByExample,
    scene: Scene,
    steps: int | None,
    similarity: float | None,
    num_images: int,
    callback: Callback | None,
) -> EditResult:
    return edit(
        model,
        scene.photo,
        scene.hole_mask,
        scene.exemplar,
        steps=steps,
        similarity=similarity,
        num_images=num_images,
        exemplar_mask=scene.exemplar_mask,
        callback=callback,
    )


def sheet(rows: list[list[tuple[str, Tensor]]]) -> Tensor:
    """Labelled pictures on one sheet.

    Args:
        rows: Rows of label and picture, `(H, W, 3)` in [0, 1]; each is shrunk or enlarged to fit
            its cell.

    Returns:
        `(H, W, 3)` in [0, 1].
    """
    width, height = _CELL
    pitch = (width + _GAP, height + _LABEL + _GAP)
    columns = max(len(row) for row in rows)
    canvas = Image.new("RGB", (columns * pitch[0] + _GAP, len(rows) * pitch[1] + _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=14)
    for j, row in enumerate(rows):
        for i, (label, image) in enumerate(row):
            x, y = _GAP + i * pitch[0], _GAP + j * pitch[1]
            draw.text((x, y), label, "black", font)
            picture = Image.fromarray((image * 255).round().byte().numpy())
            scale = min(width / picture.width, height / picture.height)
            size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
            canvas.paste(picture.resize(size, Image.Resampling.LANCZOS), (x, y + _LABEL))
    return torch.from_numpy(np.array(canvas)).float() / 255
