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
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from pbe_model.untrusted import first_line, numbered_lines, open_regular, shown
from training.data.index_format import MAX_LABELS

from .base import MAX_OF_PHOTO, Annotated, MarkedBox, Reader, malformed

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
_EVERY = 4096  # photos between estimates of their number
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
        """See `Reader`; rows of a photo have to stand together, as they do in the published files.

        Raises:
            ValueError: Columns are missing, rows are malformed or not sorted by photo.
        """
        names = self._class_names()
        subset = next((s for s in ("validation", "test") if s in self.annotations.name), "train")
        there = {folder for folder in (*_TRAIN, subset) if (self.images / folder).is_dir()}
        size, count = self.annotations.stat().st_size, 0
        with self._open() as raw:
            for image, boxes in self._photos(raw, names):
                folder = f"train_{image[0]}" if subset == "train" and there - {subset} else subset
                if there and folder not in there:
                    self.left_out["photos in folders that are not there"] += 1
                    continue
                name = f"{image}.jpg"
                count += 1
                if count % _EVERY == 1:
                    self.total = round(count * size / max(raw.tell(), 1))
                yield Annotated(f"{folder}/{name}" if there else name, boxes, frame=(1, 1))

    def _open(self) -> BinaryIO:
        try:
            return open_regular(self.annotations)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read '{self.annotations}': {first_line(error)}") from error

    def _photos(
        self, raw: BinaryIO, names: dict[str, str]
    ) -> Iterator[tuple[str, list[MarkedBox]]]:
        text = io.TextIOWrapper(raw, "utf-8-sig", newline="")
        rows = csv.reader(iter(partial(text.readline, _MAX_ROW), ""))
        current, boxes, row = "", [], []
        try:
            header = next(rows, [])
            if missing := [name for name in _COLUMNS if name not in header]:
                raise ValueError(
                    f"'{self.annotations}' has no column {', '.join(missing)} in its first line; "
                    "give a table of boxes such as oidv6-train-annotations-bbox.csv"
                )
            image, label, *corners = (header.index(name) for name in _COLUMNS)
            left, top, right, bottom = corners
            marks = [(header.index(name), flag) for name, flag in _FLAGS.items() if name in header]
            flags = {}  # rows have few combinations: one set for each
            for row in rows:
                if row[image] != current:
                    if boxes:
                        yield current, boxes
                    if row[image] < current:
                        raise ValueError(
                            f"line {rows.line_num} of '{self.annotations}' goes back from photo "
                            f"{shown(current, 40)} to {shown(row[image], 40)}; sort the rows by "
                            "ImageID"
                        )
                    current, boxes = row[image], []
                if len(boxes) == _MAX_BOXES or not current:
                    raise ValueError(
                        f"line {rows.line_num} of '{self.annotations}' names no photo, or one with "
                        f"more than {_MAX_BOXES:,} boxes; correct the table"
                    )
                # Unknown is -1 in some of the files, and then no mark.
                combination = tuple(row[column] == "1" for column, _ in marks)
                if combination not in flags:
                    pairs = zip(marks, combination, strict=True)
                    flags[combination] = frozenset(flag for (_, flag), is_set in pairs if is_set)
                boxes.append(
                    MarkedBox(
                        _number(row[left]), _number(row[top]),
                        _number(row[right]), _number(row[bottom]),
                        names.get(row[label], row[label]), flags[combination],
                    )
                )  # fmt: skip
        except (IndexError, _NotANumber, csv.Error) as error:
            text, expected = ",".join(row), f"a row with {', '.join(_COLUMNS)}"
            raise malformed(self.annotations, rows.line_num, text, expected) from error
        except UnicodeDecodeError as error:
            raise ValueError(f"'{self.annotations}' is not UTF-8 near line {rows.line_num}") from (
                error
            )
        if boxes:
            yield current, boxes

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

    def read(self, entry: str) -> Annotated:
        """See `Reader`."""
        path, boxes = self.annotations / entry, []
        for number, line in numbered_lines(path, MAX_OF_PHOTO):
            fields = line.split(maxsplit=4)
            try:
                x0, y0, x1, y1 = (float(field) for field in fields[:4])
            except ValueError as error:
                raise malformed(path, number, line, "x0 y0 x1 y1 [label] in pixels") from error
            boxes.append(MarkedBox(x0, y0, x1, y1, "".join(fields[4:])))
        return Annotated(entry.removesuffix(".txt") + ".jpg", boxes)


class _NotANumber(Exception):
    pass


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise _NotANumber(text) from error
