"""YOLO: a text file a photo, in `labels/` where the photo is in `images/`; see `yolo_lines`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pbe_model.untrusted import first_line, numbered_lines, shown
from training.prepare.faults import Fault

from .base import Annotated, MarkedBox, Reader, Unusable
from .files import MAX_OF_PHOTO, pictures_below
from .yolo_lines import NOT_A_BOX, Layout
from .yolo_names import LISTS, Described, describe

_SAMPLED = 256  # text files that are looked into before all are read, and lines of each
_MOST_FAULTS = 1000  # of a photo; a text of more is something else


@dataclass
class Yolo(Reader):
    """Boxes of photos that have a text file; class names from data.yaml or classes.txt if there.

    Attributes:
        described: What data.yaml or classes.txt say.
        layout: How lines of many numbers are read; known when `entries` has begun.
    """

    takes = "folder"

    described: Described = field(default_factory=Described, init=False)
    layout: Layout = field(default_factory=Layout, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        images, annotations = self.images.absolute(), self.annotations.absolute()
        self.described = describe(
            [self.images, *images.parents[:2], self.annotations, annotations.parent]
        )

    @property
    def looked_for(self) -> str:
        """See `Reader`."""
        where = os.path.dirname(self._usual_text("x"))
        return f"photos in '{self.images}' with a text file of the same name in '{where}'"

    def entries(self) -> Iterator[str]:
        """See `Reader`: relative paths of photos."""
        photos = pictures_below(self.images, self.cannot_read)
        self.total = len(photos)
        texts = {photo: text for photo in photos if (text := self._text(photo)) is not None}
        self.layout = self._layout(list(texts.values()))
        for photo in photos:
            if photo in texts:
                yield photo
            else:
                self.left_out["photos without annotations"] += 1
        self._note_texts_alone(set(texts.values()))

    def source(self, entry: str) -> str | None:
        """See `Reader`."""
        return self._text(entry)

    def read(self, entry: str) -> Annotated:
        """See `Reader`."""
        path, boxes, faults = self._text(entry), [], []
        if path is None:
            raise Unusable("its text file went away")
        try:
            for number, line in numbered_lines(Path(path), MAX_OF_PHOTO):
                try:
                    kind, numbers = _parse(line)
                    corners = self.layout.corners(numbers)
                except ValueError as error:
                    where = f"{self._named(path)}, line {number}"
                    faults.append(Fault(where, str(error), shown(line, 80)))
                    if len(faults) > _MOST_FAULTS:
                        raise Unusable("its text file holds no boxes", self._named(path)) from error
                    continue
                boxes.append(MarkedBox(*corners, self._label(kind)))
        except ValueError as error:
            raise Unusable("its text file cannot be read", first_line(error)) from error
        return Annotated(entry, boxes, frame=(1, 1), faults=tuple(faults))

    def _label(self, kind: str) -> str:
        number = int(float(kind))
        return self.described.names.get(number, kind if kind.isdigit() else str(number))

    def _text(self, photo: str) -> str | None:
        """Where it usually is, or beside the photo."""
        beside = os.path.join(self.images, os.path.splitext(photo)[0] + ".txt")
        return next(filter(os.path.isfile, (self._usual_text(photo), beside)), None)

    def _usual_text(self, photo: str) -> str:
        """Given a folder of labels, the same path in there; otherwise as Ultralytics does it: the
        last `images` of the path becomes `labels`."""
        name = os.path.splitext(photo)[0].replace("/", os.sep) + ".txt"
        if self.annotations != self.images:
            return os.path.join(self.annotations, name)
        path = os.path.join(self.images.absolute(), name)
        before, found, after = path.rpartition(f"{os.sep}images{os.sep}")
        return os.path.join(before, "labels", after) if found else path

    def _named(self, path: str) -> str:
        """As a list of faults names a text file: from the folder beside that of the photos on."""
        return os.path.relpath(path, self.images.absolute().parent)

    def _layout(self, texts: list[str]) -> Layout:
        """What data.yaml says, and else what lines of some texts can only be."""
        if self.described.keypoints is not None:
            return Layout(keypoints=self.described.keypoints)
        lines = []
        for path in texts[:: max(1, len(texts) // _SAMPLED)]:
            try:
                found = islice(numbered_lines(Path(path), MAX_OF_PHOTO), _SAMPLED)
                lines += [_numbers(line) for _, line in found]
            except ValueError:
                continue
        return Layout.of(lines, says_outlines=self.described.has_yaml)

    def _note_texts_alone(self, used: set[str]) -> None:
        """Report texts in the folders of the others that belong to no photo."""
        for folder in sorted({os.path.dirname(path) for path in used}):
            for name in sorted(os.listdir(folder)):
                path = os.path.join(folder, name)
                if name.endswith(".txt") and name not in LISTS and path not in used:
                    self.faults.note([Fault(self._named(path), "no photo for this text file")])


def _parse(line: str) -> tuple[str, list[float]]:
    """Class and numbers.

    Raises:
        ValueError: The class is no whole number, or something else is none.
    """
    kind, *fields = line.split()
    try:
        if float(kind) < 0 or not float(kind).is_integer():
            raise ValueError(kind)
        return kind, list(map(float, fields))
    except (ValueError, OverflowError) as error:
        raise ValueError(NOT_A_BOX) from error


def _numbers(line: str) -> list[float]:
    try:
        return _parse(line)[1]
    except ValueError:
        return []
