"""The directory of a zip archive, which is what torch writes.

A zip archive can be written such that two programs see two different archives in it. So there is
one parser here, for one reading: the directory ends where the archive's end begins, every record
is where the directory says, none overlaps another, and none has a name twice.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

SIGNATURE = b"PK\x03\x04"
"""First bytes of an archive, as of every record in it."""

MAX_DIRECTORY = 8 * 2**20
"""Most bytes that are read of a directory; the official checkpoint's has half a megabyte."""

# The signature and fields of each structure (PKWARE's APPNOTE, 4.3.7 to 4.3.16).
_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")

_SATURATED = 0xFFFFFFFF  # in a field of four bytes: the value is elsewhere, in eight
_SIZES_FOLLOW, _UTF8 = 1 << 3, 1 << 11  # flags that a record may have


class Record(NamedTuple):
    """Where a record's bytes are in the archive."""

    begin: int
    end: int
    crc: int
    """CRC-32 of the content, or 0 where it was not computed."""
    packed: bool
    """Whether the content is compressed; torch stores it as it is."""


class Source(Protocol):
    """Bytes that can be sliced: `bytes` itself, or a file of which only the slices are read."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> bytes | bytearray: ...


def read_directory(data: Source) -> dict[str, Record]:
    """The records of an archive by name, in the order of its directory.

    Args:
        data: The whole archive, from its first byte to its last.

    Raises:
        ValueError: Damaged, encrypted, or with more than one reading.
    """
    count, begin, end = _find_directory(data)
    records: dict[str, Record] = {}
    spans = [(begin, begin)]  # the directory comes after all records
    position = begin
    for _ in range(count):
        position, name, record, header = _read_entry(data, position, end)
        if name in records:
            raise ValueError("two of its records have the same name")
        records[name] = record
        spans.append((header, record.end))
    if position != end:
        raise ValueError("its directory is not as long as its end says")
    spans.sort()
    for (_, before), (after, _) in pairwise(spans):
        if before > after:
            raise ValueError("its records overlap")
    return records


def _unpack(form: struct.Struct, data: Source, at: int) -> tuple[Any, ...]:
    return form.unpack(data[at : at + form.size])


def _find_directory(data: Source) -> tuple[int, int, int]:
    """Number of entries, and where the directory begins and ends."""
    at = len(data) - _END.size
    if at < 0 or data[at : at + 4] != b"PK\x05\x06":
        raise ValueError("its end is missing, or something follows it")
    _, disk, first, here, count, size, begin, comment = _unpack(_END, data, at)
    end = at
    locator = at - _LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        stated = (disk, first, here, count, size, begin)
        _, disk64, end, disks = _unpack(_LOCATOR, data, locator)
        if end != locator - _END64.size or disk64 or disks > 1:
            raise ValueError("its end is not where it says")
        mark, length, _, _, disk, first, here, count, size, begin = _unpack(_END64, data, end)
        wide = (disk, first, here, count, size, begin)
        limits = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, _SATURATED, _SATURATED)
        agree = all(a in (b, c) for a, b, c in zip(stated, wide, limits, strict=True))
        if mark != b"PK\x06\x06" or length != _END64.size - 12 or not agree:
            raise ValueError("its two ends disagree")
    if disk or first or here != count or comment:
        raise ValueError("it is split into several files, or text follows its end")
    if size > MAX_DIRECTORY:
        raise ValueError(f"its directory has {size:,} bytes, and {MAX_DIRECTORY:,} are the most")
    if begin + size != end:
        raise ValueError("its directory is not where its end says")
    return count, begin, end


def _read_entry(data: Source, at: int, end: int) -> tuple[int, str, Record, int]:
    """The position of the next entry; and name, record and first byte of this one's content."""
    if at + _ENTRY.size > end:
        raise ValueError("its directory is cut short")
    (mark, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length,
     comment_length, disk, _, _, header) = _unpack(_ENTRY, data, at)  # fmt: skip
    at += _ENTRY.size
    name = bytes(data[at : at + name_length])
    at += name_length
    extra = bytes(data[at : at + extra_length])
    at += extra_length + comment_length
    if mark != b"PK\x01\x02" or at > end or disk:
        raise ValueError("its directory is damaged")
    if flags & ~(_SIZES_FOLLOW | _UTF8):
        raise ValueError("it is encrypted or of an unknown kind")
    size, packed, header = _wide((size, packed, header), extra)
    if not method and size != packed:
        raise ValueError("a record claims to unpack to more than it holds")
    begin = _check_local(data, header, name, (flags, method, packed, size))
    record = Record(begin, begin + packed, crc, packed=method != 0)
    return at, name.decode("utf-8", "surrogateescape"), record, header


def _wide(values: tuple[int, ...], extra: bytes) -> list[int]:
    """Values that may not fit into four bytes; those that do not are in the entry's extra field."""
    if _SATURATED not in values:
        return list(values)
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        at += 4
        if kind == 1:
            count = values.count(_SATURATED)
            if length < 8 * count or at + length > len(extra):
                break
            wide = iter(struct.unpack_from(f"<{count}Q", extra, at))
            return [next(wide) if value == _SATURATED else value for value in values]
        at += length
    raise ValueError("its directory lacks a size")


def _check_local(data: Source, at: int, name: bytes, stated: tuple[int, ...]) -> int:
    """Where a record's bytes begin; the header before them has to agree with the directory."""
    if at + _LOCAL.size > len(data):
        raise ValueError("a record lies outside the file")
    mark, _, flags, method, _, _, _, packed, size, name_length, extra_length = _unpack(
        _LOCAL, data, at
    )
    at += _LOCAL.size
    begin = at + name_length + extra_length
    unknown = (0, _SATURATED) if flags & _SIZES_FOLLOW else (_SATURATED,)
    if (
        mark != SIGNATURE
        or (flags, method) != stated[:2]
        or any(a != b and a not in unknown for a, b in zip((packed, size), stated[2:], strict=True))
        or data[at : at + name_length] != name
    ):
        raise ValueError("a record differs from what the directory says")
    if begin + stated[2] > len(data):
        raise ValueError("a record lies outside the file")
    return begin
