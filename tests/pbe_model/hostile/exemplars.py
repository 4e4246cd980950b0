"""Files of an encoded exemplar that hold none."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

from .archives import FILES as ARCHIVES
from .case import TERMINAL, Case, Table, built, content, link
from .headers import entry, with_header
from .strangers import HTML, LFS

_DAMAGED = "is damaged"
_WIDTHS = {"F4": 4, "BOOL": 8, "C64": 64, "F8_E4M3": 8, "F8_E8M0": 8, "I64": 64, "U8": 8, "I32": 32}


def _tokens(
    positive: tuple[int, ...] | None = (1, 1, 4),
    negative: tuple[int, ...] | None = (1, 1, 4),
    *,
    version: str | None = "1",
    dtype: str = "F32",
    number: float = 0.5,
    **metadata: str,
) -> bytes:
    """A file of the two tensors; what is `None` is left out."""
    stated = {**({} if version is None else {"pbe_exemplar": version}), **metadata}
    header: dict[str, Any] = {"__metadata__": stated} if stated else {}
    data = b""
    for name, shape in (("positive", positive), ("negative", negative)):
        if shape is not None:
            size = math.prod(shape) * _WIDTHS.get(dtype, 32) // 8
            header[name] = entry(len(data), len(data) + size, *shape, dtype=dtype)
            data += (struct.pack("<f", number) * (size // 4 + 1))[:size]
    return with_header(header, data)


def _case(says: str, *args: Any, **options: Any) -> Case:
    return Case(built(lambda: _tokens(*args, **options)), says)


def _large(path: Path) -> None:
    """A million tokens, which take no room on the disk."""
    shape, size = (1, 2**20, 512), 2**30
    tensors = {
        "positive": entry(0, size, *shape, dtype="F16"),
        "negative": entry(size, 2 * size, *shape, dtype="F16"),
    }
    path.write_bytes(with_header({"__metadata__": {"pbe_exemplar": "1"}, **tensors}))
    os.truncate(path, path.stat().st_size + 2 * size)


FILES: Table = {
    "page.safetensors": Case(content(HTML), "it is an HTML page"),
    "pointer.safetensors": Case(content(LFS), "it is a Git LFS pointer"),
    "pipe.safetensors": Case(os.mkfifo, "it is not a regular file"),
    "device.safetensors": Case(link("/dev/zero"), "it is not a regular file"),
    "folder.safetensors": Case(Path.mkdir, "it is not a regular file"),
    "pickle.safetensors": Case(ARCHIVES["two_faced_script.ckpt"].make, "cannot be read as a torch"),
    "deep.safetensors": Case(
        built(lambda: with_header('{"a":' + "[" * 400_000)), "nested too deeply"
    ),
    "no_version.safetensors": _case("holds no encoded exemplar", version=None),
    "newer.safetensors": _case(r"of version '\\+x1b\]0;owned", version=TERMINAL + "2" * 100_000),
    "positive_alone.safetensors": _case("negative missing", negative=None),
    "negative_alone.safetensors": _case("positive missing", positive=None),
    "flat.safetensors": _case(_DAMAGED, (4,), (4,)),
    "no_tokens.safetensors": _case(_DAMAGED, (1, 0, 4), (1, 0, 4)),
    "empty_and_large.safetensors": _case(_DAMAGED, (0, 2**40, 2**20), (0, 2**40, 2**20)),
    "widths_differ.safetensors": _case(_DAMAGED, (1, 1, 4), (1, 1, 8)),
    "tokens_differ.safetensors": _case(_DAMAGED, (1, 2, 4), (1, 1, 4)),
    "more_negatives.safetensors": _case(_DAMAGED, (1, 1, 4), (2, 1, 4)),
    "four_sides.safetensors": _case(_DAMAGED, (1, 1, 1, 4), (1, 1, 1, 4)),
    **{
        f"{dtype}.safetensors": _case(_DAMAGED, dtype=dtype)
        for dtype in ("I32", "I64", "U8", "BOOL", "C64", "F4")
    },
    "nan.safetensors": _case("holds NaN or infinite", number=math.nan),
    "infinite.safetensors": _case("holds NaN or infinite", number=-math.inf),
    "large.safetensors": Case(_large, _DAMAGED),
}
