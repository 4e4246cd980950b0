"""Small pickles that would take for ever, all of the memory, or the interpreter's stack."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from .case import NO_MODEL, Case, Table
from .pickling import (
    BUILD,
    DICT,
    EMPTY,
    LIST,
    NONE,
    ORDERED,
    POP,
    REBUILD,
    REDUCE,
    SET,
    again,
    call,
    checkpoint,
    keep,
    large,
    named,
    number,
    numbers,
    row,
    storage,
    table,
    text,
)

_KEY = r"as a dictionary key or in a set"
_DEEP = "nested more than 100 levels deep|steps"
_STEPS = r"its pickle has more than [\d,]+ steps"
_LIMITS = rf"its pickle has|its pickle remembers|{NO_MODEL}"
"""Whether there is a limit for it or not: it must not take long."""
_PAIR = b"\x86"
_PRIME = 2**61 - 1
"""Whole numbers are hashed modulo this."""


def _doubled(start: bytes, step: str, levels: int = 60) -> bytes:
    """Each level holds the one before it twice, so there are 2**60 paths to the first."""
    steps = start
    for level in range(levels):
        twice = keep(level), again(level)
        if step == "row":
            steps += b"".join(twice) + _PAIR
        elif step == "list":
            steps += keep(level) + POP + LIST + b"(" + again(level) * 2 + b"e"
        else:
            steps += keep(level) + POP + table() + b"(" + text("a") + again(level)
            steps += text("b") + again(level) + b"u"
    return steps


_ROWS = _doubled(EMPTY, "row")


def _value(steps: bytes, says: str = NO_MODEL) -> Case:
    return Case(large(lambda: table(a=steps)), says)


def _colliding(count: int) -> Iterator[int]:
    """Keys of a dictionary of which the last ones are each compared with very many others.

    CPython looks for a place at i, 5 i + 1, 25 i + 6 and so on. Small numbers take up a piece of
    that way; larger ones, whose upper bits count for the first few places, lead to its beginning.
    """
    bits, length = 17, 85_000
    mask = (1 << bits) - 1
    way = np.empty(length, np.int64)
    place = 0
    for step in range(length):
        way[step] = place
        place = (5 * place + 1) & mask
    step_of = np.full(1 << bits, length)
    step_of[way] = np.arange(length)
    yield from way.tolist()
    rng = np.random.default_rng(0)
    while count > 0:
        keys = rng.integers(0, 1 << 40, 1_000_000)
        at, upper = keys & mask, keys.copy()
        for _ in range(9):
            taken = step_of[at] < length
            keys, at, upper = keys[taken], at[taken], upper[taken] >> 5
            at = (5 * at + upper + 1) & mask
        found = keys[step_of[at] < length // 4][:count]
        count -= len(found)
        yield from found.tolist()


def _keyed(keys: Iterator[int]) -> bytes:
    return DICT + b"(" + b"".join(number(key) + NONE for key in keys) + b"u"


def _wide_sizes() -> bytes:
    """A tensor's size of 100,000 numbers, looked through 50,000 times."""
    sides = b"(" + b"K\x00" * 100_000 + b"t"
    arguments = b"(" + storage() + b"K\x00" + sides + sides + b"\x89" + DICT + b"t"
    once = again(0) + again(1) + REDUCE + POP
    return DICT + REBUILD + keep(0) + POP + arguments + keep(1) + POP + once * 50_000


