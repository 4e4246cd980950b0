"""Which photos there are when annotations mean the same one several times, and who is held out."""

from __future__ import annotations

import hashlib
import heapq
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from training.data.index_format import PhotoBoxes
from training.prepare.faults import Fault
from training.prepare.pieces import Piece

_HASHES = 2**64
_DOUBTFUL = "several annotations may mean the same photo"


def hash_of(path: str) -> int:
    """Of a path, even over 0 .. 2^64."""
    digest = hashlib.blake2b(path.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class NothingLeft(ValueError):
    """There is nothing to train on."""


@dataclass
class Photos:
    """The photos that pieces of work found fit, each once.

    Photos that several annotations surely mean have the boxes of all, the same box once. Of those
    that were only taken for the same photo none is used, as the boxes could be another's.

    Attributes:
        pieces: Files of the pieces.
        images: Folder of photos.
        keys: `key_of` of each photo that is used, uint64, in order.
        refused: What was taken for a photo that others mean too, and that photo.
    """

    pieces: list[Path]
    images: Path
    keys: np.ndarray = field(init=False)
    refused: list[tuple[str, str]] = field(default_factory=list, init=False)
    _settled: dict[int, PhotoBoxes | None] = field(default_factory=dict, init=False)
    _hashes: array[int] = field(init=False)

    def __post_init__(self) -> None:
        keys, self._hashes = array("Q"), array("Q")
        for path in self.pieces:
            names = [photo.path for photo in Piece.load(path).photos]
            keys.extend(map(self.key_of, names))
            self._hashes.extend(map(hash_of, names))
        self.keys, counts = np.unique(np.frombuffer(keys, np.uint64), return_counts=True)
        if repeated := set(self.keys[counts > 1].tolist()):
            self._settle(repeated)
            unused = [key for key, photo in self._settled.items() if photo is None]
            self.keys = np.setdiff1d(self.keys, np.array(unused, np.uint64))
            self._hashes = array("Q", (hash_of(photo.path) for photo in self._each()))

    def __len__(self) -> int:
        return len(self._hashes)

    def faults(self) -> list[Fault]:
        """A fault for each of `refused`."""
        return [Fault(name, _DOUBTFUL, photo) for name, photo in self.refused]

    def split(self, limit: int, *, held_out: bool) -> Iterator[PhotoBoxes]:
        """Photos whose hash is below `limit`, or the others, in the order of the pieces."""
        return self._each(lambda path: (hash_of(path) < limit) == held_out)

    def limit(self, val: float | None) -> int:
        """Photos whose hash is below it are held out.

        Args:
            val: A share below 1, or a number; `None` for one in a hundred, but at least eight, and
                of fewer than 40 photos a fifth.

        Raises:
            NothingLeft: No photo would be left to train on.
        """
        if val is None:
            val, number = 0.01, max(1, min(8, len(self) // 5))
        else:
            number = max(int(val), 1)  # a share holds out at least one
        if val and number >= len(self):
            raise NothingLeft(
                f"--val {val:g} of {len(self)} photos leaves none to train on; hold out fewer, "
                "or none with --val 0"
            )
        limit = heapq.nsmallest(number, self._hashes)[-1] + 1
        if val < 1:
            limit = max(limit, int(val * _HASHES)) if val else 0
        return limit

    def key_of(self, path: str) -> int:
        """The same hash for all ways to write the path of a photo."""
        if path.startswith("/") or "//" in path or "./" in path:
            path = os.path.relpath(self.images / path, self.images).replace(os.sep, "/")
        return hash_of(path)

    def _each(self, wanted: Callable[[str], bool] | None = None) -> Iterator[PhotoBoxes]:
        given = set()
        for path in self.pieces:
            for photo in Piece.load(path, None if self._settled else wanted).photos:
                found: PhotoBoxes | None = photo
                if self._settled and (key := self.key_of(photo.path)) in self._settled:
                    found = None if key in given else self._settled[key]
                    given.add(key)
                if found is not None and (wanted is None or wanted(found.path)):
                    yield found

    def _settle(self, repeated: set[int]) -> None:
        """What becomes of photos that are there several times."""
        claims: dict[int, list[tuple[PhotoBoxes, str]]] = {}
        for path in self.pieces:
            piece = Piece.load(path, lambda name: self.key_of(name) in repeated)
            for photo, guessed in zip(piece.photos, piece.guessed, strict=True):
                claims.setdefault(self.key_of(photo.path), []).append((photo, guessed))
        for key, claimed in claims.items():
            certain = [photo for photo, guessed in claimed if not guessed]
            if not certain and len({guessed for _, guessed in claimed}) == 1:
                certain = [photo for photo, _ in claimed]
                claimed = []
            self._settled[key] = _together(certain) if certain else None
            self.refused += [(guessed, photo.path) for photo, guessed in claimed if guessed]


def _together(photos: list[PhotoBoxes]) -> PhotoBoxes:
    """One photo with the boxes of all."""
    boxes = {
        (*box, label): None  # in order
        for photo in photos
        for box, label in zip(photo.boxes.tolist(), photo.labels, strict=True)
    }
    rows = np.array([box[:4] for box in boxes], np.int64)
    return replace(photos[0], boxes=rows, labels=[box[4] for box in boxes])
