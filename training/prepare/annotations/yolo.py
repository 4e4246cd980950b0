"""YOLO: a text file a photo, in `labels/` where the photo is in `images/`.

A line is `class cx cy width height`, or `class x1 y1 x2 y2 x3 y3 ...` for an outline, in shares of
the photo's size (https://docs.ultralytics.com/datasets). An outline gives the box around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pbe_model.untrusted import numbered_lines, printable, shown
from training.data.index_format import MAX_LABELS

from .base import MAX_OF_PHOTO, Annotated, MarkedBox, Reader, files_below, malformed, read_whole

_MAX_YAML = 2**20  # bytes, which take the parser a second
_MAX_DEPTH = 32
_MAX_NODES = 2**16
_CLASS = re.compile(r"\d{1,9}")  # longer ones could be chosen such that they all hash alike
_EXPECTED = "'class cx cy width height' or 'class x1 y1 x2 y2 x3 y3 ...' in shares of the photo"


@dataclass
class Yolo(Reader):
    """Boxes of photos that have a text file; class names from data.yaml or classes.txt if there.

    Attributes:
        names: Class names by number, as far as there are any.
    """

    names: dict[int, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.names = self._class_names()

    @property
    def looked_for(self) -> str:
        """See `Reader`."""
        return f"photos in '{self.images}' with a text file of the same name in '{self._where}'"

    def entries(self) -> Iterator[str]:
        """See `Reader`: relative paths of photos."""
        photos = files_below(self.images)
        self.total = len(photos)
        for photo in photos:
            if self._text(photo).is_file():
                yield photo
            else:
                self.left_out["photos without annotations"] += 1

    def read(self, entry: str) -> Annotated:
        """See `Reader`."""
        path, boxes = self._text(entry), []
        for number, line in numbered_lines(path, MAX_OF_PHOTO):
            try:
                kind, *values = line.split()
                label = self.names.get(int(kind), kind)
                numbers = [float(value) for value in values]
            except ValueError as error:
                raise malformed(path, number, line, _EXPECTED) from error
            if len(numbers) == 4:
                cx, cy, width, height = numbers
                corners = cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2
            elif len(numbers) >= 6 and len(numbers) % 2 == 0:
                xs, ys = numbers[::2], numbers[1::2]
                corners = min(xs), min(ys), max(xs), max(ys)
            else:
                raise malformed(path, number, line, _EXPECTED)
            boxes.append(MarkedBox(*corners, label))
        return Annotated(entry, boxes, frame=(1, 1))

    @property
    def _where(self) -> Path:
        return self._text("x").parent

    def _text(self, photo: str) -> Path:
        """Given a folder of labels, the same path in there; otherwise as Ultralytics does it: the
        last `images` of the path becomes `labels`."""
        if self.annotations != self.images:
            return (self.annotations / photo).with_suffix(".txt")
        parts = list((self.images.absolute() / photo).with_suffix(".txt").parts)
        if "images" in parts[:-1]:
            parts[max(i for i, part in enumerate(parts[:-1]) if part == "images")] = "labels"
        return Path(*parts)

    def _class_names(self) -> dict[int, str]:
        places = [self.images, *self.images.absolute().parents[:2], self.annotations]
        for place in places:
            if (path := place / "data.yaml").is_file():
                return _names_of_yaml(path)
            if (path := place / "classes.txt").is_file():
                return dict(enumerate(line for _, line in numbered_lines(path, MAX_LABELS)))
        return {}


class _Loader(yaml.BaseLoader):
    """Makes strings, lists and dictionaries of a document of bounded depth and size, nothing else.

    Merges (`<<`) stay what they are, for a chain of them may multiply.
    """

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise yaml.YAMLError(f"more than {_MAX_DEPTH} levels or {_MAX_NODES:,} entries")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _names_of_yaml(path: Path) -> dict[int, str]:
    text = read_whole(path, _MAX_YAML)
    try:
        content = _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"'{printable(path)}' is not YAML: {shown(reason)}") from error
    names = content.get("names", {}) if isinstance(content, dict) else None
    if isinstance(names, list):
        names = {str(number): name for number, name in enumerate(names)}
    if not isinstance(names, dict) or not all(
        _CLASS.fullmatch(number) and isinstance(name, str) for number, name in names.items()
    ):
        raise ValueError(
            f"'{printable(path)}' has no list of class names under 'names'; write "
            "'names: [cat, dog]', for example"
        )
    return {int(number): name for number, name in names.items()}
