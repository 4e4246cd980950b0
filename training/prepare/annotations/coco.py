"""COCO: one JSON file with `images`, `categories` and `annotations` (`instances_*.json`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pbe_model.untrusted import first_line, parse_json, shown
from training.data.box_lines import numbers

from .base import MAX_ANNOTATIONS, NO_FLAGS, Annotated, MarkedBox, Reader, read_whole

_CROWD = frozenset({"crowd"})
_NUMBER_OR_TEXT = (int, float, str)
_ANY_OF_THEM = (*_NUMBER_OR_TEXT, type(None))
_TEXT = (str,)


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
            _key(category["id"]): str(category["name"])
            for _, category in self._each(
                tables, "categories", {"id": _NUMBER_OR_TEXT, "name": _ANY_OF_THEM}
            )
        }
        boxes: dict[str, list[MarkedBox]] = {}
        for number, entry in self._each(
            tables, "annotations", {"image_id": _NUMBER_OR_TEXT, "category_id": _ANY_OF_THEM}
        ):
            if "bbox" not in entry:  # captions, or only an outline
                self.left_out["annotations without a bbox"] += 1
                continue
            try:
                x, y, width, height = numbers(entry["bbox"], 4)
            except ValueError as error:
                raise ValueError(
                    f"annotation {number} of '{self.annotations}' has the bbox "
                    f"{shown(entry['bbox'], 80)}; it has to be [x, y, width, height]"
                ) from error
            label = names.get(_key(entry.get("category_id")), "")
            flags = _CROWD if entry.get("iscrowd") else NO_FLAGS
            box = MarkedBox(x, y, x + width, y + height, label, flags)
            boxes.setdefault(_key(entry["image_id"]), []).append(box)
        self.total = len(boxes)
        for number, photo in self._each(
            tables, "images", {"id": _NUMBER_OR_TEXT, "file_name": _TEXT}
        ):
            marked = boxes.pop(_key(photo["id"]), None)
            if marked is None:
                self.left_out["photos without annotations"] += 1
                continue
            frame, size = None, [photo.get("width"), photo.get("height")]
            try:
                if all(size):
                    width, height = numbers(size, 2)
                    frame = width, height
            except ValueError as error:
                raise ValueError(
                    f"entry {number} of 'images' in '{self.annotations}' has the width and height "
                    f"{shown(size, 80)}; they have to be numbers"
                ) from error
            yield Annotated(photo["file_name"].replace("\\", "/"), marked, frame)
        if boxes:
            self.left_out["photos with annotations that 'images' does not list"] = len(boxes)

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
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Entries of a list with their numbers, what they are asked for seen to be of its types."""
        entries = tables.get(name)
        if not isinstance(entries, list):
            raise ValueError(f"'{self.annotations}' is not COCO: it has no list '{name}'")
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise ValueError(
                    f"entry {number} of '{name}' in '{self.annotations}' ({shown(entry, 80)}) is "
                    "not an object"
                )
            for key, allowed in types.items():
                if not isinstance(value := entry.get(key), allowed):
                    reason = f"has the {key} {shown(value, 80)}" if key in entry else f"lacks {key}"
                    raise ValueError(
                        f"entry {number} of '{name}' in '{self.annotations}' {reason}; it has to "
                        f"be a {'string' if allowed == _TEXT else 'number or a string'}"
                    )
            yield number, entry


def _key(value: float | str | None) -> str:
    """What ids are looked up by: of numbers one could choose some that all hash alike."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _without_outline(entry: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(entry)
    values.pop("segmentation", None)
    return values
