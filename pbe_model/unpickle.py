"""Reading `.ckpt` files without running their code.

A torch checkpoint is a pickle, and a pickle may name any function to be called. The official file
also holds objects of pytorch-lightning, so torch's own `weights_only=True` rejects it. Here every
name outside a short list becomes an inert stand-in that swallows what is done to it. What a file
can make of a small disk space, a large memory, is bounded before anything is built.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch._utils

_STORAGES = {
    f"{kind}Storage"
    for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte",
                 "Bool")
}  # fmt: skip
_MAX_STEPS = 2_000_000  # of a pickle's program; the official file's has about a tenth
_MAX_DIRECTORY = 8 * 2**20  # bytes of an archive's directory; the official one's has half a MB
_END_OF_ZIP = 65_557 + 76  # bytes at the end of an archive that say where its directory is


def _empty(*args: Any) -> OrderedDict:
    """An ordered dictionary as pickles make one, empty first: filled copies could multiply."""
    return OrderedDict()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _empty,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    **{("torch", name): getattr(torch, name) for name in _STORAGES},
}


class Inert:
    """Stands in for any foreign class or function: constructed, called, filled, to no effect."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert()

    def __setstate__(self, state: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...
    def append(self, value: Any) -> None:
        """Swallow a list item."""

    def extend(self, values: Any) -> None:
        """Swallow list items."""

    def add(self, value: Any) -> None:
        """Swallow a set item."""


class _Unpickler(pickle.Unpickler):
    """Knows no names but the allowed ones; notes the others."""

    foreign: set[str]

    def __init__(self, file: BinaryIO, **kwargs: Any) -> None:
        super().__init__(file, **kwargs)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get((module, name))
        if allowed is None:
            self.foreign.add(f"{module}.{name}"[:200])
        return allowed or Inert

    def load(self) -> Any:
        start = self._file.tell()
        _check_program(self._file)
        self._file.seek(start)
        return super().load()


def _check_program(file: BinaryIO) -> None:
    """Refuse a pickle that would run long or fill the memory."""
    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        # The memo is a table as long as its largest index.
        memo = argument if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") else 0
        if max(step, int(memo or 0)) > _MAX_STEPS:
            raise ValueError(f"its pickle has more than {_MAX_STEPS:,} steps")


def _safe_pickle(foreign: set[str]) -> types.ModuleType:
    """What torch.load expects of a replacement for the pickle module."""
    module: Any = types.ModuleType("safe_pickle")
    module.Unpickler = type("Unpickler", (_Unpickler,), {"foreign": foreign})
    module.load = lambda file, **kwargs: module.Unpickler(file, **kwargs).load()
    return module


def load_tensors(path: Path, foreign: set[str] | None = None) -> dict[str, Any]:
    """Read the top-level dictionary of a `.ckpt`, foreign objects inert, tensors memory-mapped.

    Args:
        path: Of the file.
        foreign: Gets the names of all classes and functions in it that were not let through.

    Raises:
        ValueError: Not a torch checkpoint, truncated, or without a dictionary at its top.
    """
    foreign = set() if foreign is None else foreign
    try:
        zipped = _is_zip(path)
        _refuse_other_loaders(path, zipped)
        loaded = torch.load(
            path,
            map_location="cpu",
            pickle_module=_safe_pickle(foreign),
            weights_only=False,  # the unpickler above is the stricter guard
            mmap=zipped,
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, IndexError, ValueError,
            TypeError, AttributeError, AssertionError, OverflowError, MemoryError, struct.error,
            UnicodeDecodeError, OSError, RecursionError, zipfile.BadZipFile) as error:  # fmt: skip
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a torch checkpoint ({reason}); it is damaged, truncated or "
            "of another kind: download or export it again"
        ) from error
    if isinstance(loaded, Inert):
        raise ValueError(
            f"{path} holds no dictionary of tensors but an object of foreign code "
            f"({', '.join(sorted(foreign)[:5])}), which was not run; give a model checkpoint from "
            "a source that you trust"
        )
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{path} holds no dictionary of tensors but {type(loaded).__name__}; "
            "give a model checkpoint"
        )
    return loaded


def _refuse_other_loaders(path: Path, zipped: bool) -> None:
    """`torch.load` hands some files on to loaders that go round the unpickler above."""
    if zipped:
        _check_archive(path)
    elif tarfile.is_tarfile(path):  # of torch before 0.2; it would be unpacked to disk
        raise ValueError("it is a tar archive")


def _check_archive(path: Path) -> None:
    """torch stores tensors as they are; what is packed may unpack to anything."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - _END_OF_ZIP))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 22 > len(tail):
        raise ValueError("its end is missing")
    (directory,) = struct.unpack_from("<I", tail, end + 12)
    long_end = tail.rfind(b"PK\x06\x06", 0, end)
    if directory == 0xFFFFFFFF and long_end >= 0:  # an archive of more than 4 GB
        (directory,) = struct.unpack_from("<Q", tail, long_end + 40)
    if directory > _MAX_DIRECTORY:
        raise ValueError(f"its directory has {directory:,} bytes, {_MAX_DIRECTORY:,} are the most")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    # The sign by which torch takes an archive for TorchScript, which is a program.
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ValueError("it is a TorchScript program, not a table of weights")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("it is a compressed archive, and torch does not compress")
    if sum(entry.file_size for entry in entries) > size:
        raise ValueError("it claims to unpack to more than it has")


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
