"""A text file with a JSON object a line: `{"image": "photos/1.jpg", "box": [x0, y0, x1, y1]}`."""

from __future__ import annotations

from collections.abc import Iterator

from pbe_model.untrusted import numbered_lines, shown
from training.data.box_lines import parse_box
from training.prepare.faults import Fault

from .base import Annotated, MarkedBox, Reader

_EXPECTED = '{"image": "path", "box": [x0, y0, x1, y1]}'
_NOT_A_BOX = f"not {_EXPECTED}"


class Boxes(Reader):
    """Boxes in pixels, right and bottom exclusive; `label` and `size` ([width, height]) are optional.

    A `group` stands in for a label that is not there.
    """  # noqa: E501

    takes = "file"
    states_paths = True

    @property
    def looked_for(self) -> str:
        """See `Reader`."""
        return f"lines such as {_EXPECTED} in '{self.annotations}'"

    def entries(self) -> Iterator[Annotated]:
        """See `Reader`; photos in the order in which they first appear.

        Raises:
            ValueError: The file cannot be read, or is not UTF-8.
        """
        photos: dict[str, Annotated] = {}
        for number, line in numbered_lines(self.annotations):
            where = f"{self.annotations.name}, line {number}"
            try:
                entry = parse_box(line, labels=("label", "group"))
            except ValueError as error:
                self.faults.note([Fault(where, _NOT_A_BOX, f"{error}: {shown(line, 80)}")])
                continue
            x0, y0, x1, y1 = entry.box
            frame = (entry.size[0], entry.size[1]) if entry.size else None
            photo = photos.setdefault(entry.image, Annotated(entry.image, [], frame))
            if frame is not None and frame != photo.frame:
                kind = "another size than an earlier line says"
                self.faults.note([Fault(where, kind, shown(line, 80))])
                continue
            photo.boxes.append(MarkedBox(x0, y0, x1, y1, entry.label))
        self.total = len(photos)
        yield from photos.values()
