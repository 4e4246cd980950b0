"""A text file with a JSON object a line: `{"image": "photos/1.jpg", "box": [x0, y0, x1, y1]}`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .base import Annotated, MarkedBox, Reader, malformed, numbered_lines

_EXPECTED = '{"image": "path", "box": [x0, y0, x1, y1]}'


class Boxes(Reader):
    """Boxes in pixels, right and bottom exclusive; `label` and `size` ([width, height]) are optional.

    A `group` stands in for a label that is not there.
    """  # noqa: E501

    @property
    def looked_for(self) -> str:
        """See `Reader`."""
        return f"lines such as {_EXPECTED} in '{self.annotations}'"

    def entries(self) -> Iterator[Annotated]:
        """See `Reader`; photos in the order in which they first appear."""
        photos: dict[str, Annotated] = {}
        for number, line in numbered_lines(self.annotations):
            try:
                entry = json.loads(line)
                x0, y0, x1, y1 = (float(value) for value in entry["box"])
                size = entry.get("size")
                frame = (float(size[0]), float(size[1])) if size else None
                label = str(entry.get("label", entry.get("group", "")))
                photo = photos.setdefault(entry["image"], Annotated(entry["image"], [], frame))
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise malformed(self.annotations, number, line, _EXPECTED) from error
            photo.boxes.append(MarkedBox(x0, y0, x1, y1, label))
        self.total = len(photos)
        yield from photos.values()
