"""COCO: one JSON file with `images`, `categories` and `annotations` (`instances_*.json`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isfinite
from typing import Any

from pbe_model.untrusted import first_line, parse_json, shown
from training.data.box_lines import numbers
from training.prepare.faults import Fault

from .base import NO_FLAGS, Annotated, MarkedBox, Reader
from .coco_outlines import Outlined, outlined
from .files import MAX_ANNOTATIONS, read_whole, with_slashes

_CROWD = frozenset({"crowd"})
_NUMBER_OR_TEXT = (int, float, str)
_ANY_OF_THEM = (*_NUMBER_OR_TEXT, type(None))
_TEXT = (str,)
_OUTLINED = "outlined"  # in the place of the outline, which is not kept


class Coco(Reader):
    """Boxes are `[x, y, width, height]` in pixels, with fractions, from the photo's corner.

    Where there is none that can be used, the box around the outline is.
    """

    dropped_flags = _CROWD  # one box around many objects
    takes = "file"
    states_paths = True

    @property
    def looked_for(self) -> str:
        """See `Reader`."""
        return f"annotations with a bbox or an outline in '{self.annotations}'"

    def entries(self) -> Iterator[Annotated]:
        """See `Reader`; photos in the order of the file.

        Raises:
            ValueError: Not JSON, or not COCO.
        """
        tables = self._load()
        names, listed = self._names(tables), self._listed(tables)
        boxes: dict[str, list[MarkedBox]] = {}
        for where, entry in self._each(
            tables, "annotations", {"image_id": _NUMBER_OR_TEXT, "category_id": _ANY_OF_THEM}
        ):
            key = _key(entry["image_id"])
            try:
                corners = _corners(entry, listed[key][0][1] if key in listed else {})
            except ValueError as error:
                kind = "without a bbox or an outline"
                if entry.get("bbox"):
                    kind = "its bbox is not [x, y, width, height]"
                self.faults.note([Fault(where, kind, first_line(error))])
                continue
            label = names.get(_key(entry.get("category_id")), "")
            flags = _CROWD if entry.get("iscrowd") in (1, "1") else NO_FLAGS
            box = MarkedBox(*corners, label, flags)
            boxes.setdefault(key, []).append(box)
        self.total = len(boxes)
        yield from self._photos(listed, boxes)
        if boxes:
            self.left_out["photos with annotations that 'images' does not list"] = len(boxes)

    def _listed(self, tables: dict[str, Any]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
        """Entries of `images` by id, with where they are."""
        listed: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for where, photo in self._each(
            tables, "images", {"id": _NUMBER_OR_TEXT, "file_name": _TEXT}
        ):
            listed.setdefault(_key(photo["id"]), []).append((where, photo))
        return listed

    def _photos(
        self, listed: dict[str, list[tuple[str, dict[str, Any]]]], boxes: dict[str, list[MarkedBox]]
    ) -> Iterator[Annotated]:
        """Photos with their boxes, which are taken out of `boxes`."""
        for key, entries in listed.items():
            marked = boxes.pop(key, None)
            if marked is None:
                self.left_out["photos without annotations"] += len(entries)
                continue
            if len({photo["file_name"] for _, photo in entries}) > 1:
                for where, photo in entries:
                    self.left_out["photos with the id of another"] += 1
                    self.faults.mention(
                        Fault(where, "its id is that of another photo", shown(photo["id"], 40))
                    )
                continue
            where, photo = entries[0]
            yield Annotated(with_slashes(photo["file_name"]), marked, self._size(where, photo))

    def _size(self, where: str, photo: dict[str, Any]) -> tuple[float, float] | None:
        size = [photo.get("width"), photo.get("height")]
        if not all(size):
            return None
        try:
            width, height = numbers(size, 2)
        except ValueError as error:
            self.faults.note([Fault(where, "its size is not that of a photo", first_line(error))])
            return None
        return width, height

    def _names(self, tables: dict[str, Any]) -> dict[str, str]:
        """Of the categories by id; of several with the same id the first."""
        names: dict[str, str] = {}
        if not tables.get("categories"):
            return names
        for where, category in self._each(
            tables, "categories", {"id": _NUMBER_OR_TEXT, "name": _ANY_OF_THEM}
        ):
            name = str(category["name"])
            if names.setdefault(_key(category["id"]), name) != name:
                fault = Fault(where, "its id is that of another category", shown(name, 40))
                self.faults.note([fault])
        return names

    def _load(self) -> dict[str, Any]:
        text = read_whole(self.annotations, MAX_ANNOTATIONS)
        try:
            # Outlines are nine tenths of the file, and gone again before the next one is read.
            tables = parse_json(text, _without_outline)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"line {error.lineno} of '{self.annotations}' is not JSON ({error.msg})"
            ) from error
        except ValueError as error:
            raise ValueError(f"'{self.annotations}' is not JSON ({first_line(error)})") from error
        if not isinstance(tables, dict):
            raise ValueError(f"'{self.annotations}' is not COCO: it has to hold a JSON object")
        return tables

    def _each(
        self, tables: dict[str, Any], name: str, types: dict[str, tuple[type, ...]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Entries of a list with where they are, what they are asked for seen to be of its types.

        Others are reported and passed over.
        """
        entries = tables.get(name)
        if not isinstance(entries, list):
            raise ValueError(f"'{self.annotations}' is not COCO: it has no list '{name}'")
        for number, entry in enumerate(entries):
            where = f"{self.annotations.name}, entry {number} of '{name}'"
            if not isinstance(entry, dict):
                self.faults.note([Fault(where, "not an object", shown(entry, 80))])
                continue
            wrong = next((k for k, t in types.items() if not isinstance(entry.get(k), t)), None)
            if wrong is None:
                yield where, entry
            elif wrong in entry:
                wanted = "string" if types[wrong] == _TEXT else "number or a string"
                detail = shown(entry[wrong], 80)
                self.faults.note([Fault(where, f"its {wrong} is not a {wanted}", detail)])
            else:
                self.faults.note([Fault(where, f"it lacks {wrong}")])


def _corners(entry: dict[str, Any], photo: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom: of the bbox, failing that of the outline.

    Raises:
        ValueError: There is neither.
    """
    found: Outlined | None = entry.get(_OUTLINED)
    try:
        x, y, width, height = numbers(entry.get("bbox"), 4)
        if found is None or _has_area(x, y, width, height):
            return x, y, x + width, y + height
    except ValueError:
        if found is None:
            raise
    stated = photo.get("width"), photo.get("height")
    if found.size is not None and all(stated) and found.size != stated:
        raise ValueError(f"its mask of {found.size} is not as large as the photo")
    return found.corners


def _has_area(x: float, y: float, width: float, height: float) -> bool:
    return isfinite(x + y) and width > 0 and height > 0


def _key(value: float | str | None) -> str:
    """What ids are looked up by: of numbers one could choose some that all hash alike."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _without_outline(entry: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without its outline; where it has no bbox that can be used, with the box around."""
    values = dict(entry)
    outline = values.pop("segmentation", None)
    if outline and "image_id" in values:
        try:
            usable = _has_area(*numbers(values.get("bbox"), 4))
        except ValueError:
            usable = False
        if not usable:
            values[_OUTLINED] = outlined(outline)
    return values
