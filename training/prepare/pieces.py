"""Finished pieces of work as files: what `prepare` finds again after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pbe_model.files import replacing
from training.index import PhotoBoxes


@dataclass
class Piece:
    """What became of some photos.

    Attributes:
        photos: Those that can be used, with their boxes.
        unusable: Path and reason of those that cannot.
        counts: Boxes by the reason that left them out, and other counts.
    """

    photos: list[PhotoBoxes] = field(default_factory=list)
    unusable: list[tuple[str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def load(cls, path: Path, wanted: Callable[[str], bool] | None = None) -> Piece:
        """Read a piece that `finish` wrote.

        Args:
            path: Its file.
            wanted: Given the path of a photo, whether to take it; by default all are.
        """
        stored = json.loads(path.read_text(encoding="utf-8"))
        photos = [
            PhotoBoxes(**{**photo, "size": tuple(photo["size"]), "boxes": np.array(photo["boxes"])})
            for photo in stored["photos"]
            if wanted is None or wanted(photo["path"])
        ]
        unusable = [(path, reason) for path, reason in stored["unusable"]]
        return cls(photos, unusable, Counter(stored["counts"]))


def finish(path: Path, inputs: Iterable[str], work: Callable[[], Piece]) -> Path:
    """Do a piece of work, unless `path` says that it has been done for the same inputs.

    Args:
        path: File of the piece.
        inputs: What the work starts from, by name.
        work: Does it.
    """
    digest = hashlib.sha256("\0".join(inputs).encode("utf-8", "surrogateescape")).hexdigest()
    if path.exists():
        with path.open(encoding="utf-8") as file:
            if file.readline().strip() == f'{{"inputs": "{digest}",':
                return path
    piece = work()
    names = ("path", "size", "labels", "shard", "offset", "length")
    stored = {
        "photos": [
            {**{name: getattr(photo, name) for name in names}, "boxes": photo.boxes.tolist()}
            for photo in piece.photos
        ],
        "unusable": piece.unusable,
        "counts": piece.counts,
    }
    with replacing(path) as part:
        text = json.dumps(stored, separators=(",", ":"))
        part.write_text(f'{{"inputs": "{digest}",\n{text[1:]}', encoding="utf-8")
    return path
