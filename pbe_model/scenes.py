"""The bundled scenes: photos with a hole, and what to paint there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .image_io import read_image, read_mask

SCENES = Path(__file__).parent / "assets" / "scenes"


@dataclass(frozen=True)
class Scene:
    """A bundled photo with a hole, and what to paint there.

    Attributes:
        name: Short, fit for a file name.
        description: What the edit shows, in words.
        seen: Whether the bundled model was trained on pictures of the exemplar's object; not on
            the exemplar, nor on the photo.
        photo: `(H, W, 3)` in [0, 1].
        hole_mask: `(H, W)`, 1 = repaint.
        exemplar: `(h, w, 3)` in [0, 1].
        exemplar_mask: `(h, w)`, 1 = belongs to the object; `None` if the whole exemplar does.
    """

    name: str
    description: str
    seen: bool
    photo: Tensor
    hole_mask: Tensor
    exemplar: Tensor
    exemplar_mask: Tensor | None


def load_scenes() -> list[Scene]:
    """The bundled scenes; sources and licences are in `assets/scenes/scenes.json`."""
    entries = json.loads((SCENES / "scenes.json").read_text(encoding="utf-8"))["scenes"]
    return [
        Scene(
            name=entry["name"],
            description=entry["description"],
            seen=entry["seen"],
            photo=read_image(SCENES / entry["photo"]["file"]),
            hole_mask=read_mask(SCENES / entry["hole_mask"]["file"]),
            exemplar=read_image(SCENES / entry["exemplar"]["file"]),
            exemplar_mask=read_mask(SCENES / entry["exemplar_mask"]["file"])
            if "exemplar_mask" in entry
            else None,
        )
        for entry in entries
    ]
