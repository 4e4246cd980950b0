"""Pascal VOC: `Annotations/*.xml` beside `JPEGImages/`.

VOC counts pixels from 1 and includes the last one: a box over the whole of a 500 x 375 photo is
1, 1, 500, 375. So left and top lose 1, and right and bottom stay as they are, exclusive.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

from pbe_model.image_io import SUFFIXES
from pbe_model.untrusted import first_line, printable

from .base import NO_FLAGS, Annotated, MarkedBox, Reader, files_below, read_whole

_MAX_XML = 2**22  # bytes
_MAX_DEPTH = 100
_FLAGS = ("difficult", "truncated", "occluded")


class Voc(Reader):
    """A file an XML of objects with a `bndbox`; subfolders are those of the photos."""

    @property
    def looked_for(self) -> str:
        """See `Reader`."""
        return f"*.xml in '{self.annotations}'"

    def entries(self) -> Iterator[str]:
        """See `Reader`: relative paths of XML files."""
        found = files_below(self.annotations, (".xml",))
        self.total = len(found)
        yield from found

    def read(self, entry: str) -> Annotated:
        """See `Reader`."""
        path = self.annotations / entry
        name, text = printable(path), read_whole(path, _MAX_XML)
        try:
            root = _parse(text)
        except expat.ExpatError as error:
            raise ValueError(f"line {error.lineno} of '{name}' is not XML ({error})") from error
        except (ValueError, LookupError) as error:
            raise ValueError(f"'{name}' is not XML of annotations ({first_line(error)})") from error
        boxes = []
        for number, thing in enumerate(root.iter("object"), start=1):
            try:
                x0, y0, x1, y1 = (
                    float(thing.findtext(f"bndbox/{side}", "missing"))
                    for side in ("xmin", "ymin", "xmax", "ymax")
                )
            except ValueError as error:
                raise ValueError(
                    f"object {number} of '{name}' has no bndbox with the numbers xmin, ymin, xmax "
                    "and ymax"
                ) from error
            flags = frozenset(flag for flag in _FLAGS if thing.findtext(flag, "0").strip() == "1")
            label = thing.findtext("name", "").strip()
            boxes.append(MarkedBox(x0 - 1, y0 - 1, x1, y1, label, flags or NO_FLAGS))
        return Annotated(self._photo(root, entry), boxes, _stated_size(root))

    def _photo(self, root: ElementTree.Element, entry: str) -> str:
        """The stated file name, or, as people rename files, a photo named like the XML."""
        stated = root.findtext("filename", "").strip()
        here = Path(entry)
        names = [stated] if stated else []
        names += [here.stem + suffix for s in SUFFIXES for suffix in (s, s.upper())]
        paths = [(here.parent / name).as_posix() for name in names]
        return next((path for path in paths if os.path.isfile(self.images / path)), paths[0])


def _parse(text: bytes) -> ElementTree.Element:
    """A document without entities of its own, which may stand for any amount of text.

    Raises:
        expat.ExpatError: Not XML.
        ValueError: Entities, more levels than annotations have, or an encoding of several bytes.
        LookupError: An encoding that there is not.
    """
    builder, depth = ElementTree.TreeBuilder(), 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: Any) -> None:
        raise ValueError("it declares entities")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    parser.Parse(text, True)
    return builder.close()


def _stated_size(root: ElementTree.Element) -> tuple[float, float] | None:
    try:
        width, height = (float(root.findtext(f"size/{name}", "0")) for name in ("width", "height"))
    except ValueError:
        return None
    return (width, height) if width > 0 and height > 0 else None
