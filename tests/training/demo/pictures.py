"""A demo set of a few made-up pictures."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np


def write_objects(root: Path, cutouts: int = 3, backgrounds: int = 3) -> Path:
    """Coloured ellipses with transparency and soft noises, all of the training split."""
    rng = np.random.default_rng(0)
    lines = []
    for folder in ("cutouts", "backgrounds"):
        (root / folder).mkdir(parents=True)
    for number in range(cutouts):
        picture = np.zeros((40 + 10 * number, 60, 4), np.uint8)
        centre, axes = (30, 20 + 5 * number), (28 - 4 * number, 15)
        colour = (*rng.integers(0, 256, 3).tolist(), 255)
        cv2.ellipse(picture, centre, axes, 0, 0, 360, colour, thickness=-1)
        assert cv2.imwrite(str(root / f"cutouts/{number}.png"), picture)
        lines.append({"file": f"cutouts/{number}.png", "kind": "cutout", "group": str(number)})
    for number in range(backgrounds):
        noise = rng.integers(0, 256, (6, 9, 3)).astype(np.uint8)
        picture = cv2.resize(noise, (96, 64), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(root / f"backgrounds/{number}.jpg"), picture)
        lines.append({"file": f"backgrounds/{number}.jpg", "kind": "background"})
    (root / "objects.jsonl").write_text(
        "".join(json.dumps({**line, "split": "train"}) + "\n" for line in lines)
    )
    return root
