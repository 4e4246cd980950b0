"""Pickles with instructions that no table of weights needs, or that are out of place."""

from __future__ import annotations

import pickle
import struct

from .case import NO_MODEL, TERMINAL, Case, Maker, Table, built
from .pickling import (
    BUILD,
    DICT,
    EMPTY,
    LIST,
    NONE,
    ORDERED,
    POP,
    PROTO,
    REBUILD,
    REDUCE,
    SET,
    STOP,
    TRUE,
    call,
    checkpoint,
    holding,
    keep,
    named,
    number,
    numbers,
    records,
    row,
    storage,
    table,
    tensor,
    text,
)
from .zipping import archive

_CALLED = "calls a function with arguments that it does not take"
_STATE = "sets the state of something that has none"
_MADE = "makes an object from something that is not a class"
_REFERS = "refers to something that is not a storage"
_DAMAGED = "its pickle is damaged"
_CUT = "its pickle is cut short"
_INERT = NO_MODEL
"""It stands for nothing, and that is all."""

_SIZE, _FLOAT = named("torch", "Size"), named("torch", "FloatStorage")
_SYSTEM, _EVAL = named("posix", "system"), named("builtins", "eval")
_COMMAND = text("touch ran-by-file")
_NEW, _NEW_EX = b"\x81", b"\x92"


def _identity(*parts: bytes) -> bytes:
    return row(*parts) + b"Q"


def _only(pickled: bytes) -> Maker:
    """A file with this pickle, ended or not."""
    return built(lambda: archive(*records(pickled)))


def _unread(code: bytes) -> str:
    return f"has the instruction {code!r}".replace("\\", "\\\\")


def _defaults(*values: bytes) -> bytes:
    """Gives torch's own function other defaults, as slots of its state."""
    return REBUILD + NONE + table(__defaults__=row(*values)) + b"\x86" + BUILD


def _value(value: bytes, says: str = _INERT) -> Case:
    return Case(holding(value), says)