FILES: Table = {
    # ---- hashed or compared
    "hash_key.ckpt": Case(checkpoint(DICT, _ROWS, NONE, b"s"), _KEY),
    "hash_set.ckpt": Case(checkpoint(SET, b"(", _ROWS, b"\x90"), _KEY),
    "hash_frozen_set.ckpt": Case(checkpoint(b"(", _ROWS, b"\x91"), _KEY),
    "hash_deep.ckpt": Case(
        large(lambda: DICT + EMPTY + b"\x85" * 100_000 + NONE + b"s"), _KEY
    ).briefly(),
    "hash_list.ckpt": Case(checkpoint(DICT, LIST, NONE, b"s"), _KEY),
    "hash_tensor.ckpt": Case(checkpoint(DICT, storage(), NONE, b"s"), _KEY),
    "hash_bytes.ckpt": Case(checkpoint(DICT, b"C\x01a", NONE, b"s"), _KEY),
    "frozen_sets.ckpt": Case(checkpoint(b"((\x91\x91"), _KEY),
    "str_persistent_id.ckpt": Case(checkpoint(_ROWS, b"Q"), "something that is not a storage"),
    "deep_persistent_id.ckpt": Case(
        checkpoint(row(text("storage"), _ROWS, text("0"), text("cpu"), number(1)), b"Q"),
        "something that is not a storage",
    ),
    "deep_names.ckpt": Case(
        checkpoint(_ROWS, _ROWS, b"\x93"), "names a class with something other"
    ),
    "deep_arguments.ckpt": Case(
        checkpoint(REBUILD, _ROWS, REDUCE), "arguments that it does not take"
    ),
    "deep_size.ckpt": Case(
        checkpoint(call(REBUILD, storage(), number(0), _ROWS, _ROWS)), "whole numbers|of the size"
    ),
    "multiples_of_the_prime.ckpt": Case(
        large(lambda: _keyed(_PRIME * i for i in range(1, 100_000))), _KEY
    ).briefly(),
    "colliding.ckpt": Case(large(lambda: _keyed(_colliding(2_000))), _LIMITS).briefly(),
    # ---- walked
    "rows.ckpt": _value(_ROWS),
    "lists.ckpt": _value(_doubled(LIST, "list")),
    "tables.ckpt": _value(_doubled(DICT, "table")),
    "deep_rows.ckpt": Case(large(lambda: table(a=EMPTY + b"\x85" * 10_000)), _DEEP),
    "deep_lists.ckpt": Case(
        large(lambda: DICT + text("a") + LIST * 9_000 + b"a" * 8_999 + b"s"), _DEEP
    ),
    "deep_tables.ckpt": Case(
        large(lambda: (DICT + text("a")) * 9_000 + NONE + b"s" * 9_000), _DEEP
    ),
    "own_member.ckpt": _value(LIST + keep(0) + again(0) + b"a"),
    "own_value.ckpt": Case(checkpoint(DICT, keep(0), text("a"), again(0), b"s"), NO_MODEL),
    "own_state.ckpt": Case(checkpoint(DICT, keep(0), text("state_dict"), again(0), b"s"), NO_MODEL),
    "own_row.ckpt": _value(LIST + keep(0) + again(0) + b"\x85" + b"a"),
    # ---- many steps
    **{
        f"million_{name}.ckpt": Case(
            large(lambda step=step: DICT + step * 1_000_000), _STEPS
        ).briefly()
        for name, step in {
            "pops": NONE + POP,
            "marks": b"(",
            "protocols": b"\x80\x02",
            "states": NONE + BUILD,
        }.items()
    },
    # ---- within the limit of steps, if there is one
    **{
        f"many_{name}.ckpt": Case(
            large(lambda steps=steps: table(a=LIST + b"(" + steps() + b"e")), _LIMITS
        ).briefly()
        for name, steps in {
            "sets": lambda: SET * 490_000,
            "texts": lambda: b"".join(b"\x8c\x03%03x" % (i % 4096) for i in range(490_000)),
            "tables": lambda: DICT * 490_000,
            "stubs": lambda: named("a", "b") * 490_000,
            "ordered": lambda: ORDERED + keep(0) + (again(0) + EMPTY + REDUCE) * 160_000,
        }.items()
    },
    "not_numbers.ckpt": Case(
        large(lambda: table(a=DICT + b"(" + (b"G\x7f\xf8" + bytes(6) + NONE) * 200_000 + b"u")),
        _LIMITS,
    ).briefly(),
    "wide_sizes.ckpt": Case(large(_wide_sizes), rf"of the size|{_LIMITS}").briefly(),
    "wide_size.ckpt": Case(
        large(lambda: call(REBUILD, storage(), number(0), *(numbers(*(0,) * 100_000),) * 2)),
        "size|steps",
    ).briefly(),
    # ---- long texts
    "wide_letters.ckpt": Case(
        large(lambda: text("\U0001f600" + "a" * 60_000_000) + DICT), "its pickle has"
    ).briefly(),
    "bytes.ckpt": Case(
        large(lambda: b"B" + struct.pack("<I", 60_000_000) + bytes(60_000_000) + DICT),
        "its pickle has|holds no weights",
    ).briefly(),
    "long_configuration.ckpt": Case(
        large(lambda: table(pbe_config=text("[" + "[]," * 10_000_000 + "[]]"))), "its pickle has"
    ).briefly(),
}
