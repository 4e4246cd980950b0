"""A pickle as data: what its program would build, without anything that it could do.

A pickle is a program for a machine with a stack. This is such a machine, with the instructions
that pickles of protocol 2 and newer consist of, and with objects of its own: tensors and their
storages become descriptions, and whatever else a pickle names becomes a `Stub` that nothing is
done to. No name is imported and nothing of the file is called. Length, steps and depth are
bounded, and dictionaries have keys that are hashed at once.
"""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

MAX_LENGTH = 64 * 2**20
"""Most bytes of a program; the official checkpoint's has half a megabyte."""

MAX_STEPS = 500_000
"""Most instructions of a program; the official checkpoint's has 92,000."""

MAX_TEXT = 2**20
"""Most bytes of a string."""

MAX_NUMBERS = 10_000
"""Most numbers used as keys. Unlike those of strings, their hashes can be made to collide, which
makes a dictionary slow. An optimizer's state has one for each weight."""

MAX_DIMS = 64
"""Most dimensions of a tensor; torch has the same limit."""

MAX_DEPTH = 100
"""How deeply dictionaries, lists and tuples may be nested."""

_PROTOCOLS = (2, 3, 4, 5)
_MAX_NAME = 255  # characters in the name of a module or class
_MAX_NAMES = 1_000  # foreign names that are listed


class Stub:
    """Stands in for a class or function that is not run, and for whatever it would have made."""

    __slots__ = ()


class Known(Enum):
    """The classes and functions that mean something here."""

    ORDERED_DICT = auto()
    SIZE = auto()
    TENSOR = auto()
    """A tensor over a storage; offset, size and strides are its arguments."""
    TYPED_TENSOR = auto()
    """The same over an untyped storage, with a dtype as argument."""
    PARAMETER = auto()


@dataclass(frozen=True)
class DType:
    """A torch dtype, by its name."""

    name: str


@dataclass(frozen=True)
class StorageType:
    """A class of storages; without a dtype its elements are bytes."""

    dtype: str | None


