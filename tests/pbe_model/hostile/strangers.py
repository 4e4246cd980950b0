"""What is no file of torch's at all, or one of before its first version."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import socket
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch

from .case import NO_MODEL, Case, Maker, Table, built, content, link, sparse
from .pickling import (
    DICT,
    NONE,
    call,
    legacy,
    named,
    number,
    numbers,
    program,
    row,
    storage,
    table,
    tensor,
    text,
)

_START = "it does not begin like one"
_VERSION = "its header is damaged or of an unknown version"
_KEYS = "its list of storages does not match its tensors"
_COUNT = "it is cut short, or a storage has another size"
_NO_FILE = "no checkpoint at|no image tower at"

HTML = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"
LFS = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4265437280\n"
)
GGUF = b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60) + bytes(100)


class Command:
    """Pickles as a call of `os.system`, the classic attack."""

    def __init__(self, marker: Path) -> None:
        self.command = f"touch {marker}"

    def __reduce__(self):
        return os.system, (self.command,)


_COMMAND = {"a": Command(Path("ran-by-file"))}


def _saved(value: object, *, zipped: bool) -> Maker:
    return lambda path: torch.save(value, path, _use_new_zipfile_serialization=zipped)


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    return file.getvalue()


def _npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.zeros(3))
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return file.getvalue()


def _socket(path: Path) -> None:
    """Bound where names may be long."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.fchdir(here)
    os.close(here)


_WEIGHTS = program(table(state_dict=table(a=tensor())))
_ONE = struct.pack("<qf", 1, 0)


def _legacy(says: str, *arguments: object, **changes: object) -> Case:
    pickled, *others = arguments or (_WEIGHTS,)
    return Case(built(lambda: legacy(pickled, *others, **changes)), says)


def _loop(steps: int) -> bytes:
    return program(DICT + (NONE + b"0") * (steps // 2))


FILES: Table = {
    "empty.ckpt": Case(content(b""), "it is an empty file"),
    "page.ckpt": Case(content(HTML), "it is an HTML page"),
    "pointer.ckpt": Case(content(LFS), "it is a Git LFS pointer"),
    "gguf.ckpt": Case(content(GGUF), "it is a GGUF model"),
    "text.ckpt": Case(content(b"PK is not what this begins with\n" * 10), "it is a text file"),
    "picture.ckpt": Case(content(b"\x89PNG\r\n\x1a\n" + bytes(100)), "it is a PNG picture"),
    "safe.ckpt": Case(content(struct.pack("<Q", 2) + b"{}"), "holds no weights|not an image tower"),
    "gzip.ckpt": Case(built(lambda: gzip.compress(_WEIGHTS)), "it is a gzip archive"),
    "zeros.ckpt": Case(sparse(b"", 2**32), "it is a file of zeros"),
    "numpy.ckpt": Case(built(_npz), "0 records named data.pkl|a record differs from what"),
    "zip.ckpt": Case(built(_zip), "0 records named data.pkl"),
    "tar.ckpt": Case(built(_tar), "it is a tar archive"),
    "module.ckpt": Case(_saved(torch.nn.Linear(2, 2), zipped=True), "not a dictionary of tensors"),
    **{
        f"pickle_{protocol}.ckpt": Case(
            content(pickle.dumps(_COMMAND, protocol=protocol)),
            f"it is a (Python pickle|text file)|{_START}",
        )
        for protocol in range(6)
    },
    "pipe.ckpt": Case(os.mkfifo, _NO_FILE),
    "device.ckpt": Case(link("/dev/zero"), _NO_FILE),
    "socket.ckpt": Case(_socket, _NO_FILE),
    "dangling.ckpt": Case(link("nowhere"), _NO_FILE),
    "loop.ckpt": Case(link("loop.ckpt"), _NO_FILE),
    "folder.ckpt": Case(Path.mkdir, "has no unet/config.json|no weights in"),
    "other_folder": Case(
        lambda path: (path / "unet").mkdir(parents=True), "has no unet/config|no weights"
    ),
    # ---- of before torch 1.6
    "legacy_command.ckpt": Case(
        _saved(Command(Path("ran-by-file")), zipped=False), "object of foreign code"
    ),
    "legacy_commands.ckpt": Case(
        _saved({"state_dict": _COMMAND}, zipped=False), "holds no weights"
    ),
    "legacy_module.ckpt": Case(
        _saved(torch.nn.Linear(2, 2), zipped=False), "something that is not a storage"
    ),
    "legacy_version.ckpt": _legacy(_VERSION, version=1002),
    "legacy_version_row.ckpt": _legacy(_VERSION, version=(1001,)),
    "legacy_keys_text.ckpt": _legacy(_VERSION, _WEIGHTS, program(text("0"))),
    "legacy_big_endian.ckpt": _legacy(
        "not in little-endian order", system={"little_endian": False}
    ),
    "legacy_no_system.ckpt": _legacy("not in little-endian order", system=None),
    "legacy_called_system.ckpt": _legacy(
        "not in little-endian order", system=program(call(named("posix", "system"), text("true")))
    ),
    "legacy_no_keys.ckpt": _legacy("bytes where its tensors say", _WEIGHTS, (), b""),
    "legacy_keys_twice.ckpt": _legacy(_KEYS, _WEIGHTS, ("0", "0"), _ONE * 2),
    "legacy_unknown_key.ckpt": _legacy(_KEYS, _WEIGHTS, ("1",)),
    "legacy_key_number.ckpt": _legacy(_KEYS, _WEIGHTS, (0,)),
    "legacy_key_row.ckpt": _legacy(_KEYS, _WEIGHTS, (("0",),)),
    "legacy_many_keys.ckpt": _legacy(
        _KEYS, _WEIGHTS, program(b"](" + text("0") * 100_000 + b"e")
    ).briefly(),
    "legacy_count.ckpt": _legacy(_COUNT, _WEIGHTS, ("0",), struct.pack("<qf", 2, 0)),
    "legacy_negative.ckpt": _legacy(_COUNT, _WEIGHTS, ("0",), struct.pack("<qf", -1, 0)),
    "legacy_cut.ckpt": _legacy(_COUNT, _WEIGHTS, ("0",), _ONE[:-1]),
    "legacy_nothing.ckpt": _legacy(_COUNT, _WEIGHTS, ("0",), b""),
    "legacy_2_62.ckpt": _legacy(
        _COUNT,
        program(table(a=tensor(of=storage("Float", "0", 2**62)))),
        ("0",),
        struct.pack("<q", 2**62),
    ),
    "legacy_minus.ckpt": _legacy(
        _COUNT,
        program(table(a=tensor(of=storage("Float", "0", -5)))),
        ("0",),
        struct.pack("<q", -6),
    ),
    "legacy_stride0.ckpt": _legacy("a tensor claims", program(table(a=tensor((10**9,), (0,))))),
    "legacy_view.ckpt": _legacy(
        "something that is not a storage",
        program(table(a=tensor(of=storage("Float", "0", 1, row(text("1"), number(0), number(1)))))),
    ),
    "legacy_identity.ckpt": _legacy("that is not a storage", program(numbers(1, 2) + b"Q")),
    "legacy_other_pickles.ckpt": Case(
        built(
            lambda: legacy(
                _loop(400_000),
                program(b"]" + (NONE + b"0") * 200_000),
                b"",
                version=program(number(233) + (NONE + b"0") * 200_000),
            )
        ),
        _VERSION,
    ).briefly(),
    "legacy_end.ckpt": Case(built(lambda: legacy(b"")[:60]), f"its pickle is cut short|{NO_MODEL}"),
}
