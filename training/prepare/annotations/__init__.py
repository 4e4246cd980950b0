"""Readers of annotated photo collections, one format a file, and the filter on their boxes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from .base import FLAGS, Annotated, MarkedBox, Reader, Unusable
from .boxes import Boxes
from .coco import Coco
from .files import PhotoFinder, all_files, is_picture
from .filters import CLIPPED, BoxFilter
from .masks import Masks
from .openimages import open_images
from .voc import Voc
from .yolo import Yolo

FORMATS: dict[str, Callable[[Path, Path], Reader]] = {
    "openimages": open_images,
    "coco": Coco,
    "yolo": Yolo,
    "voc": Voc,
    "masks": Masks,
    "boxes": Boxes,
}
"""Makes the reader of a format from the folder of photos and the annotations."""


def open_reader(
    name: str, images: Path, annotations: Path | None = None, *, whole_masks: bool = False
) -> Reader:
    """The reader of a format.

    Args:
        name: One of `FORMATS`.
        images: Folder of photos.
        annotations: File or folder; formats with a custom find it beside the photos: `labels`
            for yolo, `Annotations` beside `JPEGImages` for voc.
        whole_masks: Masks only: one box around all that is white.

    Raises:
        ValueError: Nothing there, or an option that the format has not.
    """
    make = FORMATS[name]
    if name == "masks":
        make = partial(Masks, whole=whole_masks)
    elif whole_masks:
        raise ValueError(f"--whole-masks is for the format masks, not for {name}")
    if annotations is None:
        customs = {"yolo": images, "voc": images.absolute().parent / "Annotations"}
        if name not in customs:
            raise ValueError(f"the format {name} needs --annotations: a file or folder")
        annotations = customs[name]
    return make(images, annotations)


__all__ = [
    "CLIPPED",
    "FLAGS",
    "FORMATS",
    "Annotated",
    "BoxFilter",
    "MarkedBox",
    "PhotoFinder",
    "Reader",
    "Unusable",
    "all_files",
    "is_picture",
    "open_reader",
]
