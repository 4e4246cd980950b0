"""OpenImages: the tables as published, or the text files that the official repository makes.

The official preparation drops boxes by area alone (0.02 to 0.8) and keeps those marked IsGroupOf,
IsDepiction, IsOccluded or IsTruncated, and so does this by default. (It cuts coordinates to whole
pixels; here they are rounded.)
"""

from __future__ import annotations

import csv
import io
import os
import string
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

from pbe_model.untrusted import first_line, numbered_lines, open_regular, shown
from training.data.index_format import MAX_LABELS
from training.prepare.faults import Fault

from .base import Annotated, MarkedBox, Reader, Unusable
from .files import MAX_OF_PHOTO, is_picture

_FLAGS = {
    "IsGroupOf": "group",
    "IsDepiction": "depiction",
    "IsInside": "inside",
    "IsOccluded": "occluded",
    "IsTruncated": "truncated",
}
_COLUMNS = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax")
_CLASS_NAMES = ("class-descriptions-boxable.csv", "oidv7-class-descriptions-boxable.csv")
_MAX_ROW = 2**20  # characters
_MAX_BOXES = 2**20  # of a photo
_GATHERED = 2**26  # bytes of a table that is held in memory, in whatever order its rows are
_NOT_A_ROW = f"not a row with {', '.join(_COLUMNS)}"
_NOT_A_LINE = "not x0 y0 x1 y1 [label] in pixels"
_EVERY = 4096  # photos between estimates of their number
_Row = tuple[str, MarkedBox]
_TRAIN = tuple(f"train_{digit}" for digit in string.hexdigits[:16])


def open_images(images: Path, annotations: Path) -> Reader:
    """The reader for what `annotations` is: a table (file), or text files (folder)."""
    return (TextTree if annotations.is_dir() else Table)(images, annotations)


class Table(Reader):
    """`oidv6-train-annotations-bbox.csv` and its like, read as a stream: 14.6 million rows.

    Photos lie in `train_0` .. `train_f` by the first digit of their name, as the packed files give
    them; or in `train`, `validation` or `test`; or in the folder itself. Labels are names where
    `class-descriptions-boxable.csv` lies beside the table, otherwise identifiers such as /m/0k4j.
    """

    @property
    def looked_for(self) -> str:
        """See `Reader`."""
        return f"rows in '{self.annotations}' whose photos lie in '{self.images}'"

    def entries(self) -> Iterator[Annotated]:
        """See `Reader`; in large tables the rows of a photo have to stand together, as they do in
        the published files.

        Raises:
            ValueError: Columns are missing, the table is not UTF-8, or a large one is not sorted.
        """
        names = self._class_names()
        subset = next((s for s in ("validation", "test") if s in self.annotations.name), "train")
        there = {folder for folder in (*_TRAIN, subset) if (self.images / folder).is_dir()}
        size, count = self.annotations.stat().st_size, 0
        with self._open() as raw:
            rows = self._rows(raw, names)
            is_small = size <= _GATHERED
            photos = _gathered(rows) if is_small else self._sorted(rows)
            for image, boxes in photos:
                folder = f"train_{image[0]}" if subset == "train" and there - {subset} else subset
                if there and folder not in there:
                    self.left_out["photos in folders that are not there"] += 1
                    continue
                name = image if is_picture(image) else f"{image}.jpg"
                count += 1
                if count % _EVERY == 1 and not is_small:
                    self.total = round(count * size / max(raw.tell(), 1))
                yield Annotated(f"{folder}/{name}" if there else name, boxes, frame=(1, 1))

    def _open(self) -> BinaryIO:
        try:
            return open_regular(self.annotations)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read '{self.annotations}': {first_line(error)}") from error

    def _sorted(self, rows: Iterator[_Row]) -> Iterator[tuple[str, list[MarkedBox]]]:
        """Photos of rows that stand together."""
        before = ""
        for image, group in groupby(rows, itemgetter(0)):
            if image < before:
                raise ValueError(
                    f"'{self.annotations}' goes back from photo {shown(before, 40)} to "
                    f"{shown(image, 40)}; sort the rows by ImageID"
                )
            yield image, [box for _, box in group]
            before = image

    def _rows(self, raw: BinaryIO, names: dict[str, str]) -> Iterator[_Row]:
        """Photo and box of each row; what is none is reported and passed over."""
        text = io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", newline="")
        rows = csv.reader(iter(partial(text.readline, _MAX_ROW), ""))
        header = [name.strip() for name in self._next(rows) or []]
        if not _is_utf8(*header):
            raise ValueError(f"'{self.annotations}' is not UTF-8; save it as UTF-8")
        if missing := [name for name in _COLUMNS if name not in header]:
            raise ValueError(
                f"'{self.annotations}' has no column {', '.join(missing)} in its first line; "
                "give a table of boxes such as oidv6-train-annotations-bbox.csv"
            )
        image, label, *corners = (header.index(name) for name in _COLUMNS)
        left, top, right, bottom = corners
        marks = [(header.index(name), flag) for name, flag in _FLAGS.items() if name in header]
        flags = {}  # rows have few combinations: one set for each
        current, count = "", 0
        while (row := self._next(rows)) is not None:
            try:
                # Unknown is -1 in some of the files, and then no mark.
                combination = tuple(row[column] == "1" for column, _ in marks)
                if combination not in flags:
                    pairs = zip(marks, combination, strict=True)
                    flags[combination] = frozenset(flag for (_, flag), is_set in pairs if is_set)
                box = MarkedBox(
                    float(row[left]), float(row[top]), float(row[right]), float(row[bottom]),
                    names.get(row[label], row[label]), flags[combination],
                )  # fmt: skip
                name = row[image]
            except (IndexError, ValueError):
                if row:
                    self._note(rows, _NOT_A_ROW, ",".join(row))
                continue
            count = count + 1 if name == current else 1
            current = name
            if not name or not _is_utf8(name, box.label):
                self._note(rows, "a row without the name of a photo, or not in UTF-8", name)
            elif count > _MAX_BOXES:
                self._note(rows, "a row of a photo that has too many boxes", name)
            else:
                yield name, box

    def _next(self, rows: Iterator[list[str]]) -> list[str] | None:
        while True:
            try:
                return next(rows, None)
            except csv.Error as error:
                self._note(rows, _NOT_A_ROW, first_line(error))

    def _note(self, rows: Any, kind: str, detail: str) -> None:
        where = f"{self.annotations.name}, line {rows.line_num}"
        self.faults.note([Fault(where, kind, shown(detail, 80))])

    def _class_names(self) -> dict[str, str]:
        for name in _CLASS_NAMES:
            path = self.annotations.parent / name
            if path.is_file():
                rows = csv.reader(line for _, line in numbered_lines(path, MAX_LABELS))
                try:
                    return {row[0]: row[1] for row in rows if len(row) == 2}
                except csv.Error as error:
                    raise ValueError(
                        f"'{path}' is not a table of class names ({first_line(error)}); correct it "
                        "or move it away"
                    ) from error
        return {}


