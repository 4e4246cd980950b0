"""What lies beside the labels of YOLO: names of the classes and the shape of keypoints."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pbe_model.untrusted import numbered_lines, printable, shown
from training.data.index_format import MAX_LABELS

from .files import read_whole

_YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
LISTS = ("classes.txt", "obj.names")
"""Files with a name a line."""
_MAX_YAML = 2**20  # bytes, which take the parser a second
_MAX_DEPTH = 32
_MAX_NODES = 2**16
_CLASS = re.compile(r"\d{1,9}")  # longer ones could be chosen such that they all hash alike
_MOST_KEYPOINTS = 10_000


@dataclass(frozen=True)
class Described:
    """What a collection says of itself.

    Attributes:
        names: Class names by number, as far as there are any.
        has_yaml: Whether there is a data.yaml.
        keypoints: How many, and values of each (2 or 3), if it says so.
    """

    names: dict[int, str] = field(default_factory=dict)
    has_yaml: bool = False
    keypoints: tuple[int, int] | None = None


def describe(places: Iterable[Path]) -> Described:
    """What the first of the folders says that says something: data.yaml, or a list of names.

    Raises:
        ValueError: It is damaged.
    """
    for place in places:
        lists = (path for name in LISTS if (path := place / name).is_file())
        found = next((path for name in _YAML if (path := place / name).is_file()), None)
        if found is not None:
            described = _read_yaml(found)
            listed = {} if described.names else _names_of(next(lists, None))
            return Described(described.names or listed, True, described.keypoints)
        if (path := next(lists, None)) is not None:
            return Described(_names_of(path))
    return Described()


def _names_of(path: Path | None) -> dict[int, str]:
    """By the number of the line, blank ones counted."""
    return {n - 1: name for n, name in numbered_lines(path, MAX_LABELS)} if path else {}


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


def _read_yaml(path: Path) -> Described:
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
    keypoints = _shape(path, content["kpt_shape"]) if "kpt_shape" in content else None
    return Described({int(number): name for number, name in names.items()}, True, keypoints)


def _shape(path: Path, value: object) -> tuple[int, int]:
    match value:
        case [str(count), str(values)] if _CLASS.fullmatch(count) and values in ("2", "3"):
            if 0 < int(count) <= _MOST_KEYPOINTS:
                return int(count), int(values)
    raise ValueError(
        f"'{printable(path)}' has the kpt_shape {shown(value, 80)}; write 'kpt_shape: [17, 3]' for "
        "17 keypoints of x, y and visibility"
    )
