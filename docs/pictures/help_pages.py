"""Pictures of the nodes' help pages, from runs of those nodes.

A page whose picture is none of those composed here shows the node itself, as it looks when new.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw

from pbe_model import PaintByExample
from pbe_model.editing.crop_plan import plan_region
from pbe_model.editing.crop_settings import CropSettings
from pbe_model.editing.exemplar_image import Fit, preprocess
from pbe_model.scenes import load_scenes
from tests.nodes.host import Host, Prompt

from .drawing import captioned, show_hole, to_hole, to_picture
from .hosting import ROOT, GraphError, Tapped, new_node
from .jpeg import write_jpeg
from .marks import SCENE_NODE, model_mark, scene_mark
from .page import Shot, of_nodes
from .report import Report

PAGES = ROOT / "nodes/web/docs"
IMAGES = PAGES / "images"

Row = list[tuple[str, Image.Image]]
"""Captions and pictures."""

_CELL = (200, 150)
_SMALL_CELL = (160, 120)
_SEED = 7
_EDITED = "dune"
_WIDE_EXEMPLAR = "meadow"


def names() -> list[str]:
    """The pictures that the help pages show, without folder and suffix."""
    pages = [page.read_text(encoding="utf-8") for page in sorted(PAGES.glob("*.md"))]
    shown = [name for page in pages for name in re.findall(r"\]\(images/(\w+)\.jpg\)", page)]
    return list(dict.fromkeys(shown))


def make(host: Host, report: Report) -> None:
    """Make the pictures that are composed of what nodes give."""
    for name, (compose, scenes) in _COMPOSED.items():
        path = IMAGES / f"{name}.jpg"
        marks = {"scenes": " ".join(map(scene_mark, scenes)), "model": model_mark()}
        try:
            report.made(path, write_jpeg(path, compose(host), marks if scenes else {}))
        except GraphError as error:
            report.failed(f"the picture of {name} could not be made: {error}")


def shots() -> list[Shot]:
    """The pictures that show nodes as they look in the page."""
    return [
        _SAVED_EXEMPLARS
        if name == "PBESavedExemplars"
        else of_nodes(IMAGES / f"{name}.jpg", [(name, (0, 0))], width=_ONE_NODE)
        for name in names()
        if name not in _COMPOSED
    ]


_ONE_NODE = 380
_SAVED_EXEMPLARS = of_nodes(
    IMAGES / "PBESavedExemplars.jpg",
    [
        ("PBEExemplarEncoder", (0, 0)),
        ("PBESaveExemplar", (330, 0)),
        ("PBELoadExemplar", (330, 170)),
    ],
    [(0, 0, 1, 0), (0, 1, 1, 1)],
    width=660,
)


# ---- what nodes give ----------------------------------------------------------------------------


def _example_inputs(host: Host) -> Image.Image:
    """All scenes, as the node gives them."""
    cells: Row = []
    for scene in load_scenes():
        tapped = Tapped({"inputs": new_node(host, SCENE_NODE, scene=scene.name)})
        taps = [tapped.image(["inputs", 0]), tapped.mask(["inputs", 1])]
        taps.append(tapped.image(["inputs", 2]))
        pixels = tapped.run(host)
        photo, mask, exemplar = (pixels[tap][0] for tap in taps)
        cells.append((scene.name, show_hole(to_picture(photo), to_hole(mask))))
        cells.append(("", to_picture(exemplar)))
    middle = (len(cells) + 3) // 4 * 2
    return captioned([cells[:middle], cells[middle:]], _SMALL_CELL)


def _exemplar_encoder(host: Host) -> Image.Image:
    """What the encoder makes of a wide picture before it looks at it."""
    del host  # the node shows nothing of this: it is its own preprocessing, called directly
    (exemplar,) = (scene.exemplar for scene in load_scenes() if scene.name == _WIDE_EXEMPLAR)
    height, width = exemplar.shape[:2]
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    ellipse = (x.square() + y.square() < 0.9).float()

    def seen(fit: Fit, mask: torch.Tensor | None = None) -> Image.Image:
        square = preprocess(exemplar, _CELL[1], fit=fit, exemplar_mask=mask)
        return to_picture((square.permute(1, 2, 0) * 255).round().byte().numpy())

    given = to_picture((exemplar * 255).round().byte().numpy())
    fits: tuple[Fit, ...] = ("squash", "crop", "pad")
    row = [("exemplar", given), *((fit, seen(fit)) for fit in fits)]
    return captioned([[*row, ("exemplar mask, pad", seen("pad", ellipse))]], _CELL)


def _inpaint_sampler(host: Host) -> Image.Image:
    """An edit from its inputs to each of its outputs that can be seen."""
    tapped = Tapped(_edit(host))
    taps = {
        "photo": tapped.image(["inputs", 0]),
        "mask": tapped.mask(["inputs", 1]),
        "exemplar": tapped.image(["inputs", 2]),
        "cropped: what it painted": tapped.image(["sampler", 2]),
        "blend mask": tapped.mask(["sampler", 3]),
        "image": tapped.image(["sampler", 0]),
    }
    pixels = tapped.run(host)
    shown = {caption: pixels[tap][0] for caption, tap in taps.items()}
    hole = to_hole(shown.pop("mask"))
    photo = show_hole(to_picture(shown.pop("photo")), hole)
    ImageDraw.Draw(photo).rectangle(_crop_box(hole), outline="red", width=3)
    row = [("photo, mask and crop", photo)]
    return captioned([row + [(name, to_picture(found)) for name, found in shown.items()]], _CELL)


def _crop_box(hole: Image.Image) -> tuple[int, int, int, int]:
    """The part of the photo that the sampler shows the bundled model."""
    config = PaintByExample.from_checkpoint().config
    settings = CropSettings(resolution=config.resolution, multiple=config.size_multiple)
    return plan_region(torch.from_numpy(np.asarray(hole) / np.float32(255)), settings).box


def _stitch(host: Host) -> Image.Image:
    """A painted crop that other nodes turn grey and enlarge, put back."""
    tapped = Tapped(
        _edit(host)
        | {
            "red": new_node(host, "ImageToMask", image=["sampler", 2], channel="red"),
            "grey": new_node(host, "MaskToImage", mask=["red", 0]),
            "large": new_node(host, "ImageScaleBy", image=["grey", 0], scale_by=4.0),
            "stitch": new_node(host, "PBEStitch", stitch=["sampler", 4], image=["large", 0]),
        }
    )
    taps = {
        "cropped": tapped.image(["sampler", 2]),
        "retouched: turned grey, enlarged": tapped.image(["large", 0]),
        "stitched": tapped.image(["stitch", 0]),
    }
    pixels = tapped.run(host)
    row = [(caption, to_picture(pixels[tap][0])) for caption, tap in taps.items()]
    return captioned([row], (220, 165))


def _edit(host: Host) -> Prompt:
    """The basic edit with the bundled model."""
    parts = {"model": ["loader", 0], "vae": ["loader", 2]}
    conditions = {"positive": ["encoder", 0], "negative": ["encoder", 1]}
    given = {"image": ["inputs", 0], "mask": ["inputs", 1], "seed": _SEED}
    return {
        "loader": new_node(host, "PBELoader"),
        "inputs": new_node(host, SCENE_NODE, scene=_EDITED),
        "encoder": new_node(
            host, "PBEExemplarEncoder", encoder=["loader", 1], exemplar=["inputs", 2]
        ),
        "sampler": new_node(host, "PBEInpaintSampler", **parts, **conditions, **given),
    }


def _mask_augmenter(host: Host) -> Image.Image:
    """What becomes of a mask with an island and a stray dot."""
    folder = host.base / "input"
    folder.mkdir(exist_ok=True)
    _drawn_mask().save(folder / "drawn.png")
    tapped = Tapped({"mask": new_node(host, "LoadImageMask", image="drawn.png", channel="red")})
    taps = {"mask": tapped.mask(["mask", 0])}
    clean = {"fill_holes": True, "drop_specks": 50}
    for caption, settings in {
        "drop specks, fill": clean,
        "box": {"shape": "box", **clean},
        "hull": {"shape": "hull", **clean},
        "bezier, seed 1": {"shape": "bezier", "seed": 1, **clean},
        "bezier, seed 2": {"shape": "bezier", "seed": 2, **clean},
        "expand 12": {"expand": 12, **clean},
        "feather 12": {"feather": 12, "drop_specks": 50},
    }.items():
        node = new_node(host, "PBEMaskAugmenter", mask=["mask", 0], **settings)
        tapped.prompt[caption] = node
        taps[caption] = tapped.mask([caption, 0])
    pixels = tapped.run(host)
    cells = [(caption, to_picture(pixels[tap][0])) for caption, tap in taps.items()]
    return captioned([cells[:4], cells[4:]], _SMALL_CELL)


def _drawn_mask() -> Image.Image:
    mask = Image.new("L", _SMALL_CELL)
    draw = ImageDraw.Draw(mask)
    for box, level in (
        ((72, 32, 111, 54), 255),
        ((48, 48, 95, 79), 255),
        ((64, 64, 71, 71), 0),
        ((16, 12, 18, 14), 255),
    ):
        draw.rectangle(box, level)
    return mask


_COMPOSED: dict[str, tuple[Callable[[Host], Image.Image], list[str]]] = {
    "PBEExampleInputs": (_example_inputs, [scene.name for scene in load_scenes()]),
    "PBEExemplarEncoder": (_exemplar_encoder, [_WIDE_EXEMPLAR]),
    "PBEInpaintSampler": (_inpaint_sampler, [_EDITED]),
    "PBEStitch": (_stitch, [_EDITED]),
    "PBEMaskAugmenter": (_mask_augmenter, []),
}
"""What composes a picture, and the scenes that it shows."""
