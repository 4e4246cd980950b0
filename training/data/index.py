"""The box index: which photos there are and where their boxes lie, in flat files that are mapped.

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

import hashlib
import io
import json
import os
import shutil
import tokenize
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pbe_model.editing.mask_shapes import Box
from pbe_model.untrusted import (
    first_line,
    numbered_lines,
    open_regular,
    parse_json,
    read_bytes,
    shown,
)
from training.data.decode import photo_size

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
_MAX_META = 2**24  # bytes of `index.json`
_MAX_PATH = 2**16  # bytes of a photo's path
# What numpy raises on headers of .npy that are damaged, besides what reading JSON does.
_DAMAGE = (
    OSError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError, LookupError,
    OverflowError, AttributeError, tokenize.TokenError,
)  # fmt: skip


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


class _Tables:
    """The arrays of an index, written row by row into open binary files (or buffers)."""

    def __init__(self, boxes: BinaryIO, photos: BinaryIO, places: BinaryIO, paths: BinaryIO):
        self._boxes, self._photos, self._places, self._paths = boxes, photos, places, paths
        self._path_end = 0
        self._digest = hashlib.sha256()
        self.num_boxes = self.num_photos = self.num_places = 0
        self.labels: dict[str, int] = {}

    def add(self, photo: PhotoBoxes) -> None:
        boxes = np.asarray(photo.boxes).reshape(-1, 4)
        path = os.fsencode(photo.path)  # file names need not be valid UTF-8
        assert len(boxes) == len(photo.labels), (photo.path, len(boxes), len(photo.labels))
        if not len(boxes):
            return
        width, height = photo.size
        if not all(0 <= n <= LARGEST for n in (boxes.min(), boxes.max(), width, height)):
            raise ValueError(
                f"'{shown(photo.path)}' ({shown(width)} x {shown(height)}) has a side or a box "
                f"coordinate that is not in 0 to {LARGEST} pixels; clip the box or leave it out"
            )
        if len(path) > _MAX_PATH:
            raise ValueError(
                f"'{shown(photo.path)}' is a path of {len(path):,} bytes, and {_MAX_PATH:,} are "
                "the most; shorten it"
            )
        rows = np.empty(len(boxes), BOX)
        rows["box"] = boxes
        rows["label"] = [self.labels.setdefault(name, len(self.labels)) for name in photo.labels]
        self._boxes.write(rows.tobytes())
        self._row(photo.size)
        self._paths.write(path)
        if photo.shard is not None:
            place = np.array((photo.offset, photo.length, photo.shard), PLACE)
            self._places.write(place.tobytes())
            self.num_places += 1
        head = json.dumps([photo.path, photo.size, photo.labels]).encode()
        self._digest.update(head + rows["box"].tobytes())
        self._path_end += len(path)
        self.num_boxes += len(boxes)
        self.num_photos += 1
        if self.num_places not in (0, self.num_photos):
            raise ValueError(
                f"'{shown(photo.path)}': an index has all of its photos in shards or none, "
                "make one for each"
            )

    def _row(self, size: tuple[int, int]) -> None:
        row = np.array((self._path_end, self.num_boxes, *size), PHOTO)
        self._photos.write(row.tobytes())

    def finish(self) -> dict[str, Any]:
        """Write the last row; what `index.json` says of the arrays."""
        self._row((0, 0))
        return {
            "format": FORMAT,
            "num_photos": self.num_photos,
            "num_boxes": self.num_boxes,
            "digest": self._digest.hexdigest(),
        }


class IndexWriter:
    """Writes an index photo by photo, in little memory; the same photos give the same bytes.

    Everything goes to `<folder>.partial` first; `close` renames it. Left without `close`, nothing
    stays behind.

    ```python
    with IndexWriter(folder) as writer:
        for photo in photos:
            writer.add(photo)
        writer.close({"photos": "/data/openimages", "filters": {...}})
    ```

    Args:
        folder: The index to make; an index that is there already is replaced at the end.

    Raises:
        ValueError: `folder` exists and is no index.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not (self.folder / "index.json").is_file():
            raise ValueError(f"'{folder}' exists and is no box index; give another folder")
        self._partial = self.folder.with_name(self.folder.name + ".partial")
        self._closed = False

    def __enter__(self) -> IndexWriter:
        if self._partial.exists():
            shutil.rmtree(self._partial)
        self._partial.mkdir(parents=True)
        names = ("boxes.npy", "photos.npy", "places.npy", "paths.bin")
        self._files = [(self._partial / name).open("wb") for name in names]
        for file, dtype in zip(self._files, (BOX, PHOTO, PLACE), strict=False):
            _write_header(file, dtype, 0)
        self._tables = _Tables(*self._files)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        assert error or self._closed, "an index needs close(meta) before its context ends"
        if not self._closed:
            for file in self._files:
                file.close()
            shutil.rmtree(self._partial)

    @property
    def num_photos(self) -> int:
        """Photos added so far, those without a box left out."""
        return self._tables.num_photos

    @property
    def num_boxes(self) -> int:
        """Boxes added so far."""
        return self._tables.num_boxes

    def add(self, photo: PhotoBoxes) -> None:
        """Append a photo and its boxes; one without boxes is left out.

        Raises:
            ValueError: A coordinate below 0 or above 65,535, a path of more than 65,536 bytes, or
                only some photos are in shards.
        """
        self._tables.add(photo)

    def close(self, meta: dict[str, Any]) -> None:
        """Put the index in its place.

        Args:
            meta: What `index.json` should say besides, such as `photos`, `shards`, filters and
                statistics; anything that JSON can hold.

        Raises:
            ValueError: There is no box.
        """
        tables = self._tables
        if not tables.num_boxes:
            raise ValueError(
                f"no box is left for '{self.folder}'; add photos or widen the limits on boxes"
            )
        described = {**meta, **tables.finish()}
        rows = (tables.num_boxes, tables.num_photos + 1, tables.num_places)
        for file, dtype, count in zip(self._files, (BOX, PHOTO, PLACE), rows, strict=False):
            file.seek(0)
            _write_header(file, dtype, count)
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()
        if not tables.num_places:
            (self._partial / "places.npy").unlink()
        _write_json(self._partial / "labels.json", list(tables.labels))
        _write_json(self._partial / "index.json", described)
        if self.folder.exists():  # a run that has it open keeps its pages
            shutil.rmtree(self.folder)
        self._partial.rename(self.folder)
        self._closed = True


