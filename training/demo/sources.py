"""The pictures behind the demo set: a catalogue of files inside Debian and npm packages.

`demo/cutouts.tsv` and `demo/backgrounds.tsv` list the pictures, chosen by eye (photographs and, of
objects, rendered pictures), with split, author, licence and the group of near-duplicates they
belong to. No group is in both splits. The packages' pictures are scaled once.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from pbe_model.untrusted import first_line, open_regular
from training.data.decode import photo_header

from .composite import Picture, alpha_box
from .packages import folder_name

CUTOUT_SIDE = 192  # long side of a prepared cut-out
BACKGROUND_SIDE = 640  # short side of a prepared background


@dataclass(frozen=True, kw_only=True)
class Source:
    """One line of a catalogue: a picture inside a package.

    Attributes:
        id: unique name, also the stem of the prepared file.
        split: "train" or "val".
        package: the Debian package, or `npm:name@version`.
        path: the file inside the package.
        licence: SPDX identifier.
        author: whom to credit.
        group: near-duplicates share it (cut-outs only).
    """

    id: str
    split: str
    package: str
    path: str
    licence: str
    author: str
    group: str = ""

    @property
    def kind(self) -> str:
        """Only cut-outs have groups."""
        return "cutout" if self.group else "background"

    @property
    def prepared(self) -> str:
        """The scaled file inside the demo folder; only cut-outs have groups, and transparency."""
        return f"cutouts/{self.id}.png" if self.group else f"backgrounds/{self.id}.jpg"


def read_catalogue(folder: Path) -> tuple[list[Source], list[Source]]:
    """Read cutouts.tsv and backgrounds.tsv of a folder.

    Raises:
        ValueError: a name is listed twice, or a group of near-duplicates is in both splits.
    """

    def read(name: str) -> list[Source]:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            return [Source(**row) for row in rows]

    cutouts, backgrounds = read("cutouts.tsv"), read("backgrounds.tsv")
    for sources in (cutouts, backgrounds):
        ids: set[str] = set()
        splits: dict[str, str] = {}
        for source in sources:
            if source.id in ids:
                raise ValueError(f"{folder} lists the name {source.id!r} twice; rename one.")
            ids.add(source.id)
            if source.group and splits.setdefault(source.group, source.split) != source.split:
                raise ValueError(
                    f"{folder} has group {source.group!r} in both splits ({source.id} is in "
                    f"{source.split}); near-duplicates belong in one."
                )
    return cutouts, backgrounds


def prepare_sources(root: Path, out: Path, sources: list[Source]) -> None:
    """Scale the chosen pictures once, into `out/cutouts` and `out/backgrounds`.

    Args:
        root: what `unpack_packages` returned.
        out: the demo folder.
        sources: cut-outs are trimmed to the object and get a long side of at most 192 pixels,
            backgrounds a short side of at most 640.

    Raises:
        ValueError: the package no longer holds a listed picture, or a damaged one.
    """
    for source in tqdm(sources, desc="scale"):
        target = out / source.prepared
        if target.exists():
            continue
        path = root / folder_name(source.package) / source.path
        if not path.is_file():
            raise ValueError(
                f"{source.package} holds no {source.path}; use the package of Debian 12 (bookworm) "
                f"or the npm package as listed, or take {source.id!r} out of the catalogue."
            )
        image = read_picture(path, "unpack the package again")
        save_once(target, (shrink_cutout if source.group else shrink_background)(image))


def shrink_cutout(image: Image.Image) -> Image.Image:
    """Trim a cut-out to its object and scale its long side to at most 192 pixels.

    Pillow resizes RGBA premultiplied, so the colour of transparent pixels leaves no halo.
    """
    rgba = image.convert("RGBA")
    rgba = rgba.crop(alpha_box(np.asarray(rgba)[..., 3] / np.float32(255)))
    return _shrink(rgba, CUTOUT_SIDE / max(rgba.size))


def shrink_background(image: Image.Image) -> Image.Image:
    """Scale a photograph's short side to at most 640 pixels."""
    return _shrink(image.convert("RGB"), BACKGROUND_SIDE / min(image.size))


def _shrink(image: Image.Image, scale: float) -> Image.Image:
    scale = min(scale, 1.0)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BOX)


def load(source: Source, out: Path) -> Picture:
    """Read a scaled picture of the demo folder.

    Raises:
        ValueError: It is damaged, or not what `prepare_sources` makes.
    """
    path, remedy = out / source.prepared, "delete it and start the same command again"
    image, mode = read_picture(path, remedy), "RGBA" if source.group else "RGB"
    if image.mode != mode:
        raise ValueError(f"{path} has the mode {image.mode}, not {mode}; {remedy}.")
    return Picture(id=source.id, group=source.group, pixels=np.asarray(image))


def read_picture(path: Path, remedy: str) -> Image.Image:
    try:
        with open_regular(path) as file, photo_header(file) as image:
            # JPEG only: decode 4096 pixels and more at a fraction of their size.
            image.draft("RGB", (2 * BACKGROUND_SIDE, 2 * BACKGROUND_SIDE))
            image.load()
            return image
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({first_line(error)}); {remedy}.") from error


def fingerprint(sources: list[Source]) -> str:
    """Of what decides the pixels; credits may be corrected later."""
    rows = [(s.id, s.group, s.split, s.package, s.path) for s in sources]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def save_once(path: Path, image: Image.Image, *, quality: int = 95) -> None:
    """Write a PNG, or a JPEG without chroma subsampling, whole or not at all; keep what exists."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    if path.suffix == ".png":
        image.save(temporary, format="PNG")
    else:
        image.save(temporary, format="JPEG", quality=quality, subsampling=0)
    temporary.rename(path)
