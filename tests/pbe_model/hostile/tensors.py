"""Tensors of a torch file that claim more than their storages have, and weights that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from pbe_model.checkpoints.infer_config import METADATA_KEY
from pbe_model.checkpoints.load import state_dict

from ..small import SMALL, small_model
from .case import NO_MODEL, Case, Maker, Table
from .pickling import (
    DICT,
    REBUILD,
    again,
    call,
    checkpoint,
    holding,
    keep,
    large,
    named,
    number,
    numbers,
    row,
    storage,
    table,
    tensor,
    text,
)

_CLAIMS = "a tensor claims"
_SIZE = r"a tensor has the size|whole numbers|a tensor of \d+ sizes and"
_STORAGE = "bytes where its tensors say"
_ARGUMENTS = "arguments that it does not take"
_TYPE = "which is not a weight type here"
_NUMBERS = "holds NaN or infinite values|lacks or misshapes"
_UNREAD = ("inspect",)
"""What does not look at the numbers."""
_TOLD = ("inspect",)
"""What lists a shape that differs."""

_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
_V3, _UNTYPED = (
    named("torch._utils", "_rebuild_tensor_v3"),
    named("torch.storage", "UntypedStorage"),
)


def _of(
    size: tuple[int, ...], stride: tuple[int, ...], says: str, offset: int = 0, **held: Any
) -> Case:
    """A tensor over a storage of so many elements."""
    count = held.get("count", 1)
    of = storage(held.get("kind", "Float"), "0", count)
    stored = bytes(held.get("stored", 4))
    return Case(holding(tensor(size, stride, offset, of=of), {"0": stored}), says)


def _typed(dtype: bytes, count: int = 4) -> bytes:
    """A tensor over an untyped storage."""
    kind = row(text("storage"), _UNTYPED, text("0"), text("cpu"), number(count)) + b"Q"
    one = numbers(1)
    return call(_V3, kind, number(0), one, one, b"\x89", DICT, dtype)


def _views(count: int, side: int) -> bytes:
    """Many tensors over all of one storage."""
    whole = tensor((side,), (1,), of=storage("Float", "0", side))
    return table(
        state_dict=DICT
        + b"("
        + b"".join(
            text(f"{i}")
            + (whole + keep(1) if not i else tensor((side,), (1,), of=storage("Float", "0", side)))
            for i in range(count)
        )
        + b"u"
    )


def _model(**changes: Any) -> Maker:
    """Saves a whole small model of which weights are replaced: by name, or `every` of them."""

    def make(path: Path) -> None:
        weights = {name: tensor.clone() for name, tensor in state_dict(small_model()).items()}
        for name, change in changes.items():
            chosen = weights if name == "every" else [_FIRST]
            for key in chosen:
                weights[key] = change(weights[key])
        stated = json.dumps(SMALL.to_dict())
        torch.save({"state_dict": weights, METADATA_KEY: stated}, path)

    return make


def _first(value: float):
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight.view(-1)[7] = value
        return weight

    return change


FILES: Table = {
    # ---- sizes and strides
    "stride0.ckpt": _of((2**20, 2**17), (0, 0), _CLAIMS, kind="Half", stored=2),
    "expanded.ckpt": Case(_model(first=lambda w: torch.zeros(1).expand(10**12)), _CLAIMS),
    "negative_size.ckpt": _of((-1,), (1,), _SIZE),
    "negative_stride.ckpt": _of((1,), (-1,), _SIZE),
    "negative_offset.ckpt": _of((1,), (1,), _SIZE, -1),
    "size_2_63.ckpt": _of((2**63,), (1,), _SIZE),
    "size_2_63_less_1.ckpt": _of((2**63 - 1,), (1,), _CLAIMS),
    "stride_2_62.ckpt": _of((1, 3), (2**62, 2**62), _CLAIMS),
    "offset_2_62.ckpt": _of((1,), (1,), _CLAIMS, 2**62),
    "size_of_1_000_bits.ckpt": _of((2**1000,), (1,), _SIZE),
    "product_2_64.ckpt": _of((2**32, 2**32), (1, 1), _CLAIMS),
    "empty_and_2_63.ckpt": _of((0, 2**62, 2**62), (1, 1, 1), _SIZE),
    "too_few_strides.ckpt": _of((1, 1), (1,), _SIZE),
    "sixty_five_sides.ckpt": _of((1,) * 65, (1,) * 65, _SIZE),
    "thousand_sides.ckpt": _of((1,) * 1000, (0,) * 1000, _SIZE),
    "one_too_long.ckpt": _of((2,), (1,), _CLAIMS),
    "one_too_far.ckpt": _of((1,), (1,), _CLAIMS, 1),
    "overlapping.ckpt": _of((4, 4), (1, 1), _CLAIMS, count=7, stored=28),
    "views.ckpt": Case(large(lambda: _views(2_000, 2**16)), _STORAGE),
    "all_views.ckpt": Case(
        checkpoint(_views(2_000, 2**16), storages={"0": bytes(2**18)}), f"{_CLAIMS}|{NO_MODEL}"
    ),
    "float_size.ckpt": Case(
        holding(call(REBUILD, storage(), number(0), row(b"G" + bytes(8)), numbers(1))),
        "whole numbers",
    ),
    "true_size.ckpt": Case(
        holding(call(REBUILD, storage(), number(0), row(b"\x88"), numbers(1))), "whole numbers"
    ),
    "text_offset.ckpt": Case(
        holding(call(REBUILD, storage(), text("0"), numbers(1), numbers(1))), "whole numbers"
    ),
    "list_size.ckpt": Case(
        holding(call(REBUILD, storage(), number(0), b"](K\x01e", numbers(1))), "is not a tuple"
    ),
    # ---- storages
    "no_storage.ckpt": Case(holding(tensor(), {"1": bytes(4)}), _STORAGE),
    "short_storage.ckpt": _of((1,), (1,), _STORAGE, stored=3),
    "long_storage.ckpt": _of((1,), (1,), _STORAGE, stored=5),
    "empty_storage.ckpt": _of((1,), (1,), _STORAGE, count=0, stored=0),
    "negative_storage.ckpt": _of((1,), (1,), _STORAGE, count=-1),
    "storage_2_62.ckpt": _of((1,), (1,), _STORAGE, count=2**62),
    "storage_of_1_000_bits.ckpt": _of((1,), (1,), _STORAGE, count=2**1000),
    "two_types.ckpt": Case(
        holding(tensor() + keep(0) + b"0" + tensor(of=storage("Double"))), _STORAGE
    ),
    "escapes_in_a_key.ckpt": Case(
        holding(tensor(of=storage("Float", "\x1b[31m\n"))), r"storage \\x1b\[31m\\n has 0"
    ),
    "key_in_a_folder.ckpt": Case(holding(tensor(of=storage("Float", "../data.pkl"))), _STORAGE),
    "untyped.ckpt": Case(
        holding(
            call(
                REBUILD,
                row(text("storage"), _UNTYPED, text("0"), text("cpu"), number(4)) + b"Q",
                number(0),
                numbers(1),
                numbers(1),
            )
        ),
        _ARGUMENTS,
    ),
    "typed_twice.ckpt": Case(
        holding(
            call(
                _V3,
                storage(),
                number(0),
                numbers(1),
                numbers(1),
                b"\x89",
                DICT,
                named("torch", "int8"),
            )
        ),
        _ARGUMENTS,
    ),
    "unknown_dtype.ckpt": Case(holding(_typed(named("torch", "float128"))), _ARGUMENTS),
    "class_as_dtype.ckpt": Case(holding(_typed(named("posix", "system"))), _ARGUMENTS),
    "quantised.ckpt": Case(
        holding(call(named("torch._utils", "_rebuild_qtensor"), storage("QInt8"))),
        f"something that is not a storage|{NO_MODEL}",
    ),
    "sparse.ckpt": Case(
        holding(
            call(named("torch._utils", "_rebuild_sparse_tensor"), named("torch", "sparse_coo"))
        ),
        NO_MODEL,
    ),
    "again_and_again.ckpt": Case(
        checkpoint(
            table(
                state_dict=DICT
                + b"("
                + text("a")
                + tensor()
                + keep(9)
                + b"".join(text(f"{i}") + again(9) for i in range(2_000))
                + b"u"
            )
        ),
        NO_MODEL,
    ),
    # ---- weights that are none
    **{
        f"{dtype}.ckpt": Case(
            _model(every=lambda w, dtype=dtype: w.to(getattr(torch, dtype))), _TYPE
        )
        for dtype in ("int8", "bool", "int16", "int64", "uint16")
    },
    "complex.ckpt": Case(
        _model(first=lambda w: w.to(torch.complex64)), "something that is not a storage"
    ),
    "one_int.ckpt": Case(_model(first=lambda w: w.to(torch.int32)), _TYPE),
    "nan.ckpt": Case(_model(first=_first(float("nan"))), _NUMBERS, _UNREAD),
    "infinite.ckpt": Case(_model(first=_first(float("-inf"))), _NUMBERS, _UNREAD),
    "reshaped.ckpt": Case(_model(first=lambda w: w.flatten()), "shape", _TOLD),
    "empty_first.ckpt": Case(_model(first=lambda w: w[:0]), "shape", _TOLD),
    "other_model.ckpt": Case(_model(first=lambda w: w[:, :4]), "shape", _TOLD),
}
