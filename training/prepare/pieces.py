"""Finished pieces of work as files: what `prepare` finds again after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pbe_model.atomic import replacing
from pbe_model.untrusted import first_line, open_regular, printable, read_json
from training.data.index_format import PhotoBoxes

_MAX_PIECE = 2**33  # bytes: all annotations may be of one photo, and they are longer here


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

        Raises:
            ValueError: It is damaged.
        """
        remedy = f"delete the folder '{printable(path.parent)}' and start the same command again"
        stored = read_json(path, _MAX_PIECE, remedy)
        records, pairs, counts = (stored.get(name) for name in ("photos", "unusable", "counts"))
        try:
            if not isinstance(records, list):
                raise ValueError("it has no list of photos")
            photos = [PhotoBoxes.from_json(record) for record in records]
            if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
                raise ValueError("it has no list of paths with reasons")
            if not isinstance(counts, dict) or not all(type(n) is int for n in counts.values()):
                raise ValueError("it has no counts")
        except ValueError as error:
            raise ValueError(
                f"'{printable(path)}' is damaged ({first_line(error)}); {remedy}"
            ) from error
        return cls(
            [photo for photo in photos if wanted is None or wanted(photo.path)],
            [(name, reason) for name, reason in pairs],
            Counter(counts),
        )


def finish(path: Path, inputs: Iterable[str], work: Callable[[], Piece]) -> Path:
    """Do a piece of work, unless `path` says that it has been done for the same inputs.

    Args:
        path: File of the piece.
        inputs: What the work starts from, by name.
        work: Does it.
    """
    digest = hashlib.sha256("\0".join(inputs).encode("utf-8", "surrogatepass")).hexdigest()
    if _first_bytes(path, 100).startswith(f'{{"inputs": "{digest}",\n'.encode()):
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


def _first_bytes(path: Path, count: int) -> bytes:
    """None of what is not there, and of what no piece is written to."""
    try:
        with open_regular(path) as file:
            return file.read(count)
    except (OSError, ValueError):
        return b""


def _is_pair(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
