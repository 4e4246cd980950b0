"""What readers of annotations have in common: what they yield, and how they report faults."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pbe_model.untrusted import first_line
from training.prepare.faults import Fault, Faults

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
        faults: Annotations of this photo that were passed over.
        guessed: Where it is in doubt that the photo is meant: what it was taken for. Of several
            that were taken for the same photo none is used.
    """

    path: str
    boxes: list[MarkedBox]
    frame: tuple[float, float] | None = None
    faults: tuple[Fault, ...] = ()
    guessed: str = ""


class Unusable(Exception):
    """A photo, or all that annotates it, cannot be used. It is listed, and nothing stops.

    Args:
        kind: What is wrong, in words that are the same for all of its kind.
        detail: The offending value.
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail

    def __str__(self) -> str:
        return Fault("", self.kind, self.detail).reason


@dataclass
class Reader(ABC):
    """One format of annotations.

    `entries` is a quick pass that says what there is; `read` does what takes time for one photo, in
    any process, so a reader pickles and holds nothing large. What is wrong with one annotation or
    one photo is reported, and nothing stops: only what leaves nothing to read is an error.

    Attributes:
        images: Folder of photos.
        annotations: File or folder, as the format has it.
        total: Photos that `entries` will yield, or an estimate; `None` before it is known.
        left_out: Photos that `entries` passed over, by reason.
        faults: Annotations that `entries` passed over; other processes do not see them.
    """

    images: Path
    annotations: Path
    total: int | None = field(default=None, init=False)
    left_out: Counter[str] = field(default_factory=Counter, init=False)
    faults: Faults = field(default_factory=Faults, init=False)

    dropped_flags: ClassVar[frozenset[str]] = NO_FLAGS
    """Flags whose boxes are dropped unless one says otherwise."""
    takes: ClassVar[str] = ""
    """What annotates a collection: a "file", a "folder", or either."""
    states_paths: ClassVar[bool] = False
    """Whether annotations state the path of their photo, which may be that of another machine."""

    def __post_init__(self) -> None:
        if not self.images.is_dir():
            raise ValueError(f"no folder of photos at '{self.images}'; check --images")
        if not self.annotations.exists():
            raise ValueError(f"no annotations at '{self.annotations}'; check --annotations")
        found = "folder" if self.annotations.is_dir() else "file"
        if self.takes not in ("", found):
            raise ValueError(
                f"'{self.annotations}' is a {found}; this format takes a {self.takes} as "
                "--annotations"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "faults": Faults()}

    def cannot_read(self, error: OSError) -> None:
        """Report a folder that cannot be read."""
        where = str(error.filename)
        self.faults.note([Fault(where, "a folder that cannot be read", first_line(error))])

    @property
    @abstractmethod
    def looked_for(self) -> str:
        """What `entries` looks for and where, for the sentence that says it found nothing."""

    @abstractmethod
    def entries(self) -> Iterator[Any]:
        """What `read` takes, a photo each, always in the same order.

        Raises:
            ValueError: The file is not of this format at all.
        """

    def source(self, entry: Any) -> str | None:
        """The file that annotates one photo, where each has its own."""
        return None

    def read(self, entry: Any) -> Annotated:
        """The boxes of one photo.

        Raises:
            Unusable: There is something wrong with all that annotates it.
        """
        return entry