def _write_header(file: BinaryIO, dtype: np.dtype, count: int) -> None:
    """Header of an .npy file, padded by numpy such that its length does not depend on `count`."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (count,)})


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True)
    # Half of a surrogate pair, which a name may hold, has no UTF-8; its escape is JSON.
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


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
            ValueError: There is none, it is damaged or of another version, a malformed line, or no
                box left.
        """
        path = Path(path)
        if path.is_dir():
            return cls._open_folder(path)
        if not path.is_file():
            raise ValueError(f"no box index at '{path}'; make one with 'pbe-train prepare'")
        buffers = [io.BytesIO() for _ in range(4)]
        tables = _Tables(*buffers)
        for photo in _read_lines(path, Path(root or path.parent), min_area, max_area):
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
    if np.diff(path).max() > _MAX_PATH:
        raise ValueError(f"a path has more than {_MAX_PATH:,} bytes")
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


def _read_lines(path: Path, root: Path, min_area: float, max_area: float) -> Iterator[PhotoBoxes]:
    """Photos of a text file of boxes, in the order in which they first appear."""
    photos: dict[str, tuple[tuple[int, int], list[Box], list[str]]] = {}
    for number, line in numbered_lines(path):
        try:
            entry = parse_box(line)
            x0, y0, x1, y1 = map(int, entry.box)
            if entry.image not in photos:
                os.fsencode(entry.image)  # not every string can name a file
                width, height = entry.size or _header_size(root / entry.image)
                photos[entry.image] = (int(width), int(height)), [], []
            size, boxes, labels = photos[entry.image]
            pixels = size[0] * size[1]
            fits = not pixels or min_area <= (x1 - x0) * (y1 - y0) / pixels <= max_area
        except (ValueError, OverflowError) as error:
            raise ValueError(
                f"line {number} of '{path}' is no box entry ({shown(line, 80)}); "
                'each line must read {"image": "path", "box": [x0, y0, x1, y1]}'
            ) from error
        if fits:
            x0, y0, x1, y1 = (min(max(n, 0), LARGEST) for n in (x0, y0, x1, y1))
            boxes.append((x0, y0, x1, y1))
            labels.append(entry.label)
    for image, (size, boxes, labels) in photos.items():
        yield PhotoBoxes(path=image, size=size, boxes=np.array(boxes, int), labels=labels)


def _header_size(photo: Path) -> tuple[int, int]:
    try:
        return photo_size(photo)
    except OSError:
        return 0, 0


class BoxLine(NamedTuple):
    """A line of a text file of boxes (see `BoxIndex.open`)."""

    image: str
    box: tuple[float, ...]
    size: tuple[float, ...] | None
    label: str


def parse_box(line: str, labels: tuple[str, ...] = ("label",)) -> BoxLine:
    """Read a line of a text file of boxes.

    Args:
        line: JSON.
        labels: What the label may be called; the first that is there counts.

    Raises:
        ValueError: Not JSON, or not of the right types.
    """
    entry = parse_json(line)
    if not isinstance(entry, dict) or not isinstance(image := entry.get("image"), str):
        raise ValueError("it has no string 'image'")
    label = ""
    for name in labels:
        if name in entry:
            label = entry[name]
            break
    if isinstance(label, (dict, list)):
        raise ValueError("its label is not a string")
    size = entry.get("size")
    box = numbers(entry.get("box"), 4)
    return BoxLine(image, box, numbers(size, 2) if size else None, str(label))


def numbers(value: object, count: int) -> tuple[float, ...]:
    """The numbers of a list that came out of a file.

    Raises:
        ValueError: Not a list of so many numbers.
    """
    if not isinstance(value, list) or len(value) != count:
        raise ValueError(f"{shown(value, 80)} is not a list of {count} numbers")
    try:
        return tuple(map(float, value))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{shown(value, 80)} are not {count} numbers") from error
