"""Any annotated photo collection as box indexes to train on: `pbe-train prepare FORMAT`.

A reader (`annotations`) says what there is, in chunks of a fixed number of photos. Worker processes
check the photos of a chunk, bring its boxes to pixels, filter them, and leave the result as a file.
Killed at any moment, the same command goes on with the chunks that are missing. When all are there
they are split by photo and written as indexes (`training.index`), in the order of the reader:
neither the number of processes nor an interruption changes a byte.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pbe_model.atomic import replacing
from pbe_model.untrusted import first_line, printable, read_json, shown
from training.data.decode import decode_photo, photo_size, read_photo
from training.data.index import BoxIndex
from training.data.index_format import LARGEST, PhotoBoxes
from training.data.index_writer import IndexWriter
from training.prepare.annotations import CLIPPED, Annotated, BoxFilter, Reader, Unusable
from training.prepare.census import Census, table
from training.prepare.packing import FOLDER as SHARDS
from training.prepare.packing import Packing, pack, packed_photos, shard_names
from training.prepare.pieces import Piece, finish
from training.prepare.sample_sheet import write_sample_sheet
from training.prepare.workers import process_map

CHUNK = 256
"""Photos in a piece of work, which is what an interruption can lose."""
_HASHES = 2**64
_WORK = "prepare.partial"
_SETTINGS = "prepare.json"
_MAX_SETTINGS = 2**24  # bytes
_SHOWN = 3
_SHARE, _AT_LEAST = 0.01, 8  # photos held out by default; of few photos a fifth
_NO_FILE = "no such file"
_WITHOUT_BOX = "without a box left"


@dataclass
class Prepared:
    """What came of a collection.

    Attributes:
        splits: Figures by split.
        photos_left_out: Number of photos by reason.
        boxes_left_out: Number of boxes by reason, the first that applied.
        clipped: Number of boxes that reached over the photo's edge and were cut off there.
    """

    splits: dict[str, Census] = field(default_factory=dict)
    photos_left_out: Counter[str] = field(default_factory=Counter)
    boxes_left_out: Counter[str] = field(default_factory=Counter)
    clipped: int = 0

    def left_out(self) -> dict[str, dict[str, int]]:
        """Counts by heading and reason, in alphabetical order."""
        return {
            "photos left out": dict(sorted(self.photos_left_out.items())),
            "boxes left out": dict(sorted(self.boxes_left_out.items())),
            "boxes changed": {"clipped to the photo": self.clipped} if self.clipped else {},
        }

    def __str__(self) -> str:
        """The table that the command prints."""
        return table(self.splits, self.left_out())


def prepare(
    reader: Reader,
    out: Path,
    *,
    box_filter: BoxFilter,
    val: float | None = None,
    verify: bool = False,
    packing: Packing | None = None,
    processes: int = 1,
) -> Prepared:
    """Write the indexes `out/train` and `out/val`, `out/unreadable.txt` and `out/samples.jpg`.

    Args:
        reader: What to read.
        out: Folder to write; the same call resumes what was interrupted there.
        box_filter: Which boxes are kept.
        val: Photos to hold out: a share below 1, or a number; 0 writes no `val`. By default one in
            a hundred, but at least eight, and of fewer than 40 photos a fifth. They are chosen by a
            hash of the path, so a share stays the same when photos are added.
        verify: Decode every photo instead of reading its header only.
        packing: Copy the photos into tar shards, and let the indexes point there.
        processes: Worker processes; the result does not depend on it.

    Raises:
        ValueError: Nothing found or nothing left, malformed annotations, `out` was begun with other
            options or cannot be written.
    """
    if val is not None and (val < 0 or (val >= 1 and val != int(val))):
        raise ValueError(f"--val {val} is neither a share below 1 nor a number of photos")
    out = out.absolute()
    settings = _settings(reader, box_filter, val, verify, packing)
    work = _claim(out, settings)
    with process_map(processes, preload=__name__) as run:
        pieces = _examine_all(_Job(reader, box_filter, verify, work), run)
        limit = _hash_limit(pieces, val, reader)
        splits = {"train": _split(pieces, limit, held_out=False)}
        if val != 0:
            splits["val"] = _split(pieces, limit, held_out=True)
        packed = {}
        if packing is not None:
            for name, photos in splits.items():
                packed[name] = pack(name, photos, reader.images, out, work, packing, run)
    pieces += [path for paths in packed.values() for path in paths]
    result = _count(pieces, reader)
    meta = {
        **result.left_out(),
        "settings": settings,
        "photos": _seen_from(out, settings["images"]),
    }
    for name, photos in splits.items():
        if name in packed:
            photos = packed_photos(packed[name])
            meta |= {"photos": SHARDS, "shards": shard_names(packed[name])}
        result.splits[name] = _write_index(out / name, photos, meta)
    _write_unusable(out / "unreadable.txt", pieces)
    write_sample_sheet(out / "samples.jpg", BoxIndex.open(out / "train"), out)
    shutil.rmtree(work)
    return result


@dataclass(frozen=True)
class _Job:
    """What a worker has to know."""

    reader: Reader
    box_filter: BoxFilter
    verify: bool
    work: Path


def _settings(
    reader: Reader, box_filter: BoxFilter, val: float | None, verify: bool, packing: Packing | None
) -> dict[str, Any]:
    """Everything that decides the result, as JSON can hold it."""
    stat = reader.annotations.stat()
    return {
        "format": type(reader).__name__,
        "images": os.path.abspath(reader.images),
        "annotations": os.path.abspath(reader.annotations),
        "annotations of": [stat.st_size, stat.st_mtime_ns] if reader.annotations.is_file() else [],
        "whole_masks": getattr(reader, "whole", False),
        **{k: sorted(v) if isinstance(v, frozenset) else v for k, v in asdict(box_filter).items()},
        "val": "default" if val is None else val,
        "verify": verify,
        "packing": packing and asdict(packing),
    }


def _claim(out: Path, settings: dict[str, Any]) -> Path:
    """The folder for pieces of work; refuses to mix two collections or two filters in one `out`."""
    path, work = out / _SETTINGS, out / _WORK
    settings = json.loads(json.dumps(settings))
    if path.exists():
        remedy = "give another --out, or delete that folder"
        found = read_json(path, _MAX_SETTINGS, remedy)
        names = sorted(k for k in found | settings if found.get(k) != settings.get(k))
        if names:
            differences = [
                f"{shown(name, 40)} {shown(found.get(name), 80)} (now {settings.get(name)})"
                for name in names[:_SHOWN]
            ]
            if len(names) > _SHOWN:
                differences.append(f"{len(names) - _SHOWN} others")
            raise ValueError(f"'{out}' was begun with {', '.join(differences)}; {remedy}")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder '{work}': {error.strerror}") from error
    with replacing(path) as part:
        text = json.dumps(settings, ensure_ascii=False, indent=1)
        part.write_text(text, encoding="utf-8", errors="backslashreplace")  # of surrogates
    return work


def _seen_from(out: Path, images: str) -> str:
    """Where photos lie as an index says it: relative inside `out`, so that it can be moved."""
    return os.path.relpath(images, out) if Path(images).is_relative_to(out) else images


def _examine_all(job: _Job, run: Callable[..., Iterator[Any]]) -> list[Path]:
    """Files of the pieces in the order of the reader."""
    entries, done = job.reader.entries(), []
    with tqdm(desc="photos", unit=" photos") as bar:
        for path, count in run(partial(_examine, job), _numbered_chunks(entries)):
            done.append(path)
            bar.total = job.reader.total
            bar.update(count)
        bar.total = bar.n
    if not done:
        passed = "".join(f" ({n} {why})" for why, n in sorted(job.reader.left_out.items()))
        raise ValueError(f"found no {job.reader.looked_for}{passed}")
    return done


def _numbered_chunks(entries: Iterator[Any]) -> Iterator[tuple[int, list[Any]]]:
    number = 0
    while chunk := list(islice(entries, CHUNK)):
        yield number, chunk
        number += 1


def _examine(job: _Job, chunk: tuple[int, list[Any]]) -> tuple[Path, int]:
    """Do a piece of work: headers, boxes, filter."""
    number, entries = chunk
    path = job.work / f"{number:07d}.json"
    finish(path, map(_name, entries), partial(_examine_photos, job, entries))
    return path, len(entries)


def _examine_photos(job: _Job, entries: list[Any]) -> Piece:
    piece = Piece()
    for entry in entries:
        name = _name(entry)
        try:
            annotated = job.reader.read(entry)
            name = annotated.path
            if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
                raise Unusable("its name is not UTF-8")
            size = _check(job.reader.images / name, job.verify)
            boxes, labels = job.box_filter.apply(annotated, size, piece.counts)
        except (OSError, Unusable) as error:
            piece.unusable.append((name, first_line(error)))
            continue
        if labels:
            photo = PhotoBoxes(path=name, size=size, boxes=boxes, labels=labels)
            piece.photos.append(photo)
        else:
            piece.counts[_WITHOUT_BOX] += 1
    return piece


def _name(entry: Any) -> str:
    """Of what a reader yields: the path of the photo, or of what describes it."""
    if isinstance(entry, Annotated):
        return entry.path
    return entry if isinstance(entry, str) else entry[0]


def _check(path: Path, verify: bool) -> tuple[int, int]:
    """Width and height of a photo that can be used, as far as one has looked."""
    width, height = photo_size(path)
    if max(width, height) > LARGEST:
        raise Unusable(f"{width} x {height} pixels; a side may have {LARGEST}")
    if verify:
        decoded = decode_photo(read_photo(path)).shape
        if decoded[:2] != (height, width):
            raise Unusable(f"{width} x {height} by its header, {decoded[1]} x {decoded[0]} decoded")
    return width, height


def _hash(path: str) -> int:
    """Of a path, even over 0 .. 2^64."""
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _hash_limit(pieces: list[Path], val: float | None, reader: Reader) -> int:
    """Photos whose hash is below it are held out.

    Raises:
        ValueError: No photo is left, or none would be to train on.
    """
    hashes = [_hash(photo.path) for path in pieces for photo in Piece.load(path).photos]
    if not hashes:
        reasons = "; ".join(
            f"{heading}: " + ", ".join(f"{reason} ({n:,})" for reason, n in counts.items())
            for heading, counts in _count(pieces, reader).left_out().items()
            if counts
        )
        raise ValueError(
            f"no photo in '{reader.images}' has a box left ({reasons}); widen the limits, or check "
            "--images and --annotations"
        )
    if val is None:
        val, number = _SHARE, max(1, min(_AT_LEAST, len(hashes) // 5))
    else:
        number = max(int(val), 1)  # a share holds out at least one
    if val and number >= len(hashes):
        raise ValueError(
            f"--val {val:g} of {len(hashes)} photos leaves none to train on; hold out fewer"
        )
    limit = heapq.nsmallest(number, hashes)[-1] + 1
    if val < 1:
        limit = max(limit, int(val * _HASHES)) if val else 0
    return limit


def _split(pieces: list[Path], limit: int, *, held_out: bool) -> Iterator[PhotoBoxes]:
    for path in pieces:
        yield from Piece.load(path, lambda name: (_hash(name) < limit) == held_out).photos


def _count(pieces: list[Path], reader: Reader) -> Prepared:
    result = Prepared(photos_left_out=Counter(reader.left_out))
    for path in pieces:
        piece = Piece.load(path)
        for _, reason in piece.unusable:
            kind = reason if reason == _NO_FILE else "unreadable or unfit (see unreadable.txt)"
            result.photos_left_out[kind] += 1
        result.boxes_left_out += piece.counts
    result.photos_left_out[_WITHOUT_BOX] = result.boxes_left_out.pop(_WITHOUT_BOX, 0)
    result.photos_left_out = +result.photos_left_out
    result.clipped = result.boxes_left_out.pop(CLIPPED, 0)
    return result


def _write_index(folder: Path, photos: Iterable[PhotoBoxes], meta: dict[str, Any]) -> Census:
    census = Census()
    with IndexWriter(folder) as writer:
        for photo in tqdm(photos, desc=folder.name, unit=" photos"):
            census.add(photo)
            writer.add(photo)
        writer.close({**meta, "statistics": census.as_dict()})
    return census


def _write_unusable(path: Path, pieces: list[Path]) -> None:
    """A line a photo: its path, a tab, the reason; empty if all is well."""
    with replacing(path) as part, part.open("w", encoding="utf-8") as file:
        for piece in map(Piece.load, pieces):
            file.writelines(
                f"{printable(name)}\t{shown(reason)}\n" for name, reason in piece.unusable
            )
