"""Files from anywhere: whatever they hold or are, they end in a sentence, at once.

What is right in each format is tested beside its reader.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pbe_model.untrusted import shown
from training.data.index_format import PhotoBoxes
from training.data.index_writer import IndexWriter
from training.prepare.annotations import Annotated, Unusable, open_reader

DEEP = "[" * 100_000
NESTED = "[" * 500 + "]" * 500
HUGE = "1" + "0" * 400  # an integer that is no float
TERMINAL = "\x1b[31m\n"
HEADER = "ImageID,LabelName,XMin,YMin,XMax,YMax"
RECORD = {"path": "a.jpg", "size": [40, 20], "boxes": [[0, 0, 9, 9]], "labels": ["x"]}


def put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pipe(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def large(path: Path, size: int) -> Path:
    """A file that claims the size and takes no space."""
    put(path, b"")
    os.truncate(path, size)
    return path


def picture(path: Path, size: tuple[int, int] = (40, 20)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(path)
    return path


def sentence(act: Callable[[], object], pattern: str) -> None:
    """`act` fails with one printable line."""
    with pytest.raises(ValueError, match=pattern) as error:
        act()
    message = str(error.value)
    assert message.isprintable() and len(message) < 1500, message


def everything(form: str, images: Path, annotations: Path) -> list[Annotated]:
    reader = open_reader(form, images, annotations)
    return [reader.read(entry) for entry in reader.entries()]


def passed_over(form: str, images: Path, annotations: Path) -> list[str]:
    """What a reader reports of single photos and annotations: where and why, a printable line."""
    reader, found = open_reader(form, images, annotations), []
    for entry in reader.entries():
        try:
            found += [(fault.where, fault.reason) for fault in reader.read(entry).faults]
        except Unusable as error:
            found.append((str(entry), str(error)))
    lines = [f"{shown(where)}: {reason}" for where, reason in [*reader.faults.pairs(), *found]]
    assert all(line.isprintable() and len(line) < 500 for line in lines), lines
    return lines


def index_folder(folder: Path, **meta: object) -> Path:
    boxes = np.array([[0, 0, 9, 9], [1, 1, 8, 8]])
    with IndexWriter(folder) as writer:
        for name in ("a.png", "b.png"):
            writer.add(PhotoBoxes(path=name, size=(40, 20), boxes=boxes, labels=["x", "y"]))
        writer.close(meta)
    return folder


def npy(description: str, rows: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    header = description.encode("latin-1") + b"\n"
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header + rows


def described(dtype: np.dtype, shape: object, order: object = False) -> str:
    descr = np.lib.format.dtype_to_descr(dtype)
    return repr({"descr": descr, "fortran_order": order, "shape": shape})


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
