"""Pascal VOC: `Annotations/*.xml` beside `JPEGImages/`.

VOC counts pixels from 1 and includes the last one: a box over the whole of a 500 x 375 photo is
1, 1, 500, 375. So left and top lose 1, and right and bottom stay as they are, exclusive.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import cos, isfinite, sin
from pathlib import Path
from xml.etree.ElementTree import Element
from xml.parsers import expat

from pbe_model.untrusted import first_line
from training.prepare.faults import Fault

from .base import NO_FLAGS, Annotated, MarkedBox, Reader, Unusable
from .files import files_below, picture_suffixes, read_whole, with_slashes
from .xml_text import parse_xml

_MAX_XML = 2**22  # bytes
_FLAGS = ("difficult", "truncated", "occluded")
_SIDES = ("xmin", "ymin", "xmax", "ymax")


class Voc(Reader):
    """An XML a photo, objects with a `bndbox` or an outline; subfolders are those of the photos."""

    takes = "folder"

    @property
    def looked_for(self) -> str:
        """See `Reader`."""
        return f"*.xml in '{self.annotations}'"

    def entries(self) -> Iterator[str]:
        """See `Reader`: relative paths of XML files."""
        found = files_below(self.annotations, (".xml",), self.cannot_read)
        self.total = len(found)
        yield from found

    def source(self, entry: str) -> str:
        """See `Reader`."""
        return os.path.join(self.annotations, entry)

    def read(self, entry: str) -> Annotated:
        """See `Reader`."""
        path = self.annotations / entry
        try:
            root = parse_xml(read_whole(path, _MAX_XML))
        except expat.ExpatError as error:
            raise Unusable("not XML", first_line(error)) from error
        except (ValueError, LookupError) as error:
            raise Unusable("not XML of annotations", first_line(error)) from error
        boxes, faults = [], []
        for number, thing in enumerate(root.iter("object"), start=1):
            try:
                x0, y0, x1, y1 = _corners(thing)
            except ValueError as error:
                kind = "it has neither a bndbox with xmin, ymin, xmax and ymax nor an outline"
                faults.append(Fault(f"{entry}, object {number}", kind, first_line(error)))
                continue
            flags = frozenset(flag for flag in _FLAGS if _text(thing, flag) == "1")
            boxes.append(MarkedBox(x0 - 1, y0 - 1, x1, y1, _text(thing, "name"), flags or NO_FLAGS))
        photo, is_named_alike = self._photo(root, entry)
        return Annotated(
            photo, boxes, _stated_size(root), tuple(faults), "" if is_named_alike else entry
        )

    def _photo(self, root: Element, entry: str) -> tuple[str, bool]:
        """The photo, and whether it is beyond doubt: beside the XML and of the same name.

        It is the one that is stated, or, as people rename files, the one named like the XML.

        Raises:
            Unusable: Both are there.
        """
        here, own = Path(entry).parent, Path(entry).stem
        raw = _text(root, "filename") or _text(root, "path")
        stated = with_slashes(raw)
        name = stated.rpartition("/")[2]
        suffixes = [suffix for s in picture_suffixes() for suffix in (s, s.upper())]
        named_alike = [path for s in suffixes if self._is_file(path := here / (own + s))]
        places = [here / raw, here / stated, here / with_slashes(_text(root, "folder")) / name]
        places += [here / name, Path(name)]
        if "." not in name:
            places += [here / (name + suffix) for suffix in suffixes]
        found = next((path for path in places if name and self._is_file(path)), None)
        if found is None:
            path = named_alike[0] if named_alike else here / (stated or f"{own}.jpg")
            return path.as_posix(), True
        if found.stem != own and named_alike:
            raise Unusable("it says it is of another photo", f"{found}, not {named_alike[0]}")
        return found.as_posix(), found.stem == own and (found.parent == here or stated != name)

    def _is_file(self, path: Path) -> bool:
        return os.path.isfile(self.images / path)


def _text(element: Element, name: str) -> str:
    return element.findtext(name, "").strip()


def _corners(thing: Element) -> tuple[float, float, float, float]:
    """Left, top, right and bottom as stated, or those of what encloses an outline or a turned box.

    Raises:
        ValueError: There is none of them.
    """
    if thing.find("bndbox") is not None:
        try:
            x0, y0, x1, y1 = (float(thing.findtext(f"bndbox/{side}", "")) for side in _SIDES)
            return x0, y0, x1, y1
        except ValueError:
            if thing.find("polygon") is None:
                raise
    if (turned := thing.find("robndbox")) is not None:
        names = ("cx", "cy", "w", "h", "angle")
        cx, cy, width, height, angle = (float(turned.findtext(name, "")) for name in names)
        c, s = abs(cos(angle)), abs(sin(angle))
        half = (c * width + s * height) / 2, (s * width + c * height) / 2
        return cx - half[0], cy - half[1], cx + half[0], cy + half[1]
    xs, ys = _points(thing.find("polygon"))
    if len(xs) < 2 or len(xs) != len(ys) or not all(map(isfinite, xs + ys)):
        raise ValueError(f"{len(xs)} x and {len(ys)} y of an outline")
    return min(xs), min(ys), max(xs), max(ys)


def _points(polygon: Element | None) -> tuple[list[float], list[float]]:
    """Coordinates of a polygon: `<x1>`, `<y1>`, `<x2>` and so on, or `<pt><x>` and `<y>`."""
    xs: list[float] = []
    ys: list[float] = []
    for element in polygon.iter() if polygon is not None else ():
        axis, number = element.tag[:1], element.tag[1:]
        if axis in ("x", "y") and (not number or number.isdecimal()):
            (xs if axis == "x" else ys).append(float(element.text or ""))
    return xs, ys


def _stated_size(root: Element) -> tuple[float, float] | None:
    try:
        width, height = (float(root.findtext(f"size/{name}", "0")) for name in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None
