"""The files of a box index: which photos there are and where their boxes lie, in flat files that are mapped.

OpenImages is 1.74 million photos with 14 million boxes. As a folder of arrays that is some 240 MB,
opens in milliseconds, and every worker process shares the same pages of it:

| file | what |
|---|---|
| `boxes.npy` | a row a box, those of a photo side by side: `BOX` |
| `photos.npy` | a row a photo, and one more that ends the last: `PHOTO` |
| `places.npy` | only for photos in shards: where the bytes of each photo lie, `PLACE` |
| `paths.bin` | the paths of the photos, UTF-8, one behind the other |
| `labels.json` | the names that the label numbers stand for |
| `index.json` | format, counts, digest, and what the maker says: filters, statistics, `photos` (the folder or URL that paths and shards start from), `shards` (their names) |

Small sets need none of this: a text file with a line for each box is read into the same arrays.
"""  # noqa: E501

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pbe_model.untrusted import shown

FORMAT = 1
LARGEST = 2**16 - 1
"""Largest side of a photo, in pixels: coordinates take two bytes."""

BOX = np.dtype([("box", "<u2", 4), ("label", "<u4")])
"""`box`: x0, y0, x1, y1 in pixels of the photo, right and bottom exclusive."""
PHOTO = np.dtype([("path", "<u4"), ("first", "<u4"), ("width", "<u2"), ("height", "<u2")])
"""`path`: where in `paths.bin` its path starts; `first`: its first box. Both end where those of the
next row start. A width of 0 means that the size is not known."""
PLACE = np.dtype([("offset", "<u8"), ("length", "<u4"), ("shard", "<u4")])
"""`offset` and `length` in bytes of the shard with number `shard`."""
MAX_LABELS = 2**26
"""Bytes of a file that names labels."""
MAX_PATH = 2**16
"""Bytes of a photo's path."""


class Place(NamedTuple):
    """Bytes of a photo inside a shard."""

    shard: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PhotoBoxes:
    """A photo with its boxes, as readers of annotations yield it, already filtered.

    Attributes:
        path: Relative to where the photos lie, with forward slashes.
        size: Width and height in pixels, upright (as `decode_photo` gives it); (0, 0) if unknown.
        boxes: `(n, 4)` integers, x0, y0, x1, y1 in pixels, right and bottom exclusive.
        labels: A name for each box, "" if it has none.
        shard: Number of the shard that holds the photo, if one does.
        offset: First byte of the photo in the shard.
        length: Number of bytes.
    """

    path: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: list[str]
    shard: int | None = None
    offset: int | None = None
    length: int | None = None

    @classmethod
    def from_json(cls, record: Any) -> PhotoBoxes:
        """From the attributes by name, as a file of any origin may hold them.

        Raises:
            ValueError: One is missing, of another type, or does not fit the others.
        """
        match record:
            case {
                "path": str(path),
                "size": [int(width), int(height)],
                "boxes": list(rows),
                "labels": list(labels),
            }:
                boxes = np.asarray(rows or np.empty((0, 4), int))
                place = {name: record.get(name) for name in ("shard", "offset", "length")}
                if (
                    boxes.dtype.kind == "i"
                    and boxes.shape == (len(labels), 4)
                    and all(isinstance(label, str) for label in labels)
                    and all(n is None or (isinstance(n, int) and n >= 0) for n in place.values())
                ):
                    size = width, height
                    return cls(path=path, size=size, boxes=boxes, labels=labels, **place)
        raise ValueError(f"{shown(record, 80)} is not a photo with its boxes")


@dataclass(frozen=True, slots=True)
class Photo:
    """A photo of an index.

    Attributes:
        path: Relative to where the photos lie.
        size: Width and height in pixels, upright; `None` if unknown.
        boxes: Numbers of its boxes in the index.
        place: Where in the shards its bytes are; `None` if it is a file.
    """

    path: str
    size: tuple[int, int] | None
    boxes: range
    place: Place | None
