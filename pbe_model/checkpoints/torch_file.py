"""Files of `torch.save`, without torch's reader: tensors are mapped, and nothing of them is run.

The archive's directory is read by `archive`, the pickle in it by `unpickle`; here descriptions of
tensors become tensors over the bytes of the file, once they are known to lie inside it. Files of
before torch 1.6, a sequence of pickles and raw bytes, are read in the same way.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..untrusted import first_line, open_regular, shown
from . import archive
from .unpickle import MAX_DEPTH, MAX_LENGTH, Machine, Storage, Stub, TensorRecord

_PICKLE = "data.pkl"
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # in files from before torch 1.6
_LEGACY = b"\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little")  # how the first number is pickled
_LEGACY_START = 32  # it is within these first bytes, after the pickle's own header
_TAR = slice(257, 262)  # where a tar archive, as torch before 0.2 wrote, says "ustar"
_COUNT = struct.Struct("<q")  # number of elements, before each storage of the legacy format
_MOST = 2**63 - 1
# Layers may share a tensor, which the file then holds once, so all tensors together may be larger
# than the file. But a file of a kilobyte must not claim gigabytes: this factor and this many bytes
# on top of it are allowed.
_CLAIM, _SMALL_CLAIM = 2, 2**20

Mapped = mmap.mmap | bytearray


def is_torch_file(head: bytes) -> bool:
    """Whether a file begins as torch's do; other zip archives are among them.

    Args:
        head: At least the first 32 bytes, or all where there are fewer.
    """
    return head.startswith(archive.SIGNATURE) or _LEGACY in head[:_LEGACY_START]


def load_tensors(path: Path, foreign: set[str] | None = None) -> dict[str, Any]:
    """The dictionary that a `.ckpt` or `.bin` holds, foreign objects inert, tensors mapped.

    Args:
        path: `.ckpt`, `.bin` or the like.
        foreign: Gets the names of classes and functions in the file; none was imported or run.

    Raises:
        ValueError: Not a torch file, damaged, or no dictionary at its top.
    """
    foreign = set() if foreign is None else foreign
    try:
        loaded = read_torch_file(path, foreign)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as a torch checkpoint ({first_line(error)}); it is damaged, "
            "truncated or of another kind: download or export it again"
        ) from error
    if isinstance(loaded, Stub):
        raise ValueError(
            f"{path} holds an object of foreign code "
            f"({shown(', '.join(sorted(foreign)[:5]))}), which was not run, and not a dictionary "
            "of tensors; give a model checkpoint from a source that you trust"
        )
    if not isinstance(loaded, dict):
        raise ValueError(
            f"{path} holds an object of type {type(loaded).__name__}, not a dictionary of "
            "tensors; give a model checkpoint"
        )
    return loaded


def read_torch_file(
    path: Path, foreign: set[str], *, mapped: bool = True, checked: bool = False
) -> Any:
    """What `torch.save` was given: dictionaries, lists, tuples, plain values and tensors.

    Args:
        path: `.ckpt`, `.bin` or the like.
        foreign: Gets the names of classes and functions in the file that are not known here;
            `Stub`s take their places.
        mapped: Leave tensors in the file until they are used. Otherwise they are copied.
        checked: Compare every record with the checksum that torch stored with it.

    Raises:
        ValueError: Not a torch file, damaged, or holding something that is not weights; the
            message is the reason alone, without the path.
        OSError: Not there, or not readable.
    """
    with open_regular(path) as file:
        source = _File(file)
        if not len(source):
            raise ValueError("it is empty")
        # Copy on write: changing a tensor in place must not change the file.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return read_buffer(data, source, foreign, mapped=mapped, checked=checked)


class _File:
    """A file as bytes that are read where they are asked for.

    The directory could be read through the mapping too, but the system brings in the neighbours of
    every page touched: 70 MB for the records of the official checkpoint.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        begin, end, _ = part.indices(self._size)
        self._file.seek(begin)
        return self._file.read(end - begin)


def read_buffer(
    data: Mapped, source: archive.Source, foreign: set[str], *, mapped: bool, checked: bool
) -> Any:
    """As `read_torch_file`, from the bytes of a file.

    Args:
        data: The bytes that mapped tensors share.
        source: The same bytes, for everything else.
        foreign: As there, and so are `mapped`, `checked` and what is raised.
    """
    if source[: len(archive.SIGNATURE)] == archive.SIGNATURE:
        value, places = _read_zip(source, data if checked else None, foreign)
    elif _LEGACY in source[:_LEGACY_START]:
        if checked:
            raise ValueError("it has no checksums")
        value, places = _read_legacy(memoryview(data), foreign)
    elif source[_TAR] == b"ustar":
        raise ValueError("it is a tar archive")
    else:
        raise ValueError("it does not begin like one")
    return _Tensors(data, places, mapped=mapped).put_into(value)


Places = dict[str, tuple[int, int]]
"""First byte, and the byte behind the last, of each storage by its key."""


