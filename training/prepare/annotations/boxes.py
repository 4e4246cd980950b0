"""A text file with a JSON object a line: `{"image": "photos/1.jpg", "box": [x0, y0, x1, y1]}`."""

from __future__ import annotations

from collections.abc import Iterator

from pbe_model.untrusted import numbered_lines
from training.data.box_lines import parse_box

from .base import Annotated, MarkedBox, Reader, malformed

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
                entry = parse_box(line, labels=("label", "group"))
            except ValueError as error:
                raise malformed(self.annotations, number, line, _EXPECTED) from error
            x0, y0, x1, y1 = entry.box
            frame = (entry.size[0], entry.size[1]) if entry.size else None
            photo = photos.setdefault(entry.image, Annotated(entry.image, [], frame))
            photo.boxes.append(MarkedBox(x0, y0, x1, y1, entry.label))
        self.total = len(photos)
        yield from photos.values()
