"""What worker processes do with photos: look at each, and bring its boxes to pixels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pbe_model.untrusted import first_line
from training.data.decode import decode_photo, photo_size, read_photo
from training.data.index_format import LARGEST, PhotoBoxes
from training.prepare.annotations import Annotated, BoxFilter, PhotoFinder, Reader, Unusable
from training.prepare.faults import kind_of
from training.prepare.pieces import Piece, finish

CHUNK = 256
"""Photos in a piece of work, which is what an interruption can lose."""


@dataclass(frozen=True)
class Job:
    """What a worker has to know."""

    reader: Reader
    finder: PhotoFinder
    box_filter: BoxFilter
    verify: bool
    work: Path


def numbered_chunks(entries: Iterator[Any]) -> Iterator[tuple[int, list[Any]]]:
    """What a reader yields in pieces of work, numbered from 0."""
    number = 0
    while chunk := list(islice(entries, CHUNK)):
        yield number, chunk
        number += 1


def examine(job: Job, chunk: tuple[int, list[Any]]) -> tuple[Path, int]:
    """Do a piece of work: headers, boxes, filter.

    Returns:
        Its file, and the number of entries.
    """
    number, entries = chunk
    path = job.work / f"{number:07d}.json"
    inputs = [text for entry in entries for text in (_name(entry), _version(job.reader, entry))]
    finish(path, inputs, partial(_examine_photos, job, entries))
    return path, len(entries)


def _examine_photos(job: Job, entries: list[Any]) -> Piece:
    piece = Piece()
    for entry in entries:
        name = _name(entry)
        try:
            annotated = job.reader.read(entry)
            piece.faults.note(annotated.faults)
            name, guessed = annotated.path, annotated.guessed
            if job.reader.states_paths:
                name, is_certain = job.finder.find(annotated.path)
                guessed = "" if is_certain else annotated.path
            if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
                raise Unusable("its name is not UTF-8")
            size = _check(job.reader.images / name, job.verify)
            boxes, labels = job.box_filter.apply(annotated, size, piece.counts, piece.faults)
        except Unusable as error:
            piece.unusable.append((name, error.kind, str(error)))
        except OSError as error:
            piece.unusable.append((name, kind_of(error), first_line(error)))
        else:
            if labels:
                piece.add(PhotoBoxes(path=name, size=size, boxes=boxes, labels=labels), guessed)
            else:
                piece.boxless.append(name)
    return piece


def _name(entry: Any) -> str:
    """Of what a reader yields: the path of the photo, or of what describes it."""
    if isinstance(entry, Annotated):
        return entry.path
    return entry if isinstance(entry, str) else entry[0]


def _version(reader: Reader, entry: Any) -> str:
    """Of the file that annotates a photo: it may be mended between two calls."""
    try:
        if path := reader.source(entry):
            stat = os.stat(path)
            return f"{stat.st_size} {stat.st_mtime_ns}"
    except (OSError, ValueError):
        pass
    return ""


def _check(path: Path, verify: bool) -> tuple[int, int]:
    """Width and height of a photo that can be used, as far as one has looked."""
    width, height = photo_size(path)
    if max(width, height) > LARGEST:
        raise Unusable("too many pixels", f"{width} x {height}; a side may have {LARGEST}")
    if verify:
        decoded = decode_photo(read_photo(path)).shape
        if decoded[:2] != (height, width):
            detail = f"{width} x {height}, and {decoded[1]} x {decoded[0]} decoded"
            raise Unusable("its header says another size", detail)
    return width, height
