"""Zip archives of which every field can lie (PKWARE's APPNOTE, 4.3.7 to 4.3.16)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Fields = Mapping[str, Any]

_LOCAL = "<4s5H3I2H", "mark version flags method time date crc packed size name extra"
_ENTRY = (
    "<4s6H3I5H2I",
    "mark maker version flags method time date crc packed size name extra comment disk "
    "internal external offset",
)
_END = "<4s4H2IH", "mark disk first here count size offset comment"
_END64 = "<4sQ2H2I4Q", "mark length maker version disk first here count size offset"
_LOCATOR = "<4sIQI", "mark disk offset disks"


class Record(NamedTuple):
    """A record, and in which fields its header and its entry in the directory lie."""

    name: str
    data: bytes = b""
    local: Fields = MappingProxyType({})
    entry: Fields = MappingProxyType({})
    extra: bytes = b""
    """Of the entry."""
    comment: bytes = b""
    named: str | None = None
    """What the entry calls it."""


def archive(
    *records: Record,
    before: bytes = b"",
    gap: bytes = b"",
    behind: bytes = b"",
    end: Fields | None = None,
    end64: Fields | None = None,
    locator: Fields | None = None,
) -> bytes:
    """An archive, honest but for the fields that are given.

    Args:
        records: In this order.
        before: Bytes before the directory.
        gap: Bytes behind the directory.
        behind: Bytes behind the archive's end.
        end: Fields of its end.
        end64: Fields of its second end, which it has if this is given.
        locator: Fields of what says where that is.
    """
    body, directory = bytearray(), bytearray()
    for record in records:
        name, data = record.name.encode(), record.data
        fields = {"crc": zlib.crc32(data), "packed": len(data), "size": len(data)}
        offset = len(body)
        body += _pack(_LOCAL, b"PK\3\4", {**fields, "name": len(name), **record.local})
        body += name + data
        name = name if record.named is None else record.named.encode()
        lengths = {"name": len(name), "extra": len(record.extra), "comment": len(record.comment)}
        fields = {**fields, **lengths, "offset": offset, **record.entry}
        directory += _pack(_ENTRY, b"PK\1\2", fields) + name + record.extra + record.comment
    body += before
    count, size, begin = len(records), len(directory), len(body)
    whole = {"here": count, "count": count, "size": size, "offset": begin}
    tail = bytes(directory) + gap
    if end64 is not None:
        place = len(body) + len(tail)
        tail += _pack(_END64, b"PK\6\6", {"length": 44, **whole, **end64})
        tail += _pack(_LOCATOR, b"PK\6\7", {"offset": place, "disks": 1, **(locator or {})})
    return bytes(body) + tail + _pack(_END, b"PK\5\6", {**whole, **(end or {})}) + behind


def parts(data: bytes) -> tuple[bytes, bytes, int]:
    """Records, directory and number of records of an honest archive."""
    end = data.rfind(b"PK\5\6")
    count, _, size, offset = struct.unpack_from("<HHII", data, end + 8)
    return data[:offset], data[offset : offset + size], count


def two_faced(read_by_torch: bytes, shown_to_zipfile: bytes) -> bytes:
    """An archive with two directories, of which each program takes another one."""
    body, theirs, count = parts(read_by_torch)
    _, shown, also = parts(shown_to_zipfile)
    assert count == also
    size = max(len(theirs), len(shown))

    def padded(directory: bytes) -> bytes:
        """The last entry's comment takes up what is left."""
        last, longer = directory.rfind(b"PK\1\2") + 32, bytearray(directory)
        (length,) = struct.unpack_from("<H", longer, last)
        struct.pack_into("<H", longer, last, length + size - len(directory))
        return bytes(longer).ljust(size)

    end = {"here": count, "count": count, "size": size, "offset": len(body)}
    return body + padded(theirs) + padded(shown) + _pack(_END, b"PK\5\6", end)


def wide(*values: int) -> bytes:
    """The field of an entry that has its values in eight bytes."""
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)


def _pack(structure: tuple[str, str], mark: bytes, fields: Fields) -> bytes:
    form, names = structure
    values = {"mark": mark, **fields}
    return struct.pack(form, *(values.pop(name, 0) for name in names.split()))
