"""Pickles, instruction by instruction, and the file that torch would put them into."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any

from .case import Maker, built
from .zipping import Record, archive

PROTO, STOP = b"\x80\x02", b"."
NONE, TRUE, EMPTY, DICT, LIST, SET = b"N", b"\x88", b")", b"}", b"]", b"\x8f"
REDUCE, BUILD, POP = b"R", b"b", b"0"


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return pickle.LONG1 + bytes([len(raw)]) + raw


def row(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def numbers(*values: int) -> bytes:
    return row(*map(number, values))


def table(**entries: bytes) -> bytes:
    """A dictionary."""
    return DICT + b"(" + b"".join(text(name) + value for name, value in entries.items()) + b"u"


def named(module: str, name: str) -> bytes:
    """A class or function."""
    return f"c{module}\n{name}\n".encode()


def keep(place: int) -> bytes:
    """Remember what is on top of the stack."""
    return b"r" + struct.pack("<I", place)


def again(place: int) -> bytes:
    """What was remembered."""
    return b"j" + struct.pack("<I", place)


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + row(*arguments) + REDUCE


REBUILD = named("torch._utils", "_rebuild_tensor_v2")
ORDERED = named("collections", "OrderedDict")


def storage(kind: str = "Float", key: str = "0", count: int = 1, *more: bytes) -> bytes:
    """A storage by its persistent identity."""
    parts = text("storage"), named("torch", f"{kind}Storage"), text(key), text("cpu"), number(count)
    return row(*parts, *more) + b"Q"


def tensor(
    size: tuple[int, ...] = (1,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    *,
    of: bytes | None = None,
) -> bytes:
    hooks = call(ORDERED)
    of = storage() if of is None else of
    return call(REBUILD, of, number(offset), numbers(*size), numbers(*stride), b"\x89", hooks)


def program(*steps: bytes) -> bytes:
    """A whole pickle."""
    return PROTO + b"".join(steps) + STOP


def records(pickled: bytes, storages: dict[str, bytes] | None = None) -> list[Record]:
    """What `torch.save` puts into its archive."""
    own = {"0": bytes(4)} if storages is None else storages
    return [
        Record("archive/data.pkl", pickled),
        Record("archive/byteorder", b"little"),
        *(Record(f"archive/data/{key}", data) for key, data in own.items()),
        Record("archive/version", b"3\n"),
    ]


def checkpoint(*steps: bytes, storages: dict[str, bytes] | None = None) -> Maker:
    """Makes a file of torch's with a program of these steps."""
    return built(lambda: archive(*records(program(*steps), storages)))


def holding(value: bytes, storages: dict[str, bytes] | None = None) -> Maker:
    """Makes a file whose program is a dictionary with this value."""
    return checkpoint(table(state_dict=table(a=value)), storages=storages)


def large(steps: Callable[[], bytes]) -> Maker:
    """As `checkpoint`, for programs that are made when they are needed."""
    return built(lambda: archive(*records(program(steps()))))


def legacy(
    pickled: bytes, keys: Any = ("0",), storages: bytes = struct.pack("<qf", 1, 0), **changes: Any
) -> bytes:
    """What `torch.save` wrote before version 1.6: pickles, then storages.

    Args:
        pickled: The program of the value.
        keys: Of the storages; bytes stand for the pickle itself.
        storages: Each with its number of elements before.
        changes: Of `magic`, `version` and `system`.
    """
    values = {
        "magic": 0x1950A86A20F9469CFC6C,
        "version": 1001,
        "system": {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
    } | changes
    start = b"".join(
        v if isinstance(v, bytes) else pickle.dumps(v, protocol=2) for v in values.values()
    )
    listed = keys if isinstance(keys, bytes) else pickle.dumps(list(keys), protocol=2)
    return start + pickled + listed + storages
