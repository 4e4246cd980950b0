"""Any annotated photo collection as box indexes to train on: `pbe-train prepare FORMAT`.

A reader (`annotations`) says what there is, in chunks of a fixed number of photos. Worker processes
check the photos of a chunk, bring its boxes to pixels, filter them, and leave the result as a file
(`examine`). Killed at any moment, the same command goes on with the chunks that are missing. When
all are there they are split by photo and written as indexes (`training.index`), in the order of the
reader: neither the number of processes nor an interruption changes a byte.

What is wrong with one photo or one annotation is counted, listed and passed over.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pbe_model.atomic import replacing
from pbe_model.untrusted import read_json, shown
from training.data.index import BoxIndex
from training.data.index_format import PhotoBoxes
from training.data.index_writer import IndexWriter
from training.prepare.annotations import BoxFilter, PhotoFinder, Reader
from training.prepare.census import Census
from training.prepare.claims import NothingLeft, Photos
from training.prepare.examine import Job, examine, numbered_chunks
from training.prepare.folder import count_folder
from training.prepare.packing import FOLDER as SHARDS
from training.prepare.packing import Packing, pack, packed_photos, shard_names
from training.prepare.report import LIST, Prepared, write_list
from training.prepare.sample_sheet import write_sample_sheet
from training.prepare.workers import process_map

_WORK = "prepare.partial"
_SETTINGS = "prepare.json"
_MAX_SETTINGS = 2**24  # bytes
_SHOWN = 3


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
        ValueError: Nothing found or nothing left, which leaves nothing in `out`; annotations of
            another format; `out` was begun with other options or cannot be written.
    """
    if val is not None and (val < 0 or (val >= 1 and val != int(val))):
        raise ValueError(f"--val {val} is neither a share below 1 nor a number of photos")
    out = out.absolute()
    settings = _settings(reader, box_filter, val, verify, packing)
    with (
        _claimed(out, settings) as work,
        process_map(processes, preload=examine.__module__) as run,
    ):
        job = Job(reader, PhotoFinder(reader.images), box_filter, verify, work)
        pieces = _examine_all(job, run)
        photos = Photos(pieces, reader.images)
        if not len(photos):
            raise NothingLeft(
                f"no photo in '{reader.images}' has a box left "
                f"({Prepared.of(reader, photos, pieces).reasons()}); widen the limits, or check "
                "--images and --annotations"
            )
        limit = photos.limit(val)
        splits = {"train": photos.split(limit, held_out=False)}
        if val != 0:
            splits["val"] = photos.split(limit, held_out=True)
        packed = {}
        if packing is not None:
            for name, found in splits.items():
                packed[name] = pack(name, found, reader.images, out, work, packing, run)
        packs = [path for paths in packed.values() for path in paths]
        result = Prepared.of(reader, photos, pieces + packs)
        meta = {
            **result.left_out(),
            "settings": settings,
            "photos": _seen_from(out, settings["images"]),
        }
        for name, found in splits.items():
            if name in packed:
                found = packed_photos(packed[name])
                meta |= {"photos": SHARDS, "shards": shard_names(packed[name])}
            result.splits[name] = _write_index(out / name, found, meta)
        write_list(out / LIST, reader, photos, pieces + packs)
        write_sample_sheet(out / "samples.jpg", BoxIndex.open(out / "train"), out)
        unpacked = Prepared.of(reader, photos, packs).unusable
        result.folder = count_folder(
            reader.images,
            reader.annotations,
            out,
            np.setdiff1d(photos.keys, np.asarray(unpacked, np.uint64)),
            result.boxless,
            result.unusable,
        )
    return result


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


@contextmanager
def _claimed(out: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """The folder for pieces of work; refuses to mix two collections or two filters in one `out`.

    It stays for a later call unless the work is done, or was in vain.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    is_new = not (out / _SETTINGS).exists()
    work = _claim(out, settings)
    try:
        yield work
    except ValueError as error:
        if any(work.iterdir()) and not isinstance(error, NothingLeft):
            raise
        shutil.rmtree(work)
        if is_new:
            (out / _SETTINGS).unlink()
        for folder in made:
            folder.rmdir()
        raise
    shutil.rmtree(work)


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


def _examine_all(job: Job, run: Callable[..., Iterator[Any]]) -> list[Path]:
    """Files of the pieces in the order of the reader."""
    reader, done = job.reader, []
    with tqdm(desc="photos", unit=" photos") as bar:
        for path, count in run(partial(examine, job), numbered_chunks(reader.entries())):
            done.append(path)
            bar.total = reader.total
            bar.update(count)
        bar.total = bar.n
    if not done:
        reasons = Prepared.of(reader, Photos([], reader.images), []).reasons()
        raise NothingLeft(f"found no {reader.looked_for}" + (f" ({reasons})" if reasons else ""))
    return done


def _write_index(folder: Path, photos: Iterable[PhotoBoxes], meta: dict[str, Any]) -> Census:
    census = Census()
    with IndexWriter(folder) as writer:
        for photo in tqdm(photos, desc=folder.name, unit=" photos"):
            census.add(photo)
            writer.add(photo)
        writer.close({**meta, "statistics": census.as_dict()})
    return census