@dataclass(frozen=True, slots=True)
class Storage:
    """Elements that are stored outside the pickle."""

    key: str
    dtype: str | None
    count: int


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor as the file describes it; only the types of its entries have been checked."""

    storage: Storage
    dtype: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


_STORAGES = {
    "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Double": "float64",
    "Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8",
    "Bool": "bool",
}  # fmt: skip
_DTYPES = (
    *_STORAGES.values(), "uint16", "uint32", "uint64",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): Known.ORDERED_DICT,
    ("torch", "Size"): Known.SIZE,
    ("torch._utils", "_rebuild_tensor_v2"): Known.TENSOR,
    ("torch._utils", "_rebuild_tensor_v3"): Known.TYPED_TENSOR,
    ("torch._utils", "_rebuild_parameter"): Known.PARAMETER,
    ("torch.storage", "UntypedStorage"): StorageType(None),
    **{("torch", f"{kind}Storage"): StorageType(dtype) for kind, dtype in _STORAGES.items()},
    **{("torch", dtype): DType(dtype) for dtype in _DTYPES},
}


class Machine:
    """Runs one pickle.

    A pickle's program works on a stack. MARK puts a mark on it, and later instructions (TUPLE,
    SETITEMS and so on) take everything above the last mark as their operands. Here the mark is not
    on the stack: MARK sets the stack aside in `_below` and begins an empty one, so `_stack` always
    is what is above the last mark, and all of it is the operand. The memo keeps values by number
    for later use, because the same object may occur many times.

    Args:
        data: Bytes that hold the pickle.
        position: Where it begins in them. As an attribute, where the machine is: after `run`, the
            first byte behind the pickle.
        foreign: Gets the names of classes and functions that are not known here.
    """

    def __init__(self, data: memoryview, position: int, foreign: set[str]) -> None:
        self.position = position
        self.storages: list[Storage] = []
        """The storages that the pickle refers to, in its order."""
        self._data = data
        self._end = min(len(data), position + MAX_LENGTH)
        self._foreign = foreign
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # what lies under each mark, lowest first
        self._memo: dict[int, Any] = {}
        self._numbers = 0  # how many of them were keys

    def run(self) -> Any:
        """What the pickle builds.

        Raises:
            ValueError: It is damaged, too long, or asks for what a table of weights does not need.
        """
        try:
            for _ in range(MAX_STEPS):
                code = bytes(self._take(1))
                if code == pickle.STOP:
                    return self._stack.pop()
                self._step(code)
        except (IndexError, KeyError) as error:  # of an empty stack, or of nothing remembered
            raise ValueError("its pickle is damaged") from error
        raise ValueError(f"its pickle has more than {MAX_STEPS:,} steps")

    def _step(self, code: bytes) -> None:
        """Follow one instruction; the most frequent ones come first."""
        # Taken before the instruction: MARK, and whatever takes a mark away, replace `self._stack`,
        # but `stack` still is the one with the operands.
        stack, push = self._stack, self._stack.append
        match code:
            case pickle.BINPUT | pickle.LONG_BINPUT:
                place = self._number(_U1 if code == pickle.BINPUT else _U4)
                if place > MAX_STEPS:
                    raise ValueError(f"its pickle remembers more than {MAX_STEPS:,} things")
                self._memo[place] = stack[-1]
            case pickle.MEMOIZE:  # the next number
                self._memo[len(self._memo)] = stack[-1]
            case pickle.BINGET | pickle.LONG_BINGET:
                push(self._memo[self._number(_U1 if code == pickle.BINGET else _U4)])
            case pickle.MARK:
                self._below.append(stack)
                self._stack = []
            # ---- plain values
            case pickle.BININT1:
                push(self._number(_U1))
            case pickle.BININT2:
                push(self._number(_U2))
            case pickle.BININT:
                push(self._number(_I4))
            case pickle.LONG1:
                push(int.from_bytes(self._take(self._number(_U1)), "little", signed=True))
            case pickle.BINFLOAT:
                push(self._number(_F8))
            case pickle.BINUNICODE:
                push(self._text(_U4))
            case pickle.SHORT_BINUNICODE:
                push(self._text(_U1))
            case pickle.BINUNICODE8:
                push(self._text(_U8))
            case pickle.NONE:
                push(None)
            case pickle.NEWTRUE | pickle.NEWFALSE:
                push(code == pickle.NEWTRUE)
            case pickle.SHORT_BINSTRING | pickle.BINSTRING:  # Python 2's
                push(self._bytes(_U1 if code == pickle.SHORT_BINSTRING else _U4).decode("latin-1"))
            case pickle.SHORT_BINBYTES:
                push(self._bytes(_U1))
            case pickle.BINBYTES:
                push(self._bytes(_U4))
            case pickle.BINBYTES8 | pickle.BYTEARRAY8:
                push(self._bytes(_U8))
            # ---- containers
            case pickle.EMPTY_TUPLE:
                push(())
            case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                count = _TUPLES[code]
                items = tuple(self._last(count))
                del stack[-count:]
                push(items)
            case pickle.TUPLE:
                self._push_below(tuple(stack))
            case pickle.EMPTY_DICT:
                push({})
            case pickle.SETITEM:
                pair = self._last(2)
                del stack[-2:]
                self._set_items(stack[-1], pair)
            case pickle.SETITEMS:
                self._set_items(self._to_mark(), stack)
            case pickle.DICT:
                made: dict[Any, Any] = {}
                self._set_items(made, stack)
                self._push_below(made)
            case pickle.EMPTY_LIST:
                push([])
            case pickle.APPEND:
                item = stack.pop()
                _extend(stack[-1], [item])
            case pickle.APPENDS:
                _extend(self._to_mark(), stack)
            case pickle.LIST:
                self._push_below(stack)
            case pickle.EMPTY_SET:
                push(set())
            case pickle.ADDITEMS:
                into = self._to_mark()
                if isinstance(into, set):
                    into.update(map(self._hashed, stack))
                elif not isinstance(into, Stub):
                    raise ValueError("its pickle adds items to something that is not a set")
            case pickle.FROZENSET:
                self._push_below(frozenset(map(self._hashed, stack)))
            # ---- objects
            case pickle.GLOBAL:
                push(self._named(self._line(), self._line()))
            case pickle.STACK_GLOBAL:
                name, module = stack.pop(), stack.pop()
                push(self._named(module, name))
            case pickle.BINPERSID:  # torch's reference to a storage, outside the pickle
                self.storages.append(_storage(stack.pop()))
                push(self.storages[-1])
            case pickle.REDUCE:  # where Python would call the function
                arguments, function = stack.pop(), stack.pop()
                push(_call(function, arguments))
            case pickle.NEWOBJ | pickle.NEWOBJ_EX:
                arguments = self._last(1 if code == pickle.NEWOBJ else 2)
                del stack[-len(arguments) :]
                push(_object(stack.pop()))
            case pickle.BUILD:
                stack.pop()  # the state of an object, and no object here has one
                if not isinstance(stack[-1], (Stub, dict)):
                    raise ValueError("its pickle sets the state of something that has none")
            # ---- the machine itself
            case pickle.POP if stack:
                stack.pop()
            # With nothing above the mark, POP takes the mark itself.
            case pickle.POP | pickle.POP_MARK:
                self._to_mark()
            case pickle.DUP:
                push(stack[-1])
            case pickle.FRAME:
                self._number(_U8)  # its length, for readers of streams
            case pickle.PROTO:
                protocol = self._number(_U1)
                if protocol not in _PROTOCOLS:
                    raise ValueError(f"its pickle is of protocol {protocol}")
            case _:
                raise ValueError(f"its pickle has the instruction {code!r}, which is not supported")

    # ---- bytes of the program -----------------------------------------------------------------

    def _take(self, count: int) -> memoryview:
        begin, self.position = self.position, self.position + count
        if self.position > self._end:
            raise ValueError("its pickle is cut short or too long")
        return self._data[begin : self.position]

    def _number(self, form: struct.Struct) -> Any:
        return form.unpack(self._take(form.size))[0]

    def _bytes(self, length: struct.Struct) -> bytes:
        return bytes(self._take(self._number(length)))

    def _text(self, length: struct.Struct) -> str:
        count = self._number(length)
        if count > MAX_TEXT:
            raise ValueError(f"its pickle has a string of {count:,} bytes")
        return bytes(self._take(count)).decode("utf-8", "surrogatepass")

    def _line(self) -> str:
        window = self._data[self.position : min(self.position + _MAX_NAME + 1, self._end)]
        line, newline, _ = bytes(window).partition(b"\n")
        if not newline:
            raise ValueError("its pickle is cut short or has too long a name")
        self.position += len(line) + 1
        return line.decode()

    # ---- the stack ----------------------------------------------------------------------------

    def _last(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise IndexError
        return self._stack[-count:]

    def _to_mark(self) -> Any:
        """Drop what is above the last mark, and return the item just under it."""
        self._stack = self._below.pop()
        return self._stack[-1] if self._stack else None

    def _push_below(self, value: Any) -> None:
        """Replace the last mark and all that is above it by one value."""
        self._stack = self._below.pop()
        self._stack.append(value)

    def _set_items(self, into: Any, items: list[Any]) -> None:
        if len(items) % 2:
            raise IndexError
        if isinstance(into, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                into[self._hashed(key)] = value
        elif not isinstance(into, Stub):
            raise ValueError("its pickle sets keys of something that is not a dictionary")

    def _hashed(self, key: Any) -> Any:
        """The key of a dictionary or member of a set, if hashing and comparing it is cheap."""
        if isinstance(key, (int, float)):
            self._numbers += 1
            if self._numbers > MAX_NUMBERS:
                raise ValueError(f"its pickle has more than {MAX_NUMBERS:,} numbers as keys")
            if isinstance(key, float) or key.bit_length() < 64:
                return key
        if isinstance(key, (str, Stub, DType, StorageType, Known)):
            return key
        raise ValueError(f"its pickle has a {type(key).__name__} as a dictionary key or in a set")

    def _named(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("its pickle names a class with something other than a string")
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if len(self._foreign) < _MAX_NAMES:
            self._foreign.add(f"{module[:_MAX_NAME]}.{name[:_MAX_NAME]}")
        return Stub()


def _extend(into: Any, items: list[Any]) -> None:
    if isinstance(into, list):
        into.extend(items)
    elif not isinstance(into, Stub):
        raise ValueError("its pickle appends to something that is not a list")


def _storage(identity: Any) -> Storage:
    # Before version 1.6 torch's tuple had an entry more, for views, which it left empty.
    match identity:
        case ("storage", StorageType(dtype), str(key), str(), int(count)) | (
            "storage",
            StorageType(dtype),
            str(key),
            str(),
            int(count),
            None,
        ):
            return Storage(key, dtype, count)
    raise ValueError("its pickle refers to something that is not a storage")


def _object(made: Any) -> Stub | dict[Any, Any]:
    """An object of a class: a stub or an empty dictionary, whatever the arguments."""
    if made is Known.ORDERED_DICT:
        return {}
    if isinstance(made, Stub):
        return made
    raise ValueError("its pickle makes an object from something that is not a class")


def _call(function: Any, arguments: Any) -> Any:
    if isinstance(function, Stub):
        return function
    match function, arguments:
        case Known.ORDERED_DICT, tuple():
            return {}  # it is filled afterwards; copies of what was filled before could multiply
        case Known.SIZE, (tuple(size),):
            return size
        case Known.PARAMETER, ((TensorRecord() | Stub()) as parameter, *_):
            return parameter
        case Known.TENSOR, (Storage(_, str(dtype)) as storage, offset, size, stride, *_):
            return _tensor(storage, dtype, offset, size, stride)
        case (
            Known.TYPED_TENSOR,
            (Storage(_, None) as storage, offset, size, stride, _, _, DType(dtype), *_),
        ):
            return _tensor(storage, dtype, offset, size, stride)
    raise ValueError("its pickle calls a function with arguments that it does not take")


def _tensor(storage: Storage, dtype: str, offset: Any, size: Any, stride: Any) -> TensorRecord:
    if not (isinstance(size, tuple) and isinstance(stride, tuple)):
        raise ValueError("its pickle has a tensor whose size is not a tuple")
    # The length first: one tuple may be the size of any number of tensors.
    if not len(size) == len(stride) <= MAX_DIMS:
        raise ValueError(f"its pickle has a tensor of {len(size)} sizes and {len(stride)} strides")
    if not all(type(number) is int for number in (offset, *size, *stride)):
        raise ValueError("its pickle has a tensor whose size is not whole numbers")
    return TensorRecord(storage, dtype, offset, size, stride)


_U1, _U2, _U4, _U8 = (struct.Struct(form) for form in ("<B", "<H", "<I", "<Q"))
_I4, _F8 = struct.Struct("<i"), struct.Struct(">d")
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}
