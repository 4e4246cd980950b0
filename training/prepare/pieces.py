"""Finished pieces of work as files: what `prepare` finds again after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pbe_model.atomic import replacing
from pbe_model.untrusted import first_line, open_regular, printable, read_json
from training.data.index_format import PhotoBoxes
from training.prepare.faults import Faults

_MAX_PIECE = 2**33  # bytes: all annotations may be of one photo, and they are longer here


@dataclass
class Piece:
    """What became of some photos.

    Attributes:
        photos: Those that can be used, with their boxes.
        guessed: What annotations were taken to mean each of them, "" where there is no doubt.
        boxless: Paths of those without a box left.
        unusable: Path, kind and reason of those that cannot be used.
        faults: Annotations that were passed over.
        counts: Boxes by the reason that left them out, and other counts.
    """

    photos: list[PhotoBoxes] = field(default_factory=list)
    guessed: list[str] = field(default_factory=list)
    boxless: list[str] = field(default_factory=list)
    unusable: list[tuple[str, str, str]] = field(default_factory=list)
    faults: Faults = field(default_factory=Faults)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, photo: PhotoBoxes, guessed: str = "") -> None:
        """Append a photo that can be used."""
        self.photos.append(photo)
        self.guessed.append(guessed)

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
        try:
            piece = _from_json(stored)
        except ValueError as error:
            raise ValueError(
                f"'{printable(path)}' is damaged ({first_line(error)}); {remedy}"
            ) from error
        if wanted is not None:
            pairs = zip(piece.photos, piece.guessed, strict=True)
            kept = [pair for pair in pairs if wanted(pair[0].path)]
            piece.photos, piece.guessed = [p for p, _ in kept], [g for _, g in kept]
        return piece


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
        "guessed": piece.guessed,
        "boxless": piece.boxless,
        "unusable": piece.unusable,
        "faults": vars(piece.faults),
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


def _from_json(stored: dict[str, Any]) -> Piece:
    """Raises: ValueError: Something is missing, or of another type."""
    records, faults = stored.get("photos"), stored.get("faults")
    if not isinstance(records, list):
        raise ValueError("it has no list of photos")
    photos = [PhotoBoxes.from_json(record) for record in records]
    guessed, boxless = _texts(stored.get("guessed")), _texts(stored.get("boxless"))
    if len(guessed) != len(photos):
        raise ValueError("it has not as many guesses as photos")
    if not isinstance(faults, dict) or type(unlisted := faults.get("unlisted")) is not int:
        raise ValueError("it has no faults")
    return Piece(
        photos,
        guessed,
        boxless,
        [(a, b, c) for a, b, c in _rows(stored.get("unusable"), 3, "paths with reasons")],
        Faults(
            _counts(faults.get("counts")),
            [(a, b) for a, b in _rows(faults.get("listed"), 2, "faults")],
            unlisted,
        ),
        _counts(stored.get("counts")),
    )


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("it has no list of paths")
    return value


def _rows(value: object, length: int, name: str) -> list[list[str]]:
    if not isinstance(value, list) or not all(
        isinstance(row, list) and list(map(type, row)) == [str] * length for row in value
    ):
        raise ValueError(f"it has no list of {name}")
    return value


def _counts(value: object) -> Counter[str]:
    if not isinstance(value, dict) or not all(type(n) is int for n in value.values()):
        raise ValueError("it has no counts")
    return Counter(value)
