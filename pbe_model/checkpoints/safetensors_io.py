"""Files of tensors: read without trusting them, written whole or not at all.

A checkpoint comes from anywhere. What is read here is bounded before it is believed, so that a
hostile or damaged file ends in one sentence and not in a full memory; pickles are in `unpickle`.
"""

from __future__ import annotations

import ctypes
import io
import json
import math
import os
import struct
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..untrusted import first_line, open_regular, parse_json, shown

MAX_HEADER = 8 * 2**20
"""Most bytes of JSON that are parsed; the official model's 1,403 tensors take 160 kB."""

MAX_TENSORS = 50_000
"""Most tensors in a file; the official model has 1,403."""

WEIGHT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The types that weights may be stored in."""

_KEEP = 2**27  # bytes that are read before their pages are released
_MADV_DONTNEED = 4
_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
}


@dataclass(frozen=True)
class Deferred:
    """A tensor that is made when it is written, so that of many only one is in memory.

    Attributes:
        shape: Of the tensor.
        dtype: Its type.
        make: Makes it, on any device.
    """

    shape: torch.Size
    dtype: torch.dtype
    make: Callable[[], Tensor]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, mapped from the file and not read before they are used, and the metadata.

    Raises:
        ValueError: Damaged, truncated or of another kind.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    # The library hands on what torch makes of types and shapes that it does not have.
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError,
            KeyError, OverflowError) as error:  # fmt: skip
        raise ValueError(
            f"{path} cannot be read as safetensors ({first_line(error)}); it is damaged, "
            "truncated or of another kind: download or export it again"
        ) from error


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor | Deferred],
    metadata: Mapping[str, str],
    *,
    dtypes: Mapping[str, torch.dtype] | None = None,
    pages: MappedPages | None = None,
) -> None:
    """Write tensor after tensor, so that a conversion needs the memory of one (the library's own
    function takes all of them at once).

    Args:
        path: Written in place; see `replacing` for writing whole or not at all.
        tensors: On any device, contiguous or not, or still to be made.
        metadata: Strings for the header.
        dtypes: Types in the file by name; other tensors keep theirs.
        pages: Where the tensors are mapped from, to release what was read.

    Raises:
        ValueError: Values that are not finite, or beyond the range of their type.
    """
    types = {name: (dtypes or {}).get(name, tensor.dtype) for name, tensor in tensors.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + math.prod(tensor.shape) * types[name].itemsize
        header[name] = {
            "dtype": _TYPES[types[name]],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, given in tensors.items():
            tensor = given.make() if isinstance(given, Deferred) else given
            stored = cast(name, tensor, dtype=types[name]).contiguous()
            file.write(stored.reshape(-1).view(torch.uint8).numpy().data)
            if pages is not None:
                pages.read(tensor.nbytes)


def types_of(tensors: Iterable[Tensor]) -> list[str]:
    """The names of the types that tensors have, sorted."""
    return sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})


def check_types(
    names: Iterable[str],
    tensors: Mapping[str, Tensor | Deferred],
    source: object,
    types: Sequence[torch.dtype] = WEIGHT_TYPES,
) -> None:
    """Check, before weights are read, that they are of a type that weights can have.

    Args:
        names: Which of the tensors are weights.
        tensors: By name; those that are missing are passed over.
        source: Name for errors.
        types: The types allowed.

    Raises:
        ValueError: Integers, booleans or the like; the first one is named.
    """
    for name in names:
        if name in tensors and tensors[name].dtype not in types:
            dtype = str(tensors[name].dtype).removeprefix("torch.")
            raise ValueError(
                f"{source} holds {shown(name)} as {dtype}, which is not a weight type here; give a "
                "checkpoint in fp32, bf16 or fp16"
            )


def cast(
    name: str,
    tensor: Tensor,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The tensor on another device or as another type, after checking that its values are finite.

    Raises:
        ValueError: Values that are not finite, or beyond the range of `dtype`.
    """
    moved = tensor.detach().to(device=device, dtype=dtype)
    # A sum is finite only if every term is; where it is not, it may have been too large.
    if moved.sum(dtype=torch.float32).isfinite() or moved.isfinite().all():
        return moved
    if tensor.float().isfinite().all():
        raise ValueError(
            f"{name} does not fit into {str(dtype).removeprefix('torch.')}; take bf16, which has "
            "the range of fp32, or fp32"
        )
    raise ValueError(
        f"{name} holds NaN or infinite values, which would make every picture black; download "
        "the file again, or take an earlier checkpoint of the same training run"
    )


class Releasing(io.BufferedWriter):
    """A file for `torch.save` to write mapped tensors to; releases the pages they came from."""

    def __init__(self, path: Path, pages: MappedPages) -> None:
        super().__init__(io.FileIO(path, "w"))
        self._pages = pages

    def write(self, data: Any) -> int:
        """Write, and count the bytes as read from the pages."""
        self._pages.read(len(data))
        return super().write(data)


def _check_header(path: Path) -> None:
    """Check what the library does not: the header's size, and names that are in it twice."""
    with open_regular(path) as file:
        start = file.read(8)
        if len(start) < 8:
            raise ValueError("it is empty or nearly so")
        (length,) = struct.unpack("<Q", start)
        left = os.fstat(file.fileno()).st_size - 8
        if length > min(left, MAX_HEADER):
            raise ValueError(
                f"its header claims {length:,} bytes, and the file has {left:,} after it"
                if length > left
                else f"its header has {length:,} bytes, and {MAX_HEADER:,} are the most"
            )
        header = parse_json(file.read(length), _unique)
    if isinstance(header, dict) and len(header) > MAX_TENSORS:
        raise ValueError(f"it has {len(header):,} tensors, and {MAX_TENSORS:,} are the most")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{shown(repr(name), 80)} is in its header twice")
        values[name] = value
    return values


class MappedPages:
    """Releases the pages that reading mapped tensors brings into memory, now and then.

    A tensor that is used again is read again. Only for tensors that were just mapped: whatever has
    been written to them since would be lost. Nothing happens where the system does not tell what is
    mapped (anywhere but Linux), or for tensors that are not mapped from a file.

    Args:
        tensors: From a file that was just read.
        root: That file, or the folder it is in.
    """

    def __init__(self, tensors: Iterable[Tensor], root: Path) -> None:
        self._spans: list[tuple[int, int]] = []
        self._read = 0
        if sys.platform != "linux":
            return
        begins = sorted(tensor.data_ptr() for tensor in tensors)
        root = root.resolve()
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                span, _, _, _, _, *name = line.rstrip("\n").split(maxsplit=5)
                if name and Path(name[0]).is_relative_to(root):
                    low, high = (int(address, 16) for address in span.split("-"))
                    if bisect_left(begins, low) < bisect_left(begins, high):
                        self._spans.append((low, high))

    def read(self, count: int) -> None:
        """Count bytes as read; release the pages once there are enough of them."""
        self._read += count
        if self._read >= _KEEP:
            for low, high in self._spans:
                ctypes.CDLL(None).madvise(
                    ctypes.c_void_p(low), ctypes.c_size_t(high - low), _MADV_DONTNEED
                )
            self._read = 0
