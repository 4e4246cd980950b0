"""What readers of annotations have in common: what they yield, and how they read text."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pbe_model.image_io import SUFFIXES

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


def malformed(path: Path, number: int, line: str, expected: str) -> ValueError:
    """The error for a line (numbered from 1) that is not as expected."""
    return ValueError(f"line {number} of '{path}' ({line.strip()[:80]!r}) is not {expected}")


def read_text(path: Path) -> str:
    """A whole text file in UTF-8, with or without a byte order mark, line ends unified.

    Raises:
        ValueError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8 ({error.reason}); save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"cannot read '{path}': {error.strerror}") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a text file that are not blank, stripped, numbered from 1."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line := line.strip():
            yield number, line


def files_below(folder: Path, suffixes: tuple[str, ...] = tuple(SUFFIXES)) -> list[str]:
    """Files with one of the suffixes (lower case), relative, with forward slashes, sorted."""
    found = [
        (Path(base) / name).relative_to(folder).as_posix()
        for base, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(suffixes) and not name.startswith(".")  # "._1.jpg" by macOS
    ]
    return sorted(found)
