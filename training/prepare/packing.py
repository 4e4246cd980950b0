"""Photos of a prepared collection into tar shards, several at a time, resumable shard by shard."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from tqdm import tqdm

from pbe_model.untrusted import first_line
from training.data.decode import decode_photo, read_photo
from training.data.index_format import PhotoBoxes
from training.data.shards import ShardWriter
from training.prepare.faults import kind_of
from training.prepare.pieces import Piece, finish

FOLDER = "shards"
_QUALITY = 95  # of JPEG


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How photos go into shards.

    Attributes:
        shard_bytes: About the size of a shard.
        max_side: Photos with a longer side are shrunk to it and stored as JPEG; the bytes of all
            others are copied. `None` copies all.
    """

    shard_bytes: int = 256 * 10**6
    max_side: int | None = None


@dataclass(frozen=True)
class _Job:
    """What a worker has to know."""

    split: str
    images: Path
    shards: Path
    work: Path
    packing: Packing


def pack(
    split: str,
    photos: Iterable[PhotoBoxes],
    images: Path,
    out: Path,
    work: Path,
    packing: Packing,
    run: Callable[..., Iterator[Path]],
) -> list[Path]:
    """Write `out/shards/<split>-000000.tar` and so on.

    Args:
        split: Name of the split.
        photos: What to pack.
        images: Folder that their paths start from.
        out: Folder of the prepared collection.
        work: Folder for what is finished.
        packing: Sizes.
        run: A `map` over processes.

    Returns:
        Files of pieces, one a shard; `packed_photos` and `shard_names` read them.
    """
    folder = out / FOLDER
    folder.mkdir(exist_ok=True)
    job = _Job(split, images, folder, work, packing)
    done = run(partial(_pack_one, job), enumerate(_portions(photos, images, packing)))
    return list(tqdm(done, desc=f"{split} shards", unit=" shards"))


def shard_names(pieces: list[Path]) -> list[str]:
    """Names of the shards in the order of their numbers: those that hold a photo."""
    return [f"{path.stem}.tar" for path in pieces if Piece.load(path).photos]


def packed_photos(pieces: list[Path]) -> Iterator[PhotoBoxes]:
    """Photos with the places of their bytes."""
    number = 0
    for path in pieces:
        photos = Piece.load(path).photos
        for photo in photos:
            yield replace(photo, shard=number)
        number += bool(photos)


def _portions(
    photos: Iterable[PhotoBoxes], images: Path, packing: Packing
) -> Iterator[list[PhotoBoxes]]:
    """Photos for one shard after the other, by the expected sizes of their files."""
    portion, used = [], 0.0
    for photo in photos:
        share = min(1.0, (packing.max_side or max(photo.size)) / max(photo.size))
        expected = _file_size(images / photo.path) * share**2
        if portion and used + expected > packing.shard_bytes:
            yield portion
            portion, used = [], 0.0
        portion.append(photo)
        used += expected
    if portion:
        yield portion


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it went away, which is noted when it is read
        return 0


def _pack_one(job: _Job, portion: tuple[int, list[PhotoBoxes]]) -> Path:
    number, photos = portion
    name = f"{job.split}-{number:06d}"
    path = job.work / f"{name}.json"
    return finish(path, [p.path for p in photos], partial(_write_shard, job, name, photos))


def _write_shard(job: _Job, name: str, photos: list[PhotoBoxes]) -> Piece:
    piece, folder = Piece(), job.work / name
    with ShardWriter(folder, max_bytes=2**62) as writer:
        for photo in photos:
            try:
                data = read_photo(job.images / photo.path)
                stored = _shrunk(photo, data, job.packing.max_side)
            except OSError as error:
                piece.unusable.append((photo.path, kind_of(error), first_line(error)))
                continue
            piece.add(writer.add(*stored))  # where a full disk is no fault of the photo
    for shard in writer.names:
        (folder / shard).replace(job.shards / f"{name}.tar")
    shutil.rmtree(folder)
    return piece


def _shrunk(photo: PhotoBoxes, data: bytes, max_side: int | None) -> tuple[PhotoBoxes, bytes]:
    """Photo and bytes as they are to be stored: untouched unless a side is too long."""
    longer = max(photo.size)
    if max_side is None or longer <= max_side:
        return photo, data
    size = tuple(max(1, round(side * max_side / longer)) for side in photo.size)
    pixels = cv2.resize(decode_photo(data), size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    scale = np.array(size) / photo.size
    boxes = np.rint(photo.boxes * np.tile(scale, 2)).astype(np.int64)
    low = np.minimum(boxes[:, :2], np.array(size) - 1)
    boxes = np.concatenate([low, np.maximum(boxes[:, 2:], low + 1)], axis=1)  # a pixel at least
    path = PurePosixPath(photo.path).with_suffix(".jpg").as_posix()
    return replace(photo, path=path, size=size, boxes=boxes), encoded.tobytes()
