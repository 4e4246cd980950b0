"""Writing a box index, photo by photo: see `index_format` for its files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pbe_model.untrusted import shown
from training.data.index_format import BOX, FORMAT, LARGEST, MAX_PATH, PHOTO, PLACE, PhotoBoxes


class Tables:
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
        if len(path) > MAX_PATH:
            raise ValueError(
                f"'{shown(photo.path)}' is a path of {len(path):,} bytes, and {MAX_PATH:,} are "
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
        self._tables = Tables(*self._files)
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
