"""The demo picture set, made from Debian and npm packages: `pbe-train prepare demo`.

The bundled model has to be trainable from what any mirror offers, so its photos are composites (see
`composite`): cut-outs with transparency on crops of photographs (see `sources`).

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

from .composite import SEEN, VAL, Box, Composer, Picture
from .pack import pack
from .packages import unpack_packages
from .sources import Source, fingerprint, load, prepare_sources, read_catalogue, save_once

CATALOGUE = Path(__file__).parent
_MAX_SETTINGS = 2**16  # bytes
_EXEMPLAR_QUALITY = 90  # nothing is measured on their pixels
_STREAMS = {"val": VAL, "seen": SEEN}


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
    archive: Path | None = None,
) -> None:
    """Make the whole demo picture set; existing files are kept, so a second call resumes.

    Writes `cutouts/*.png` and `backgrounds/*.jpg` with `objects.jsonl`, `train/images/*.jpg` with
    `train/boxes.jsonl`, and `val/photos/*.jpg`, `val/exemplars/*.jpg` with `val/boxes.jsonl` and
    `val/pairs.jsonl`; `seen/` is laid out as `val/`. A line of objects.jsonl is `{"file", "kind":
    "cutout" or "background", "split", "group"}`. A line of boxes.jsonl is `{"image", "box": [x0,
    y0, x1, y1], "id", "group"}`; a picture with two objects has two lines. A line of pairs.jsonl
    is `{"photo", "exemplar", "box", "id", "group"}`. Paths are relative to `out`, boxes in pixels
    with x1 and y1 outside.

    `val` shows objects of the val split, never trained on, and `seen` those of the train split;
    both before backgrounds of the val split.

    Args:
        out: folder to write.
        debs: folder of already downloaded .deb and .tgz files; without it `apt-get download` and
            `npm pack` get them.
        cache: where packages are downloaded and unpacked; `out/cache` by default.
        catalogue: folder with cutouts.tsv and backgrounds.tsv.
        count: training composites; 0 for a trainer that composes on its own.
        pairs: pairs of a photo and another picture of the same object, in `val` and in `seen`.
        size: side of a composite in pixels.
        seed: everything random depends on it and on the composite's number only.
        processes: worker processes; the result does not depend on it.
        archive: also write all but the training composites into this .tar file (see `pack`).

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
    _write_lines(out / "objects.jsonl", [_entry(source) for source in sources])

    setup = partial(_Writer, out, cutouts, backgrounds, size=size, seed=seed)
    with process_map(processes, partial(_start, setup), preload=__name__) as run:
        boxes = list(tqdm(run(_write_composite, range(count)), desc="train", total=count))
        for name in _STREAMS:
            work = run(partial(_write_pair, name), range(pairs))
            _write_pairs(out / name, list(tqdm(work, desc=name, total=pairs)))
    _write_lines(out / "train/boxes.jsonl", [record for records in boxes for record in records])
    if archive is not None:
        pack(out, archive)


def _entry(source: Source) -> dict:
    return {"file": source.prepared, "kind": source.kind} | {
        key: getattr(source, key) for key in ("split", "group")
    }


def _write_pairs(folder: Path, pairs: list[dict]) -> None:
    _write_lines(folder / "pairs.jsonl", pairs)
    boxes = [{"image": r["photo"], **{k: r[k] for k in ("box", "id", "group")}} for r in pairs]
    _write_lines(folder / "boxes.jsonl", boxes)


class _Writer:
    """A worker's state: the prepared pictures in memory, and where composites go."""

    def __init__(
        self, out: Path, cutouts: list[Source], backgrounds: list[Source], *, size: int, seed: int
    ) -> None:
        self.out = out

        def pictures(sources: list[Source], split: str) -> list[Picture]:
            return [load(source, out) for source in sources if source.split == split]

        known, held_out = pictures(cutouts, "train"), pictures(cutouts, "val")
        common, rest = pictures(backgrounds, "train"), pictures(backgrounds, "val")
        self.train = Composer(cutouts=known, backgrounds=common, size=size, seed=seed)
        self.pairs = {
            "val": Composer(cutouts=held_out, backgrounds=rest, size=size, seed=seed),
            "seen": Composer(cutouts=known, backgrounds=rest, size=size, seed=seed),
        }

    def composite(self, index: int) -> list[dict]:
        made = self.train.composite(index)
        name = f"train/images/{index:05d}.jpg"
        save_once(self.out / name, to_image(made.photo))
        return [_record(cutout, box, image=name) for cutout, box in made.objects]

    def pair(self, name: str, index: int) -> dict:
        made = self.pairs[name].pair(index, stream=_STREAMS[name])
        photo, exemplar = f"{name}/photos/{index:03d}.jpg", f"{name}/exemplars/{index:03d}.jpg"
        save_once(self.out / photo, to_image(made.photo))
        save_once(self.out / exemplar, to_image(made.exemplar), quality=_EXEMPLAR_QUALITY)
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


def _write_pair(name: str, index: int) -> dict:
    assert _writer is not None
    return _writer.pair(name, index)


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
