"""What readers of annotations have in common: what they yield, and how they read files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pbe_model.image_io import SUFFIXES
from pbe_model.untrusted import first_line, printable, read_bytes, shown

NO_FLAGS: frozenset[str] = frozenset()


class MarkedBox(NamedTuple):
    """A box as it was annotated, neither clipped nor filtered.

    Attributes:
        x0: Left, in units of the frame (see `Annotated`).
        y0: Top.
        x1: Right, exclusive.
        y1: Bottom, exclusive.
        label: Name of the class, "" if it has none.
        flags: What the annotators said of it: names out of `FLAGS`.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    label: str = ""
    flags: frozenset[str] = NO_FLAGS


FLAGS = ("group", "depiction", "inside", "occluded", "truncated", "crowd", "difficult")
"""Flags of boxes, over all formats."""


@dataclass(frozen=True, slots=True)
class Annotated:
    """A photo with its annotated boxes.

    Attributes:
        path: Relative to the folder of photos, with forward slashes.
        boxes: In the order of the annotations.
        frame: Width and height of the coordinates: (1, 1) where boxes are shares of the photo, the
            size that the annotations state, or `None` for pixels of the upright photo.
    """

    path: str
    boxes: list[MarkedBox]
    frame: tuple[float, float] | None = None


class Unusable(Exception):
    """A photo cannot be used; the message says why. It is listed, and nothing stops."""


@dataclass
class Reader(ABC):
    """One format of annotations.

    `entries` is a quick pass that says what there is; `read` does what takes time for one photo, in
    any process, so a reader pickles and holds nothing large.

    Attributes:
        images: Folder of photos.
        annotations: File or folder, as the format has it.
        total: Photos that `entries` will yield, or an estimate; `None` before it is known.
        left_out: Photos that `entries` passed over, by reason.
    """

    images: Path
    annotations: Path
    total: int | None = field(default=None, init=False)
    left_out: Counter[str] = field(default_factory=Counter, init=False)

    dropped_flags: ClassVar[frozenset[str]] = NO_FLAGS
    """Flags whose boxes are dropped unless one says otherwise."""

    def __post_init__(self) -> None:
        if not self.images.is_dir():
            raise ValueError(f"no folder of photos at '{self.images}'; check --images")
        if not self.annotations.exists():
            raise ValueError(f"no annotations at '{self.annotations}'; check --annotations")

    @property
    @abstractmethod
    def looked_for(self) -> str:
        """What `entries` looks for and where, for the sentence that says it found nothing."""

    @abstractmethod
    def entries(self) -> Iterator[Any]:
        """What `read` takes, a photo each, always in the same order.

        Raises:
            ValueError: Something malformed, by file and line.
        """

    def read(self, entry: Any) -> Annotated:
        """The boxes of one photo.

        Raises:
            ValueError: Something malformed, by file and line.
            Unusable: There is something wrong with this photo only.
        """
        return entry


MAX_ANNOTATIONS = 2**31
"""Bytes of a file that annotates a collection. This and the limit below are beyond any there is."""
MAX_OF_PHOTO = 2**24
"""Bytes of a text file that annotates one photo."""


def malformed(path: Path, number: int, line: str, expected: str) -> ValueError:
    """The error for a line (numbered from 1) that is not as expected."""
    return ValueError(
        f"line {number} of '{printable(path)}' ('{shown(line.strip(), 80)}') is not {expected}"
    )


def read_whole(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        ValueError: It cannot be read, or has more than `limit` bytes.
    """
    try:
        return read_bytes(path, limit)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read '{printable(path)}': {first_line(error)}") from error


def files_below(folder: Path, suffixes: tuple[str, ...] = tuple(SUFFIXES)) -> list[str]:
    """Files with one of the suffixes (lower case), relative, with forward slashes, sorted.

    Links are followed, but no folder is entered twice: they could lead around in circles.
    """
    found, entered = [], set()
    for base, folders, names in os.walk(folder, followlinks=True):
        stat = os.stat(base)
        if (place := (stat.st_dev, stat.st_ino)) in entered:
            folders.clear()
            continue
        entered.add(place)
        folders.sort()
        found += [
            (Path(base) / name).relative_to(folder).as_posix()
            for name in names
            if name.lower().endswith(suffixes) and not name.startswith(".")  # "._1.jpg" by macOS
        ]
    return sorted(found)