def _read_zip(
    source: archive.Source, checked: Mapped | None, foreign: set[str]
) -> tuple[Any, Places]:
    """What the pickle builds, and where its storages are.

    Given `checked`, the mapped file, every record is compared with its checksum.
    """
    records = archive.read_directory(source)
    if any(name.endswith("/constants.pkl") for name in records):
        raise ValueError("it is a TorchScript program, not a table of weights")
    if any(record.packed for record in records.values()):
        raise ValueError("it is a compressed archive, and torch does not compress")
    found = [name for name in records if name.count("/") == 1 and name.endswith(f"/{_PICKLE}")]
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} records named {_PICKLE}, not 1")
    root = found[0].removesuffix(_PICKLE)
    order = records.get(f"{root}byteorder")
    little = b"little"
    if order is not None and (
        order.end - order.begin != len(little) or source[order.begin : order.end] != little
    ):
        raise ValueError("its numbers are not in little-endian order; save it on another machine")
    if checked is not None:
        view = memoryview(checked)
        for name, record in records.items():
            _compare(name, record, view[record.begin : record.end])
    place = records[found[0]]
    if place.end - place.begin > MAX_LENGTH:
        raise ValueError(f"its pickle has more than {MAX_LENGTH:,} bytes")
    program = source[place.begin : place.end]
    if checked is None and place.crc:  # other programs' archives may have none
        _compare(found[0], place, program)
    prefix = f"{root}data/"
    return Machine(memoryview(program), 0, foreign).run(), {
        name.removeprefix(prefix): (record.begin, record.end)
        for name, record in records.items()
        if name.startswith(prefix)
    }


def _compare(name: str, record: archive.Record, content: bytes | bytearray | memoryview) -> None:
    if zlib.crc32(content) != record.crc:
        raise ValueError(f"its record {shown(name)} has changed since it was written")


def _read_legacy(view: memoryview, foreign: set[str]) -> tuple[Any, Places]:
    values, machines, position = [], [], 0
    for _ in range(5):
        machines.append(Machine(view, position, foreign))
        values.append(machines[-1].run())
        position = machines[-1].position
    # Five pickles in a row: two numbers that tell the format, the system that wrote it, the value,
    # and the keys of its storages. These follow as a count and raw bytes each, in the keys' order.
    magic, version, system, value, keys = values
    if (magic, version) != (_LEGACY_MAGIC, _LEGACY_VERSION) or not isinstance(keys, list):
        raise ValueError("its header is damaged or of an unknown version")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ValueError("its numbers are not in little-endian order; save it on another machine")
    storages = {storage.key: storage for storage in machines[3].storages}
    places: Places = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or key in places:
            raise ValueError("its list of storages does not match its tensors")
        begin = position + _COUNT.size
        position = begin + _bytes_of(storage)
        if position > len(view) or _COUNT.unpack_from(view, begin - _COUNT.size) != (
            storage.count,
        ):
            raise ValueError("it is cut short, or a storage has another size than its tensor")
        places[key] = begin, position
    return value, places


def _bytes_of(storage: Storage) -> int:
    size = 1 if storage.dtype is None else getattr(torch, storage.dtype).itemsize
    return size * max(storage.count, 0)


class _Tensors:
    """Replaces the pickle's descriptions of tensors by tensors over the file's bytes.

    Args:
        data: The whole file.
        places: Where the storages are in it.
        mapped: Whether tensors share the memory of `data`.
    """

    def __init__(self, data: Mapped, places: Places, *, mapped: bool) -> None:
        self._data = data
        self._places = places
        self._mapped = mapped
        self._left = _CLAIM * len(data) + _SMALL_CLAIM  # bytes that further tensors may have
        self._storages: dict[str, Tensor] = {}
        # What has been seen, and what became of it; the former is kept, as its id is the key.
        self._done: dict[int, tuple[Any, Any]] = {}

    def put_into(self, value: Any, depth: int = 0) -> Any:
        """The value with tensors in it; dictionaries and lists are changed in place."""
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
        if not isinstance(value, (dict, list, tuple, TensorRecord)):
            return Stub() if isinstance(value, Storage) else value
        if id(value) in self._done:
            return self._done[id(value)][1]
        if isinstance(value, (dict, list)):
            self._done[id(value)] = value, value  # before its items, which it may be among
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                value[key] = self.put_into(item, depth + 1)
            return value
        if isinstance(value, tuple):
            result = tuple(self.put_into(item, depth + 1) for item in value)
        else:
            result = self._tensor(value)
        self._done[id(value)] = value, result
        return result

    def _tensor(self, record: TensorRecord) -> Tensor:
        dtype = getattr(torch, record.dtype)
        offset, size, stride = record.offset, record.size, record.stride
        if not all(0 <= number <= _MOST for number in (offset, *size, *stride)):
            raise ValueError(f"a tensor has the size {shown(size)} and strides {shown(stride)}")
        count = math.prod(size)
        if not count:  # no bytes to map; but the sides of it may still be too large for torch
            if math.prod(side or 1 for side in size) > _MOST:
                raise ValueError(f"a tensor has the size {shown(size)}")
            return torch.empty(size, dtype=dtype)
        raw = self._bytes(record.storage)
        held = len(raw) // dtype.itemsize
        # The farthest element that the strides reach.
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        self._left -= count * dtype.itemsize
        if last >= held or count > held or self._left < 0:
            raise ValueError(f"a tensor claims {shown(size)} values, and its storage has {held:,}")
        # Torch aligns what it writes, other programs may not; elements are read aligned.
        if raw.data_ptr() % dtype.itemsize:
            raw = self._storages[record.storage.key] = raw.clone()
        return raw[: held * dtype.itemsize].view(dtype).as_strided(size, stride, offset)

    def _bytes(self, storage: Storage) -> Tensor:
        """The bytes of a storage, (n,)."""
        begin, end = self._places.get(storage.key, (0, 0))
        if end - begin != _bytes_of(storage) or begin == end:
            raise ValueError(
                f"storage {shown(storage.key)} has {end - begin:,} bytes where its tensors say "
                f"{shown(_bytes_of(storage))}"
            )
        if storage.key not in self._storages:
            raw = torch.frombuffer(self._data, dtype=torch.uint8, count=end - begin, offset=begin)
            self._storages[storage.key] = raw if self._mapped else raw.clone()
        return self._storages[storage.key]
