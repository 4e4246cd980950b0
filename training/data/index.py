"""Reading a box index: which photos there are and where their boxes lie.

Its files are mapped into memory, so that it opens in milliseconds and all worker processes share
the same pages; see `index_format`.
"""

from __future__ import annotations

import io
import os
import tokenize
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pbe_model.editing.mask_shapes import Box
from pbe_model.untrusted import first_line, open_regular, parse_json, read_bytes, shown
from training.data.box_lines import read_lines
from training.data.index_format import BOX, FORMAT, MAX_LABELS, MAX_PATH, PHOTO, PLACE, Photo, Place
from training.data.index_writer import Tables

_MAX_META = 2**24  # bytes of `index.json`
# What numpy raises on headers of .npy that are damaged, besides what reading JSON does.
_DAMAGE = (
    OSError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError, LookupError,
    OverflowError, AttributeError, tokenize.TokenError,
)  # fmt: skip


class BoxIndex:
    """Photos and boxes by number; see `open`.

    Attributes:
        boxes: `(num_boxes,)` of `BOX`.
        labels: Names by label number.
        meta: What `index.json` says.
    """

    def __init__(
        self,
        boxes: np.ndarray,
        photos: np.ndarray,
        places: np.ndarray | None,
        paths: np.ndarray,
        labels: list[str],
        meta: dict[str, Any],
        folder: Path | None = None,
    ) -> None:
        self.boxes = boxes
        self.labels = labels
        self.meta = meta
        self._photos, self._places, self._paths = photos, places, paths
        self._first = photos["first"]
        self._folder = folder

    @classmethod
    def open(
        cls,
        path: str | Path,
        root: str | Path | None = None,
        *,
        min_area: float = 0.02,
        max_area: float = 0.8,
    ) -> BoxIndex:
        """Open an index.

        Args:
            path: A folder that `IndexWriter` made; or a text file with a JSON object a line:
                `{"image": "photos/1.jpg", "box": [x0, y0, x1, y1]}`, the box in pixels with right
                and bottom exclusive; optional are `label` and `size` (`[width, height]`; without
                it the photo's header is read). Boxes of a photo are numbered side by side, photos
                in the order in which they first appear.
            root: Folder that the paths in a text file start from, by default its own.
            min_area: Smallest share of the photo's area that a box may cover; folders are filtered
                when they are made. Boxes whose photo has no readable header are kept: it is reading
                the photo that skips and reports it.
            max_area: Largest share.

        Raises:
            ValueError: There is none, it is damaged or of another version, or no box is left.
                Single lines that are malformed are passed over with a warning.
        """
        path = Path(path)
        if path.is_dir():
            return cls._open_folder(path)
        if not path.is_file():
            raise ValueError(f"no box index at '{path}'; make one with 'pbe-train prepare'")
        buffers = [io.BytesIO() for _ in range(4)]
        tables = Tables(*buffers)
        for photo in read_lines(path, Path(root or path.parent), min_area, max_area):
            tables.add(photo)
        if not tables.num_boxes:
            raise ValueError(
                f"'{path}' has no box that covers {min_area} to {max_area} of its photo; "
                "add photos or widen the limits"
            )
        meta = tables.finish()
        boxes, photos, _, paths = (buffer.getbuffer() for buffer in buffers)
        return cls(
            np.frombuffer(boxes, BOX),
            np.frombuffer(photos, PHOTO),
            None,
            np.frombuffer(paths, np.uint8),
            list(tables.labels),
            meta,
        )

    @classmethod
    def _open_folder(cls, folder: Path) -> BoxIndex:
        try:
            meta, labels = (
                _json(folder / "index.json", _MAX_META),
                _json(folder / "labels.json", MAX_LABELS),
            )
            _check_meta(meta, labels)
            boxes, photos = (
                _mapped(folder / "boxes.npy", BOX),
                _mapped(folder / "photos.npy", PHOTO),
            )
            has_places = (folder / "places.npy").exists()
            places = _mapped(folder / "places.npy", PLACE) if has_places else None
            paths = _mapped_bytes(folder / "paths.bin")
            _check_tables(meta, boxes, photos, places, paths)
        except ValueError as error:
            raise ValueError(
                f"'{folder}' is no readable box index ({first_line(error)}); make it anew with "
                "'pbe-train prepare'"
            ) from error
        return cls(boxes, photos, places, paths, labels, meta, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes that are spawned map the files themselves instead of getting a copy.
        if self._folder is not None:
            return _reopen, (self._folder, self.digest)
        tables = (self.boxes, self._photos, self._places, self._paths)
        return BoxIndex, (*tables, self.labels, self.meta)

    @property
    def num_boxes(self) -> int:
        """Number of boxes."""
        return len(self.boxes)

    @property
    def num_photos(self) -> int:
        """Number of photos, each with at least one box."""
        return len(self._photos) - 1

    @property
    def digest(self) -> str:
        """Hash of paths, sizes, boxes and labels, wherever the photos lie; 64 hex digits."""
        return self.meta["digest"]

    def photo(self, number: int) -> Photo:
        """The photo with this number."""
        assert 0 <= number < self.num_photos, number
        row, end = self._photos[number : number + 2].tolist()
        path, first, width, height = row
        place = None
        if self._places is not None:
            offset, length, shard = self._places[number].tolist()
            place = Place(shard, offset, length)
        name = os.fsdecode(self._paths[path : end[0]].tobytes())
        return Photo(name, (width, height) if width else None, range(first, end[1]), place)

    def photo_of(self, box: int) -> int:
        """Number of the photo that the box with this number is in."""
        assert 0 <= box < self.num_boxes, box
        return bisect_right(self._first, box) - 1

    def box(self, number: int) -> Box:
        """The box with this number: x0, y0, x1, y1 in pixels, right and bottom exclusive."""
        x0, y0, x1, y1 = self.boxes["box"][number].tolist()
        return x0, y0, x1, y1

    def boxes_of(self, photo: int) -> np.ndarray:
        """Boxes `(n, 4)` of the photo with this number, int64."""
        numbers = self.photo(photo).boxes
        return self.boxes["box"][numbers.start : numbers.stop].astype(np.int64)

    def label(self, number: int) -> str:
        """Name of what the box with this number shows, "" if it has none.

        Raises:
            ValueError: The index is damaged: there is no such name.
        """
        label = int(self.boxes["label"][number])
        if label >= len(self.labels):  # looked at here, as there are millions of boxes
            raise ValueError(
                f"box {number} has label {label:,}, but the index names {len(self.labels):,}; "
                "make it anew with 'pbe-train prepare'"
            )
        return self.labels[label]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns all that goes wrong with a file of an index into one kind of error."""
    try:
        yield
    except _DAMAGE as error:
        raise ValueError(f"{path.name}: {first_line(error)}") from error


def _json(path: Path, limit: int) -> Any:
    with _reading(path):
        return parse_json(read_bytes(path, limit))


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """The rows of an .npy file, which has to be just as `IndexWriter` writes it.

    numpy's own loader would believe any header: another type of rows, more of them than there are.
    """
    with _reading(path), open_regular(path) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"it has version {version} of the format, not (1, 0)")
        shape, fortran_order, found = np.lib.format.read_array_header_1_0(file)
        size = os.fstat(file.fileno()).st_size - file.tell()
        if found != dtype or fortran_order or len(shape) != 1:
            raise ValueError("it does not hold rows of the right type")
        if shape[0] * dtype.itemsize != size:
            raise ValueError("its size is not that of its rows")
        # Elements of a plain array are read several times faster than those of its memmap subclass.
        return np.asarray(np.memmap(file, dtype, "r", file.tell(), shape))


def _mapped_bytes(path: Path) -> np.ndarray:
    with _reading(path), open_regular(path) as file:
        return np.asarray(np.memmap(file, np.uint8, "r"))


def _check_meta(meta: Any, labels: Any) -> None:
    if not isinstance(meta, dict):
        raise ValueError("index.json holds no JSON object")
    if meta.get("format") != FORMAT:
        raise ValueError(f"its format is {shown(meta.get('format'), 40)}, not {FORMAT}")
    if not isinstance(digest := meta.get("digest"), str) or not digest.isascii():
        raise ValueError("index.json has no digest")
    if not isinstance(meta.get("photos", ""), str):
        raise ValueError("'photos' of index.json is not a string")
    for name, strings in (("'shards' of index.json", meta.get("shards", [])), ("labels", labels)):
        if not isinstance(strings, list) or not all(isinstance(s, str) for s in strings):
            raise ValueError(f"{name} is not a list of strings")


def _check_tables(
    meta: dict[str, Any],
    boxes: np.ndarray,
    photos: np.ndarray,
    places: np.ndarray | None,
    paths: np.ndarray,
) -> None:
    """What is relied on wherever an index is read; of the boxes, the largest table, only how many.

    Of 1.74 million photos it takes some milliseconds.
    """
    found = len(boxes), len(photos) - 1
    if found != (meta.get("num_boxes"), meta.get("num_photos")) or not len(boxes):
        raise ValueError(f"it holds {found[0]} boxes and {found[1]} photos, not what it says")
    path, first = photos["path"], photos["first"]
    ends = path[0], first[0], path[-1], first[-1]
    ordered = (path[1:] >= path[:-1]).all() and (first[1:] > first[:-1]).all()
    if ends != (0, 0, len(paths), len(boxes)) or not ordered:
        raise ValueError("photos.npy does not fit paths and boxes")
    if np.diff(path).max() > MAX_PATH:
        raise ValueError(f"a path has more than {MAX_PATH:,} bytes")
    if places is None:
        return
    if len(places) != len(photos) - 1:
        raise ValueError(f"it has {len(places)} places for {len(photos) - 1} photos")
    if places["shard"].max() >= len(meta.get("shards", [])):
        raise ValueError("places.npy names a shard that index.json does not list")


def _reopen(folder: Path, digest: str) -> BoxIndex:
    index = BoxIndex.open(folder)
    if index.digest != digest:
        raise ValueError(f"'{folder}' was made anew while it was in use; start again")
    return index