class TextTree(Reader):
    """`bbox/train_0/<photo>.txt`, made by the official `scripts/read_bbox.py`.

    A line is `x0 y0 x1 y1` in pixels of the upright photo; a label may follow. Of a tree with
    `train_0` .. `train_f` those are read, as the official dataset does; of any other, everything.
    """

    @property
    def looked_for(self) -> str:
        """See `Reader`."""
        return f"train_0/*.txt and so on in '{self.annotations}'"

    def entries(self) -> Iterator[str]:
        """See `Reader`: relative paths of text files."""
        folders = sorted(item.name for item in os.scandir(self.annotations) if item.is_dir())
        folders = [name for name in folders if name in _TRAIN] or ["", *folders]
        self.total = sum(1 for folder in folders for _ in self._texts(folder))
        for folder in folders:
            for name in sorted(self._texts(folder)):
                yield f"{folder}/{name}" if folder else name

    def _texts(self, folder: str) -> Iterator[str]:
        with os.scandir(self.annotations / folder) as items:
            yield from (item.name for item in items if item.name.endswith(".txt"))

    def source(self, entry: str) -> str:
        """See `Reader`."""
        return os.path.join(self.annotations, entry)

    def read(self, entry: str) -> Annotated:
        """See `Reader`."""
        boxes, faults = [], []
        try:
            for number, line in numbered_lines(self.annotations / entry, MAX_OF_PHOTO):
                fields = line.split(maxsplit=4)
                try:
                    x0, y0, x1, y1 = (float(field) for field in fields[:4])
                except ValueError:
                    where = f"{entry}, line {number}"
                    faults.append(Fault(where, _NOT_A_LINE, shown(line, 80)))
                    continue
                boxes.append(MarkedBox(x0, y0, x1, y1, "".join(fields[4:])))
        except ValueError as error:
            raise Unusable("its text file cannot be read", first_line(error)) from error
        return Annotated(entry.removesuffix(".txt") + ".jpg", boxes, faults=tuple(faults))


def _gathered(rows: Iterator[_Row]) -> Iterable[tuple[str, list[MarkedBox]]]:
    """Photos in the order in which they first appear."""
    photos: dict[str, list[MarkedBox]] = {}
    for image, box in rows:
        photos.setdefault(image, []).append(box)
    return photos.items()


def _is_utf8(*texts: str) -> bool:
    """Whether no byte had to be escaped when they were read."""
    return all(t.isascii() or not any("\ud800" <= c <= "\udfff" for c in t) for t in texts)
