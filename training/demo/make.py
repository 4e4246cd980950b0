"""The demo picture set, made from Debian packages: `pbe-train prepare demo`.

The bundled model has to be trainable from what any Debian mirror offers, so its photos are
composites (see `composite`): cut-outs with transparency from `tuxpaint-stamps-default` on crops of
wallpapers (see `sources`).

The bytes written do not depend on the number of processes, and an interrupted run goes on where it
stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pbe_model.atomic import replacing
from pbe_model.untrusted import read_json, shown
from training.prepare.workers import process_map

from .composite import Box, Composer, Picture
from .sources import (
    Source,
    fingerprint,
    load,
    prepare_sources,
    read_catalogue,
    save_once,
    unpack_packages,
)

CATALOGUE = Path(__file__).parent
_MAX_SETTINGS = 2**16  # bytes


def prepare_demo(
    out: Path,
    *,
    debs: Path | None = None,
    cache: Path | None = None,
    catalogue: Path = CATALOGUE,
    count: int = 24_000,
    pairs: int = 512,
    size: int = 128,
    seed: int = 0,
    processes: int = 2,
) -> None:
    """Make the whole demo picture set; existing files are kept, so a second call resumes.

    Writes `cutouts/*.png`, `backgrounds/*.jpg`, `train/images/*.jpg` with `train/boxes.jsonl`, and
    `val/photos/*.jpg`, `val/exemplars/*.jpg` with `val/boxes.jsonl` and `val/pairs.jsonl`. A line
    of boxes.jsonl is `{"image", "box": [x0, y0, x1, y1], "id", "group"}`; a picture with two
    objects has two lines. A line of pairs.jsonl is `{"photo", "exemplar", "box", "id", "group"}`.
    Paths are relative to `out`, boxes in pixels with x1 and y1 outside.

    Args:
        out: folder to write.
        debs: folder of already downloaded .deb files; without it `apt-get download` gets them.
        cache: where packages are downloaded and unpacked; `out/cache` by default.
        catalogue: folder with cutouts.tsv and backgrounds.tsv.
        count: training composites.
        pairs: validation pairs of a photo and another picture of the same held-out object.
        size: side of a composite in pixels.
        seed: everything random depends on it and on the composite's number only.
        processes: worker processes; the result does not depend on it.

    Raises:
        ValueError: packages cannot be had, or `out` was begun with another seed, size or catalogue.
    """
    out = Path(out)
    cutouts, backgrounds = read_catalogue(Path(catalogue))
    sources = cutouts + backgrounds
    _claim(out, {"seed": seed, "size": size, "catalogue": fingerprint(sources)})
    packages = sorted({source.package for source in sources})
    cache, debs = Path(cache or out / "cache"), debs and Path(debs)
    root = unpack_packages(packages, cache=cache, debs=debs)
    prepare_sources(root, out, sources)

    setup = partial(_Writer, out, cutouts, backgrounds, size=size, seed=seed)
    with process_map(processes, partial(_start, setup), preload=__name__) as run:
        boxes = list(tqdm(run(_write_composite, range(count)), desc="train", total=count))
        held_out = list(tqdm(run(_write_pair, range(pairs)), desc="val", total=pairs))
    _write_lines(out / "train/boxes.jsonl", [record for records in boxes for record in records])
    _write_lines(out / "val/pairs.jsonl", held_out)
    _write_lines(
        out / "val/boxes.jsonl",
        [{"image": r["photo"], **{k: r[k] for k in ("box", "id", "group")}} for r in held_out],
    )


class _Writer:
    """A worker's state: the prepared pictures in memory, and where composites go."""

    def __init__(
        self, out: Path, cutouts: list[Source], backgrounds: list[Source], *, size: int, seed: int
    ) -> None:
        self.out = out

        def composer(split: str) -> Composer:
            return Composer(
                cutouts=[load(s, out) for s in cutouts if s.split == split],
                backgrounds=[load(s, out) for s in backgrounds if s.split == split],
                size=size,
                seed=seed,
            )

        self.train, self.val = composer("train"), composer("val")

    def composite(self, index: int) -> list[dict]:
        made = self.train.composite(index)
        name = f"train/images/{index:05d}.jpg"
        save_once(self.out / name, to_image(made.photo))
        return [_record(cutout, box, image=name) for cutout, box in made.objects]

    def pair(self, index: int) -> dict:
        made = self.val.pair(index)
        photo, exemplar = f"val/photos/{index:03d}.jpg", f"val/exemplars/{index:03d}.jpg"
        save_once(self.out / photo, to_image(made.photo))
        save_once(self.out / exemplar, to_image(made.exemplar))
        return _record(*made.objects[0], photo=photo, exemplar=exemplar)


def _record(cutout: Picture, box: Box, **files: str) -> dict:
    return {**files, "box": box, "id": cutout.id, "group": cutout.group}


_writer: _Writer | None = None  # one a process: the pictures are read once


def _start(setup: Callable[[], _Writer]) -> None:
    global _writer
    _writer = setup()


def _write_composite(index: int) -> list[dict]:
    assert _writer is not None
    return _writer.composite(index)


def _write_pair(index: int) -> dict:
    assert _writer is not None
    return _writer.pair(index)


def to_image(pixels: np.ndarray) -> Image.Image:
    """From `(H, W, 3)` in [0, 1] to 8 bits."""
    return Image.fromarray(np.rint(pixels * 255).clip(0, 255).astype(np.uint8))


def _write_lines(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def _claim(out: Path, settings: dict) -> None:
    """Refuse to mix two sets in one folder: kept files would not fit the new boxes."""
    path = out / "demo.json"
    if path.exists():
        remedy = "give another folder, or delete this one"
        found = read_json(path, _MAX_SETTINGS, remedy)
        if found != settings:
            raise ValueError(f"{out} was begun with {shown(found)}, not with {settings}; {remedy}.")
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings), encoding="utf-8")
