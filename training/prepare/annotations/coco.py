"""COCO: one JSON file with `images`, `categories` and `annotations` (`instances_*.json`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from .base import NO_FLAGS, Annotated, MarkedBox, Reader, read_text

_CROWD = frozenset({"crowd"})


class Coco(Reader):
    """Boxes are `[x, y, width, height]` in pixels, with fractions, from the photo's corner."""

    dropped_flags = _CROWD  # one box around many objects

    @property
    def looked_for(self) -> str:
        """See `Reader`."""
        return f"annotations with a bbox in '{self.annotations}'"

    def entries(self) -> Iterator[Annotated]:
        """See `Reader`; photos in the order of the file.

        Raises:
            ValueError: Not JSON, not COCO, or a malformed entry, by its number in the file.
        """
        tables = self._load()
        names = {
            category["id"]: str(category["name"])
            for category in self._each(tables, "categories", ("id", "name"))
        }
        boxes: dict[Any, list[MarkedBox]] = {}
        for number, entry in enumerate(self._each(tables, "annotations", ("image_id",))):
            if "bbox" not in entry:  # captions, or only an outline
                self.left_out["annotations without a bbox"] += 1
                continue
            try:
                x, y, width, height = (float(value) for value in entry["bbox"])
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"annotation {number} of '{self.annotations}' has the bbox {entry['bbox']}; "
                    "it has to be [x, y, width, height]"
                ) from error
            label = names.get(entry.get("category_id"), "")
            flags = _CROWD if entry.get("iscrowd") else NO_FLAGS
            box = MarkedBox(x, y, x + width, y + height, label, flags)
            boxes.setdefault(entry["image_id"], []).append(box)
        self.total = len(boxes)
        for photo in self._each(tables, "images", ("id", "file_name")):
            marked = boxes.pop(photo["id"], None)
            if marked is None:
                self.left_out["photos without annotations"] += 1
                continue
            size = photo.get("width"), photo.get("height")
            frame = (size[0], size[1]) if size[0] and size[1] else None
            yield Annotated(str(photo["file_name"]).replace("\\", "/"), marked, frame)
        if boxes:
            self.left_out["photos with annotations that 'images' does not list"] = len(boxes)

    def _load(self) -> dict[str, Any]:
        try:
            # Outlines are nine tenths of the file, and gone again before the next one is read.
            tables = json.loads(read_text(self.annotations), object_hook=_without_outline)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"line {error.lineno} of '{self.annotations}' is not JSON ({error.msg})"
            ) from error
        if not isinstance(tables, dict):
            raise ValueError(f"'{self.annotations}' is not COCO: it has to hold a JSON object")
        return tables

    def _each(self, tables: dict, name: str, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        entries = tables.get(name)
        if not isinstance(entries, list):
            raise ValueError(f"'{self.annotations}' is not COCO: it has no list '{name}'")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or any(key not in entry for key in keys):
                raise ValueError(
                    f"entry {number} of '{name}' in '{self.annotations}' lacks {' or '.join(keys)}"
                )
            yield entry


def _without_outline(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("segmentation", None)
    return entry