FILES: Table = {
    # ---- instructions that are not read
    **{
        f"{name}.ckpt": Case(holding(code + rest), _unread(code))
        for name, code, rest in (
            ("instance", pickle.INST, b"posix\nsystem\n"),
            ("object", pickle.OBJ, b""),
            ("extension", pickle.EXT1, b"\x01"),
            ("extension_2", pickle.EXT2, b"\x01\x00"),
            ("extension_4", pickle.EXT4, b"\x01\x00\x00\x00"),
            ("identity", pickle.PERSID, b"storage\n"),
            ("get", pickle.GET, b"0\n"),
            ("integer", pickle.INT, b"1" * 5000 + b"\n"),
            ("long", pickle.LONG, b"1" * 5000 + b"L\n"),
            ("long_4", pickle.LONG4, struct.pack("<i", -1)),
            ("float", pickle.FLOAT, b"nan\n"),
            ("string", pickle.STRING, b"'a'\n"),
            ("unicode", pickle.UNICODE, b"\\u0041\n"),
            ("buffer", pickle.NEXT_BUFFER, b""),
            ("unknown", b"\xff", b""),
        )
    },
    "put.ckpt": Case(holding(NONE + pickle.PUT + b"0\n"), _unread(pickle.PUT)),
    "read_only.ckpt": Case(holding(NONE + pickle.READONLY_BUFFER), _unread(pickle.READONLY_BUFFER)),
    "protocol_0.ckpt": Case(checkpoint(b"\x80\x00", DICT), "is of protocol 0"),
    "protocol_6.ckpt": Case(checkpoint(b"\x80\x06", DICT), "is of protocol 6"),
    "old_protocol.ckpt": Case(
        checkpoint(pickle.dumps({"a": 1}, protocol=0)), "has the instruction"
    ),
    # ---- calls
    "command.ckpt": Case(
        checkpoint(call(_SYSTEM, _COMMAND)), r"foreign code \(posix.system\), which"
    ),
    "commands.ckpt": _value(call(_SYSTEM, _COMMAND) + POP + call(_EVAL, text("1"))),
    "in_a_key.ckpt": Case(checkpoint(DICT + call(_SYSTEM, _COMMAND) + NONE + b"s"), _INERT),
    "new.ckpt": _value(named("subprocess", "Popen") + row(_COMMAND) + _NEW),
    "new_with_keywords.ckpt": _value(
        named("subprocess", "Popen") + EMPTY + table(args=_COMMAND) + _NEW_EX
    ),
    "by_stack.ckpt": _value(text("posix") + text("system") + b"\x93" + row(_COMMAND) + REDUCE),
    "import.ckpt": _value(call(named("importlib", "import_module"), text("antigravity"))),
    "getattr.ckpt": _value(call(named("builtins", "getattr"), REBUILD, text("__globals__"))),
    "torch_load.ckpt": _value(call(named("torch", "load"), text("/dev/zero"))),
    "torch_hub.ckpt": _value(call(named("torch.hub", "load"), text("a/b"), text("c"))),
    "torch_file.ckpt": _value(call(named("torch", "from_file"), text("ran-by-file"), TRUE)),
    "dotted.ckpt": _value(named("torch", "serialization.os.system") + row(_COMMAND) + REDUCE),
    "names.ckpt": Case(
        checkpoint(named(f"a{TERMINAL}", "system")), r"foreign code \(a\\x1b\]0;owned\\x07"
    ),
    "many_names.ckpt": Case(
        checkpoint(*(named("m" * 200, f"{i}") + POP for i in range(5_000)), named("a", "b")),
        "foreign code",
    ),
    "call_of_a_text.ckpt": _value(text("a") + EMPTY + REDUCE, _CALLED),
    "call_of_a_type.ckpt": _value(call(_FLOAT, number(2**40)), _CALLED),
    "call_of_a_tensor.ckpt": _value(tensor() + EMPTY + REDUCE, _CALLED),
    "call_of_a_dtype.ckpt": _value(call(named("torch", "float32")), _CALLED),
    "call_without_a_tuple.ckpt": _value(ORDERED + LIST + REDUCE, _CALLED),
    "size_of_a_list.ckpt": _value(call(_SIZE, LIST), _CALLED),
    "tensor_of_nothing.ckpt": _value(call(REBUILD), _CALLED),
    "tensor_of_a_key.ckpt": _value(call(REBUILD, text("0"), *(number(0),) * 5), _CALLED),
    "parameter_of_a_list.ckpt": _value(
        call(named("torch._utils", "_rebuild_parameter"), LIST, TRUE, DICT), _CALLED
    ),
    "new_function.ckpt": _value(REBUILD + EMPTY + _NEW, _MADE),
    "new_type.ckpt": _value(_FLOAT + EMPTY + DICT + _NEW_EX, _MADE),
    # ---- states
    "pollute_negate.ckpt": _value(_defaults(table(neg=TRUE)), _STATE),
    "pollute_break.ckpt": _value(_defaults(number(1)), _STATE),
    **{
        f"pollute_{name}.ckpt": _value(what + table(__class__=_EVAL) + BUILD, _STATE)
        for name, what in {
            "size": _SIZE,
            "ordered": ORDERED,
            "dtype": named("torch", "float32"),
            "storage_type": _FLOAT,
            "storage": storage(),
            "tensor": tensor(),
            "text": text("a"),
            "row": EMPTY,
            "list": LIST,
            "set": SET,
        }.items()
    },
    "state_of_a_table.ckpt": _value(call(ORDERED) + table(__class__=_EVAL) + BUILD),
    "state_of_a_module.ckpt": _value(named("torch", "_utils") + table(os=_EVAL) + BUILD),
    "slots.ckpt": _value(named("torch", "Tensor") + NONE + table(neg=TRUE) + b"\x86" + BUILD),
    # ---- things in the wrong places
    "keys_for_a_list.ckpt": _value(LIST + NONE * 2 + b"s", "sets keys of something"),
    "keys_for_a_tensor.ckpt": _value(tensor() + b"(" + NONE * 2 + b"u", "sets keys of something"),
    "append_to_a_table.ckpt": _value(DICT + NONE + b"a", "appends to something that is not a list"),
    "append_to_a_row.ckpt": _value(EMPTY + b"(" + NONE + b"e", "appends to something that"),
    "add_to_a_list.ckpt": _value(
        LIST + b"(" + NONE + b"\x90", "adds items to something that is not a set"
    ),
    "odd.ckpt": Case(checkpoint(DICT + b"(" + NONE * 3 + b"u"), _DAMAGED),
    "odd_table.ckpt": Case(checkpoint(b"(" + NONE * 3 + b"d"), _DAMAGED),
    "class_of_numbers.ckpt": _value(
        NONE * 2 + b"\x93", "names a class with something other than a string"
    ),
    **{
        f"nothing_to_{name}.ckpt": Case(checkpoint(code), _DAMAGED)
        for name, code in {
            "end_with": b"",
            "pop": POP,
            "copy": b"2",
            "keep": b"q\x00",
            "memoize": b"\x94",
            "get": b"h\x00",
            "mark": b"t",
            "pair": b"\x86",
            "append": b"a",
            "set": b"s",
            "call": REDUCE,
            "refer_to": b"Q",
            "name": b"\x93",
            "build": NONE + BUILD,
            "new": _NEW,
        }.items()
    },
    # ---- identities of storages
    **{
        f"identity_{name}.ckpt": _value(identity, _REFERS)
        for name, identity in {
            "text": text("0") + b"Q",
            "list": b"](" + text("storage") + _FLOAT + text("0") + text("cpu") + b"eQ",
            "module": _identity(text("module"), _FLOAT, text("0"), text("cpu"), number(1)),
            "class": _identity(text("storage"), _EVAL, text("0"), text("cpu"), number(1)),
            "key": _identity(text("storage"), _FLOAT, number(0), text("cpu"), number(1)),
            "key_row": _identity(text("storage"), _FLOAT, row(text("0")), text("cpu"), number(1)),
            "count": _identity(text("storage"), _FLOAT, text("0"), text("cpu"), text("1")),
            "view": storage("Float", "0", 1, row(text("1"), number(0), number(1))),
            "long": storage("Float", "0", 1, NONE, NONE),
            "complex": storage("ComplexFloat"),
        }.items()
    },
    # ---- cut short
    "no_stop.ckpt": Case(_only(PROTO + DICT), _CUT),
    "empty.ckpt": Case(_only(b""), _CUT),
    "stop.ckpt": Case(_only(STOP), _DAMAGED),
    "long_text.ckpt": _value(b"X\xff\xff\xff\xff", "its pickle"),
    "longer_text.ckpt": _value(b"\x8d" + b"\xff" * 8, "its pickle"),
    "long_bytes.ckpt": _value(b"\x8e" + b"\xff" * 8, "its pickle"),
    "long_array.ckpt": _value(b"\x96" + b"\xff" * 8, "its pickle"),
    "long_number.ckpt": _value(b"\x8a\xff1", _CUT),
    "no_text.ckpt": _value(b"X\x02\x00\x00\x00\xff\xfe", "codec can't decode"),
    "no_name.ckpt": _value(b"c" + b"a" * 300 + b"\nb\n", "has too long a name"),
    # ---- at the top
    "top_list.ckpt": Case(checkpoint(LIST), "type list, not a dictionary of tensors"),
    "top_row.ckpt": Case(checkpoint(numbers(1, 2)), "type tuple, not a dictionary of tensors"),
    "top_none.ckpt": Case(checkpoint(NONE), "type NoneType, not a dictionary of tensors"),
    "top_tensor.ckpt": Case(checkpoint(tensor()), "type Tensor, not a dictionary of tensors"),
    "top_storage.ckpt": Case(checkpoint(storage()), "not a dictionary|object of foreign code"),
    "top_function.ckpt": Case(checkpoint(REBUILD), "not a dictionary of tensors"),
    "state_of_texts.ckpt": Case(
        checkpoint(table(state_dict=text("a"))),
        "its 'state_dict' is not a dictionary, so this is not a model checkpoint",
    ),
    "numbers_as_names.ckpt": Case(
        checkpoint(table(state_dict=DICT + number(1) + tensor() + b"s")), "holds no weights"
    ),
    "kept.ckpt": Case(checkpoint(DICT, keep(2**31)), "its pickle remembers more than"),
}
