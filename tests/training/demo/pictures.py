"""A demo set of a few made-up pictures."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np


def write_objects(root: Path, cutouts: int = 3, backgrounds: int = 3, held_out: int = 0) -> Path:
    """Coloured ellipses with transparency and soft noises, the last `held_out` of both in val."""
    rng = np.random.default_rng(0)
    lines = []
    for folder in ("cutouts", "backgrounds"):
        (root / folder).mkdir(parents=True)
    for number in range(cutouts + held_out):
        picture = np.zeros((40 + 10 * number, 60, 4), np.uint8)
        centre, axes = (30, 20 + 5 * number), (28 - 4 * (number % 4), 15)
        colour = (*rng.integers(0, 256, 3).tolist(), 255)
        cv2.ellipse(picture, centre, axes, 0, 0, 360, colour, thickness=-1)
        assert cv2.imwrite(str(root / f"cutouts/{number}.png"), picture)
        line = {"file": f"cutouts/{number}.png", "kind": "cutout", "group": str(number)}
        lines.append({**line, "split": "train" if number < cutouts else "val"})
    for number in range(backgrounds + held_out):
        noise = rng.integers(0, 256, (6, 9, 3)).astype(np.uint8)
        picture = cv2.resize(noise, (96, 64), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(root / f"backgrounds/{number}.jpg"), picture)
        split = "train" if number < backgrounds else "val"
        lines.append({"file": f"backgrounds/{number}.jpg", "kind": "background", "split": split})
    (root / "objects.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root
