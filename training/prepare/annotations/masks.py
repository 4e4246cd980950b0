"""A folder of photos and a folder of masks with the same names; white is the object."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from pbe_model.image_io import read_mask
from pbe_model.untrusted import first_line
from training.prepare.faults import Fault

from .base import Annotated, MarkedBox, Reader, Unusable
from .files import pictures_below

_MOST_BLOBS = 2**16  # more are noise, and would take gigabytes


@dataclass
class Masks(Reader):
    """The box around every connected white blob, or around all that is white.

    Attributes:
        whole: One box a mask, not one a blob. Specks are dropped as any box that is too small.
    """

    takes = "folder"

    whole: bool = False

    @property
    def looked_for(self) -> str:
        """See `Reader`."""
        return f"photos in '{self.images}' with a mask of the same name in '{self.annotations}'"

    def entries(self) -> Iterator[tuple[str, str]]:
        """See `Reader`: relative paths of photo and mask; suffixes may differ."""
        there = pictures_below(self.annotations, self.cannot_read)
        masks = {_stem(path): path for path in reversed(there)}
        photos = pictures_below(self.images, self.cannot_read)
        if self.annotations.is_relative_to(self.images) and self.annotations != self.images:
            inside = self.annotations.relative_to(self.images).as_posix() + "/"
            photos = [photo for photo in photos if not photo.startswith(inside)]
        self.total = len(photos)
        for photo in photos:
            if mask := masks.get(_stem(photo)):
                yield photo, mask
            else:
                self.left_out["photos without a mask"] += 1
        alone = sorted(masks.keys() - {_stem(photo) for photo in photos})
        self.faults.note(Fault(masks[stem], "no photo for this mask") for stem in alone)
        for mask in there:
            if mask != (used := masks[_stem(mask)]):
                self.faults.note([Fault(mask, "another mask has the same name", used)])

    def source(self, entry: tuple[str, str]) -> str:
        """See `Reader`."""
        return os.path.join(self.annotations, entry[1])

    def read(self, entry: tuple[str, str]) -> Annotated:
        """See `Reader`; a mask may be smaller or larger than its photo, not of another shape."""
        photo, mask = entry
        try:
            object_mask = read_mask(self.annotations / mask).numpy() > 0.5
        except ValueError as error:
            raise Unusable("its mask is empty or cannot be read", first_line(error)) from error
        blobs: Any = object_mask.astype(np.int32)
        if not self.whole:
            labelled: Any = ndimage.label(object_mask, structure=np.ones((3, 3)))  # 8 neighbours
            blobs, count = labelled
            if count > _MOST_BLOBS:
                raise Unusable(
                    "its mask has too many white blobs", f"{count:,}; {_MOST_BLOBS:,} are the most"
                )
        height, width = object_mask.shape
        boxes = [
            MarkedBox(columns.start, rows.start, columns.stop, rows.stop)
            for rows, columns in ndimage.find_objects(blobs)
        ]
        return Annotated(photo, boxes, frame=(width, height))


def _stem(path: str) -> str:
    return path.rpartition(".")[0]
