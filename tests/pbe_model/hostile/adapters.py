"""Adapters (LoRA) that would change a model into none."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

from pbe_model.checkpoints.infer_config import METADATA_KEY
from pbe_model.checkpoints.lora import ALPHA, DOWN, UP, adaptable, names_in_file

from ..small import SMALL, small_model
from .archives import FILES as ARCHIVES
from .case import HUGE, TERMINAL, Case, Table, built, content, link
from .headers import entry, with_header
from .strangers import HTML, LFS

_FIT = "does not fit the model"
_NONE = "is not an adapter for this model"
_NUMBERS = "holds NaN or infinite values"
_LAYER = next(
    name for name in names_in_file(adaptable(small_model()), SMALL).values() if "to_q" in name
)
_SIDE = 32
"""The layer has as many rows as columns."""
_BITS = {"F4": 4, "BOOL": 8, "C64": 64}


def _adapter(
    down: tuple[int, ...] | None = (2, _SIDE),
    up: tuple[int, ...] | None = (_SIDE, 2),
    alpha: tuple[int, ...] | None = None,
    *,
    layer: str = _LAYER,
    number: float = 0.5,
    of_alpha: bytes = struct.pack("<f", 1),
    dtype: str = "F32",
    alpha_dtype: str = "F32",
    config: str | None = None,
) -> bytes:
    """An adapter of one layer; what is `None` is left out."""
    header: dict[str, Any] = {} if config is None else {"__metadata__": {METADATA_KEY: config}}
    data = b""
    for suffix, shape in ((DOWN, down), (UP, up), (ALPHA, alpha)):
        if shape is None:
            continue
        own = alpha_dtype if suffix == ALPHA else dtype
        width = _BITS.get(own) or int(own.lstrip("UIBF")[:2].rstrip("_"))
        size = math.prod(shape) * width // 8
        header[layer + suffix] = entry(len(data), len(data) + size, *shape, dtype=own)
        value = of_alpha if suffix == ALPHA else struct.pack("<f", number)
        data += (value * (size // len(value) + 1))[:size]
    return with_header(header, data)


def _case(says: str, *args: Any, **options: Any) -> Case:
    return Case(built(lambda: _adapter(*args, **options)), says)


def _large(path: Path) -> None:
    """Of rank 2,000,000; takes no room on the disk."""
    rank = 2_000_000
    half = 4 * rank * _SIDE
    header = {
        _LAYER + DOWN: entry(0, half, rank, _SIDE),
        _LAYER + UP: entry(half, 2 * half, _SIDE, rank),
    }
    path.write_bytes(with_header(header))
    os.truncate(path, path.stat().st_size + 2 * half)


FILES: Table = {
    "page.safetensors": Case(content(HTML), "it is an HTML page"),
    "pointer.safetensors": Case(content(LFS), "it is a Git LFS pointer"),
    "pipe.safetensors": Case(os.mkfifo, "no adapter at"),
    "device.safetensors": Case(link("/dev/zero"), "no adapter at"),
    "folder.safetensors": Case(Path.mkdir, "no adapter at"),
    "pickle.ckpt": Case(ARCHIVES["two_faced_script.ckpt"].make, "cannot be read as a torch"),
    "nothing.safetensors": Case(content(with_header("{}")), _NONE),
    "text_encoder.safetensors": _case("a text encoder alone", layer="lora_te_text_model"),
    "other_names.safetensors": _case(_NONE, layer="lora_unet_x"),
    "other_family.safetensors": _case("is an adapter for FLUX", layer="lora_unet_double_blocks_0"),
    "escapes.safetensors": _case(r"its 2 tensors is for \(\\x1b\]0;owned\\x07", layer=TERMINAL),
    "many_names.safetensors": Case(
        built(lambda: with_header({TERMINAL + f"{i}": entry(0, 0, 0) for i in range(40_000)})),
        _NONE,
    ),
    # ---- halves and shapes
    "down_alone.safetensors": _case(_FIT, up=None),
    "up_alone.safetensors": _case(_FIT, down=None),
    "alpha_alone.safetensors": _case(_FIT, None, None, (1,)),
    "rank_0.safetensors": _case(_FIT, (0, _SIDE), (_SIDE, 0)),
    "rows_0.safetensors": _case(_FIT, (2, _SIDE), (0, 2)),
    "columns_0.safetensors": _case(_FIT, (2, 0), (_SIDE, 2)),
    "scalars.safetensors": _case(_FIT, (), ()),
    "flat.safetensors": _case(_FIT, (2 * _SIDE,), (2 * _SIDE,)),
    "ranks_differ.safetensors": _case(_FIT, (3, _SIDE), (_SIDE, 2)),
    "columns_differ.safetensors": _case(_FIT, (2, _SIDE + 1), (_SIDE, 2)),
    "rows_differ.safetensors": _case(_FIT, (2, _SIDE), (_SIDE - 1, 2)),
    "alphas.safetensors": _case(_FIT, alpha=(2,)),
    "no_alpha.safetensors": _case(_FIT, alpha=(0,)),
    "large.safetensors": Case(_large, f"rank|{_FIT}"),
    # ---- numbers
    "nan.safetensors": _case(_NUMBERS, number=math.nan),
    "infinite.safetensors": _case(_NUMBERS, number=math.inf),
    "beyond.safetensors": _case(_NUMBERS, number=3e38),
    "alpha_nan.safetensors": _case(_NUMBERS, alpha=(1,), of_alpha=struct.pack("<f", math.nan)),
    "alpha_infinite.safetensors": _case(_NUMBERS, alpha=(1,), of_alpha=struct.pack("<f", math.inf)),
    "alpha_beyond.safetensors": _case(
        _NUMBERS, alpha=(), of_alpha=struct.pack("<f", 3e38), number=1e10
    ),
    **{
        f"{dtype}.safetensors": _case("which is not a weight type here", dtype=dtype)
        for dtype in ("I8", "I32", "I64", "U8", "U16", "BOOL", "F8_E4M3", "C64")
    },
    **{
        f"alpha_{dtype}.safetensors": _case("alpha", alpha=(shape,), alpha_dtype=dtype)
        for dtype, shape in (("F4", 2), ("C64", 1), ("BOOL", 1), ("F8_E8M0", 1))
    },
    # ---- configurations
    **{
        f"config_{name}.safetensors": _case(
            "its configuration is damaged|another model", config=text
        )
        for name, text in {
            "page": "<html>",
            "list": "[]",
            "none": "null",
            "deep": "[" * 100_000,
            "nested": '{"unet":' + "[" * 900 + "]" * 900 + "}",
            "digits": "1" * 5_000,
            "huge": json.dumps({"resolution": 32, "unet": HUGE}),
            "other": json.dumps({**SMALL.to_dict(), "tokens": TERMINAL}),
        }.items()
    },
}
