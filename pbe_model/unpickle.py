"""Reading `.ckpt` files without running their code.

A torch checkpoint is a pickle, and a pickle may name any function to be called. The official file
also holds objects of pytorch-lightning, so torch's own `weights_only=True` rejects it. Here every
name outside a short list becomes an inert stand-in that swallows what is done to it.
"""

from __future__ import annotations

import pickle
import tarfile
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch._utils

_STORAGES = {
    f"{kind}Storage"
    for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte",
                 "Bool")
}  # fmt: skip
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
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
    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), Inert)


# What torch.load expects of a replacement for the pickle module.
_safe_pickle = types.ModuleType("safe_pickle")
_safe_pickle.Unpickler = _Unpickler  # type: ignore[attr-defined]


def _load(file: Any, **kwargs: Any) -> Any:
    return _Unpickler(file, **kwargs).load()


_safe_pickle.load = _load  # type: ignore[attr-defined]


def load_tensors(path: Path) -> dict[str, Any]:
    """Read the top-level dictionary of a `.ckpt`, foreign objects inert, tensors memory-mapped.

    Raises:
        ValueError: Not a torch checkpoint, truncated, or without a dictionary at its top.
    """
    try:
        zipped = _is_zip(path)
        _refuse_other_loaders(path, zipped)
        loaded = torch.load(
            path,
            map_location="cpu",
            pickle_module=_safe_pickle,
            weights_only=False,  # the unpickler above is the stricter guard
            mmap=zipped,
        )
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, IndexError, ValueError,
            TypeError, AttributeError, AssertionError, OverflowError, MemoryError,
            UnicodeDecodeError, OSError) as error:  # fmt: skip
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as a torch checkpoint ({reason}); it is damaged, truncated or "
            "of another kind: download or export it again"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{path} holds no dictionary of tensors but {type(loaded).__name__}; "
            "give a model checkpoint"
        )
    return loaded


def _refuse_other_loaders(path: Path, zipped: bool) -> None:
    """`torch.load` hands some files on to loaders that go round the unpickler above."""
    if zipped:
        # The sign by which torch takes an archive for TorchScript, which is a program.
        if "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records():
            raise ValueError("it is a TorchScript program, not a table of weights")
    elif tarfile.is_tarfile(path):  # of torch before 0.2; it would be unpacked to disk
        raise ValueError("it is a tar archive")


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
