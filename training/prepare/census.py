"""What a set of boxes is like, and what was left out of it: figures and a table of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from pbe_model.untrusted import shown
from training.data.index_format import PhotoBoxes
from training.prepare.folder import FolderCount

AREA_EDGES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
"""Limits between the classes of the area histogram, as shares of the photo."""
_LABELS = 10  # the most frequent are listed


@dataclass
class Census:
    """Figures of one index, gathered photo by photo.

    Attributes:
        photos: Number of photos.
        boxes: Number of boxes.
        areas: Number of boxes by area share, between `AREA_EDGES`.
        labels: Number of boxes by label.
    """

    photos: int = 0
    boxes: int = 0
    areas: np.ndarray = field(default_factory=lambda: np.zeros(len(AREA_EDGES) - 1, np.int64))
    labels: Counter[str] = field(default_factory=Counter)

    def add(self, photo: PhotoBoxes) -> None:
        """Count a photo and its boxes."""
        x0, y0, x1, y1 = np.asarray(photo.boxes).T
        shares = (x1 - x0) * (y1 - y0) / (photo.size[0] * photo.size[1])
        classes = np.searchsorted(AREA_EDGES[1:-1], shares, side="right")
        self.areas += np.bincount(classes, minlength=len(self.areas))
        self.labels.update(photo.labels)
        self.photos += 1
        self.boxes += len(photo.boxes)

    def as_dict(self) -> dict[str, Any]:
        """For `index.json`."""
        return {
            "photos": self.photos,
            "boxes": self.boxes,
            "boxes_a_photo": round(self.boxes / max(self.photos, 1), 3),
            "area_edges": AREA_EDGES,
            "area_counts": self.areas.tolist(),
            "labels": len(self.labels),
            "frequent_labels": dict(_by_frequency(self.labels)[:_LABELS]),
        }


def table(
    splits: dict[str, Census], left_out: dict[str, dict[str, int]], folder: FolderCount
) -> str:
    """A short table for people.

    Args:
        splits: Figures by name of the split.
        left_out: Counts by reason, under the headings to show them below.
        folder: Files of the folder of photos.
    """
    columns = list(splits.values())
    rows: list[tuple[str, list[str]]] = [
        ("", list(splits)),
        ("photos", [f"{c.photos:,}" for c in columns]),
        ("boxes", [f"{c.boxes:,}" for c in columns]),
        ("boxes a photo", [f"{c.boxes / max(c.photos, 1):.2f}" for c in columns]),
        ("labels", [f"{len(c.labels):,}" for c in columns]),
        ("boxes by share of the photo's area", []),
    ]
    for number, (low, high) in enumerate(pairwise(AREA_EDGES)):
        if any(c.areas[number] for c in columns):
            shares = [f"{100 * c.areas[number] / max(c.boxes, 1):.1f} %" for c in columns]
            rows.append((f"  {100 * low:.0f} to {100 * high:.0f} %", shares))
    together = sum((c.labels for c in columns), Counter())
    if frequent := [pair for pair in _by_frequency(together)[:_LABELS] if pair[0]]:
        rows.append(("most frequent labels", []))
        rows += [
            (f"  {shown(label, 40)}", [f"{c.labels[label]:,}" for c in columns])
            for label, _ in frequent
        ]
    for heading, counts in left_out.items():
        if counts:
            rows.append((heading, []))
            rows += [(f"  {reason}", [f"{count:,}"]) for reason, count in counts.items()]
    rows.append(("files in the folder of photos", [f"{folder.files:,}"]))
    rows += [(f"  {kind}", [f"{count:,}"]) for kind, count in folder.rows().items()]
    width = max(len(name) for name, _ in rows)
    lines = (f"{name:<{width}}" + "".join(f"{value:>14}" for value in row) for name, row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _by_frequency(labels: Counter[str]) -> list[tuple[str, int]]:
    """Ties in alphabetical order, whatever was counted first."""
    return sorted(labels.items(), key=lambda pair: (-pair[1], pair[0]))
