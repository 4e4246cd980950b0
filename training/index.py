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
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from pbe_model.mask import Box
from training.headers import photo_size

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
        if boxes.min() < 0 or boxes.max() > LARGEST or not 0 <= max(photo.size) <= LARGEST:
            raise ValueError(
                f"'{photo.path}' ({photo.size[0]} x {photo.size[1]}) has a side or a box "
                f"coordinate that is not in 0 to {LARGEST} pixels; clip the box or leave it out"
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
                f"'{photo.path}': an index has all of its photos in shards or none, "
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
            ValueError: A coordinate below 0 or above 65,535, or only some photos are in shards.
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
    path.write_text(text + "\n", encoding="utf-8")


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
            meta = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
            if meta["format"] != FORMAT:
                raise ValueError(f"its format is {meta['format']}, not {FORMAT}")
            boxes, photos = (_mapped(folder / f"{name}.npy") for name in ("boxes", "photos"))
            has_places = (folder / "places.npy").exists()
            places = _mapped(folder / "places.npy") if has_places else None
            paths = np.asarray(np.memmap(folder / "paths.bin", np.uint8, mode="r"))
            found = (len(boxes), len(photos) - 1, len(paths))
            if found != (meta["num_boxes"], meta["num_photos"], photos["path"][-1]):
                raise ValueError(f"it holds {found[0]} boxes and {found[1]} photos, or lacks paths")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"'{folder}' is no readable box index ({error}); make it anew with "
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
        """Name of what the box with this number shows, "" if it has none."""
        return self.labels[self.boxes["label"][number]]


def _mapped(path: Path) -> np.ndarray:
    # Elements of a plain array are read several times faster than those of its memmap subclass.
    return np.asarray(np.load(path, mmap_mode="r"))


def _reopen(folder: Path, digest: str) -> BoxIndex:
    index = BoxIndex.open(folder)
    if index.digest != digest:
        raise ValueError(f"'{folder}' was made anew while it was in use; start again")
    return index


def _read_lines(path: Path, root: Path, min_area: float, max_area: float) -> Iterator[PhotoBoxes]:
    """Photos of a text file of boxes, in the order in which they first appear."""
    photos: dict[str, tuple[tuple[int, int], list[Box], list[str]]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                image = str(entry["image"])
                x0, y0, x1, y1 = (int(value) for value in entry["box"])
                if image not in photos:
                    width, height = entry.get("size") or _header_size(root / image)
                    photos[image] = (int(width), int(height)), [], []
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"line {number} of '{path}' is no box entry ({line.strip()[:80]}); "
                    'each line must read {"image": "path", "box": [x0, y0, x1, y1]}'
                ) from error
            size, boxes, labels = photos[image]
            pixels = size[0] * size[1]
            if not pixels or min_area <= (x1 - x0) * (y1 - y0) / pixels <= max_area:
                box = np.clip((x0, y0, x1, y1), 0, LARGEST).tolist()
                boxes.append(tuple(box))
                labels.append(str(entry.get("label", "")))
    for image, (size, boxes, labels) in photos.items():
        yield PhotoBoxes(path=image, size=size, boxes=np.array(boxes, int), labels=labels)


def _header_size(photo: Path) -> tuple[int, int]:
    try:
        return photo_size(photo)
    except OSError:
        return 0, 0
