"""Safetensors files whose headers lie, are too long, or speak to the terminal."""

from __future__ import annotations

import json
import os
import struct
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import save

from pbe_model.checkpoints.infer_config import METADATA_KEY
from pbe_model.checkpoints.load import state_dict
from pbe_model.config import V1

from ..small import small_model
from .case import NO_MODEL, TERMINAL, Case, Maker, Table, built, content, link, sparse
from .strangers import GGUF, HTML, LFS

UNREAD = "cannot be read as safetensors"
_DEEP = "nested too deeply|recursion limit"
_NAME = "model.diffusion_model."
_FIRST = f"{_NAME}input_blocks.0.0.weight"
_TYPES = [
    "BOOL",
    "U8",
    "I8",
    "F8_E5M2",
    "F8_E4M3",
    "F8_E8M0",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "I16",
    "U16",
    "I32",
    "U32",
    "C64",
    "I64",
    "U64",
    "F4",
    "F6_E2M3",
    "F6_E3M2",
]


def with_header(header: str | bytes | dict, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with this header, whatever it says.

    Args:
        header: Its JSON.
        data: What follows.
        length: That the file says the header has.
    """
    raw = json.dumps(header) if isinstance(header, dict) else header
    raw = raw.encode() if isinstance(raw, str) else raw
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(begin: int, end: int, *shape: int, dtype: str = "F32") -> dict[str, Any]:
    """What a header says of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def changed_model(*, metadata: dict[str, str] | None = None, **changes: Any) -> Maker:
    """Saves the small model with other metadata.

    Args:
        metadata: Of the file; the model's configuration by default.
        changes: By the name of a tensor, what becomes of what the header says of it.
    """

    def make(path: Path) -> None:
        header, data = json.loads(_model()[0]), _model()[1]
        header["__metadata__"].update(metadata or {})
        for name, change in changes.items():
            header[name].update(change)
        path.write_bytes(with_header(header, data))

    return make


@cache
def _model() -> tuple[bytes, bytes]:
    """Header and data of the small model."""
    model = small_model()
    whole = save(state_dict(model), {METADATA_KEY: json.dumps(model.config.to_dict())})
    (length,) = struct.unpack_from("<Q", whole)
    return whole[8 : 8 + length], whole[8 + length :]


def _number_in(weight: str, place: int, raw: bytes) -> Maker:
    """Overwrites a number of a weight of the small model."""

    def make(path: Path) -> None:
        changed_model()(path)
        whole = bytearray(path.read_bytes())
        (length,) = struct.unpack_from("<Q", whole)
        begin, _ = json.loads(whole[8 : 8 + length])[weight]["data_offsets"]
        at = 8 + length + begin + 4 * place
        whole[at : at + 4] = raw
        path.write_bytes(whole)

    return make


def _cut(path: Path) -> None:
    changed_model()(path)
    os.truncate(path, path.stat().st_size - 1)


def _tower_shapes() -> dict[str, Any]:
    """A denoiser's first weight without values, of sides whose product is beyond 64 bits."""
    attention = f"{_NAME}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    return {_FIRST: entry(0, 0, 0, 4, 2**31, 2**31), attention: entry(0, 0, 0)}


def _many(count: int, value: dict[str, Any] | int) -> str:
    one = json.dumps(value)
    return "{" + ",".join(f'"{i:x}":{one}' for i in range(count)) + "}"


def _large_config(**sizes: int) -> str:
    values = V1.to_dict()
    values["exemplar"] |= sizes
    return json.dumps(values)


FILES: Table = {
    # ---- no such file
    "magic.safetensors": Case(content(b"\x89PNG\r\n\x1a\n" + bytes(1000)), "it is a PNG picture"),
    "empty.safetensors": Case(content(b""), "it is an empty file"),
    "short.safetensors": Case(content(b"\2\0\0\0\0\0\0"), "it is empty or nearly so"),
    "page.safetensors": Case(content(HTML), "it is an HTML page"),
    "pointer.safetensors": Case(content(LFS), "it is a Git LFS pointer"),
    "gguf.safetensors": Case(content(GGUF), "it is a GGUF model"),
    "pipe.safetensors": Case(os.mkfifo, "no checkpoint at|no image tower at"),
    "device.safetensors": Case(link("/dev/zero"), "no checkpoint at|no image tower at"),
    "zeros.safetensors": Case(sparse(b"", 2**36), "it is a file of zeros"),
    "cut.safetensors": Case(_cut, "incomplete"),
    # ---- headers
    "long.safetensors": Case(
        content(with_header("{}", length=10**12)), "its header claims 1,000,000,000,000 bytes"
    ),
    "longest.safetensors": Case(content(with_header("{}", length=2**64 - 1)), "its header claims"),
    "sparse.safetensors": Case(
        sparse(struct.pack("<Q", 2**33) + b"{", 2**34), "its header has 8,589,934,592 bytes"
    ),
    "overlap.safetensors": Case(
        content(with_header({"a": entry(0, 8, 2), "b": entry(4, 12, 2)}, bytes(12))),
        "invalid offset",
    ),
    "hole.safetensors": Case(
        content(with_header({"a": entry(4, 8, 1)}, bytes(8))), "invalid offset|hole"
    ),
    "rest.safetensors": Case(content(with_header({"a": entry(0, 4, 1)}, bytes(8))), UNREAD),
    "negative.safetensors": Case(content(with_header({"a": entry(0, 8, -2)}, bytes(8))), "-2"),
    "backwards.safetensors": Case(content(with_header({"a": entry(8, 0, 2)}, bytes(8))), UNREAD),
    "float.safetensors": Case(
        content(with_header('{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}', bytes(4))),
        UNREAD,
    ),
    "overflow.safetensors": Case(
        content(with_header({"a": entry(0, 4, 2**32, 2**32, 2**32)}, bytes(4))), "overflow"
    ),
    "wide_and_empty.safetensors": Case(
        content(with_header(_tower_shapes())),
        "Stable Diffusion|misshapen|no part|not an image tower|shape",
    ),
    "dimensions.safetensors": Case(
        content(with_header({_FIRST: entry(0, 4, *[1] * 5_000)}, bytes(4))), f"{NO_MODEL}|{UNREAD}"
    ),
    "twice.safetensors": Case(
        content(with_header('{"a":%s,"a":%s}' % ((json.dumps(entry(0, 8, 2)),) * 2), bytes(8))),
        "'a' is in its header twice",
    ),
    "twice_inside.safetensors": Case(
        content(
            with_header(
                '{"a":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,4]}}', bytes(4)
            )
        ),
        "'dtype' is in its header twice",
    ),
    "twice_escaped.safetensors": Case(
        content(with_header(r'{"\u001b[31m":0,"\u001b[31m":0}')),
        r"'\\+x1b\[31m' is in its header",
    ),
    "names.safetensors": Case(
        built(lambda: with_header(_many(330_000, 0)[:-1] + ',"z":0,"z":0}')),
        "is in its header twice",
    ).briefly(),
    "many.safetensors": Case(
        built(lambda: with_header(_many(600_000, 0))), "it has 600,000 tensors"
    ).briefly(),
    "million.safetensors": Case(
        built(lambda: with_header(_many(10**6, entry(0, 0, 0)))), "its header has [0-9,]+ bytes"
    ).briefly(),
    "objects.safetensors": Case(
        built(lambda: with_header('{"a":[' + '{"a":1},' * 900_000 + "0]}")), UNREAD
    ).briefly(),
    "lists.safetensors": Case(
        built(lambda: with_header('{"a":[' + "[]," * 2_600_000 + "0]}")), UNREAD
    ).briefly(),
    "digits.safetensors": Case(
        built(lambda: with_header('{"a":[' + ("9" * 4_000 + ",") * 2_000 + "0]}")), UNREAD
    ).briefly(),
    "deep.safetensors": Case(built(lambda: with_header('{"a":' + "[" * 400_000)), _DEEP),
    "deep_objects.safetensors": Case(built(lambda: with_header('{"a":' * 400_000)), _DEEP),
    "half_deep.safetensors": Case(
        built(lambda: with_header('{"a":' + "[" * 700 + "]" * 700 + "}")), _DEEP
    ),
    "list.safetensors": Case(content(with_header("[]")), UNREAD),
    "number.safetensors": Case(content(with_header("1" * 5_000)), UNREAD),
    "letters.safetensors": Case(content(with_header(b'{"\xff":0}')), UNREAD),
    "surrogate.safetensors": Case(content(with_header(r'{"\ud800":0}')), UNREAD),
    "not_a_number.safetensors": Case(content(with_header('{"a":NaN}')), UNREAD),
    "metadata_number.safetensors": Case(content(with_header('{"__metadata__":{"a":1}}')), UNREAD),
    "metadata_deep.safetensors": Case(
        built(lambda: with_header('{"__metadata__":{"a":' + "[" * 90 + "]" * 90 + "}}")), UNREAD
    ),
    # ---- tensors
    **{
        f"{dtype}.safetensors": Case(
            changed_model(**{"learnable_vector": {"dtype": dtype}})
            if dtype in ("I32", "U32")
            else content(with_header({_FIRST: entry(0, 32, 1, 4, 4, 2, dtype=dtype)}, bytes(32))),
            f"which is not a weight type|{UNREAD}|another model|Stable Diffusion|{NO_MODEL}",
        )
        for dtype in _TYPES
    },
    "unknown_type.safetensors": Case(
        content(with_header({"a": entry(0, 4, 1, dtype=TERMINAL)}, bytes(4))), r"\\x1b\]0;owned"
    ),
    "escapes.safetensors": Case(
        changed_model(metadata={f"a{TERMINAL}": TERMINAL}),
        "not an image tower for",
        ("inspect", "convert", "edit", "batch", "from_checkpoint", "train"),
    ),
    "escaped_tensor.safetensors": Case(
        content(with_header({TERMINAL: entry(0, 4, 1)}, bytes(4))), f"{NO_MODEL}|\\\\x1b"
    ),
    "index.safetensors": Case(
        content(
            with_header(
                {
                    _FIRST: entry(0, 36, 1, 9, 1, 1),
                    f"{_NAME}input_blocks.1.0.in_layers.2.weight": entry(36, 40, 1, 1, 1, 1),
                    f"{_NAME}input_blocks.{'9' * 5_000}.0.in_layers.2.weight": entry(
                        40, 44, 1, 1, 1, 1
                    ),
                },
                bytes(44),
            )
        ),
        f"{NO_MODEL}|digits",
    ),
    "empty_layers.safetensors": Case(
        built(
            lambda: with_header(
                {
                    "__metadata__": {METADATA_KEY: _large_config(num_layers=60_000)},
                    **{f"{i}": entry(0, 0, 0) for i in range(45_000)},
                }
            )
        ),
        "num_layers is 60000",
    ).briefly(),
    "empty_tensors.safetensors": Case(
        built(
            lambda: with_header(
                {
                    "__metadata__": {
                        METADATA_KEY: _large_config(num_layers=128, mapper_layers=128)
                    },
                    **{f"{i}": entry(0, 0, 0) for i in range(45_000)},
                }
            )
        ),
        "asks for 272 layers and it has 0 tensors",
    ).briefly(),
    "nan.safetensors": Case(
        _number_in("proj_out.weight", 3, b"\x00\x00\xc0\x7f"),
        "proj_out.weight holds NaN",
        ("inspect",),
    ),
    "infinite.safetensors": Case(
        _number_in("proj_out.weight", 3, b"\x00\x00\x80\x7f"),
        "proj_out.weight holds NaN",
        ("inspect",),
    ),
}
