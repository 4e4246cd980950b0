"""Weights that are stored as 8-bit floats, with scales or without, as the numbers they stand for.

Without scales they are a rounded model, and float16 holds each of their values exactly. With scales
a layer's weight is the product of the two, in float32. ComfyUI and vLLM's compressed-tensors name a
scale `scale_weight` or `weight_scale`; those of a layer's inputs are for computing in 8 bits, which
nothing here does. Other quantised weights are integers, and `load.check_types` refuses them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..untrusted import shown
from .safetensors_io import MappedPages, cast

FLOATS = (
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
)

_SCALES = ("scale_weight", "weight_scale")
_OF_BLOCKS = ("weight_scale_inv", "weight_scale_2")  # of squares of a weight; NVFP4's
_LEFT_OUT = ("scale_input", "input_scale", "comfy_quant")
_MARKER = "scaled_fp8"  # an empty tensor in ComfyUI's files that have scales


class Widened(NamedTuple):
    """Tensors of the types that weights have."""

    tensors: dict[str, Tensor]
    dropped: list[str]
    """Names of scales, which were applied, or are for computing in 8 bits."""
    notes: list[str]
    """What was done, for a report."""


def widen(tensors: Mapping[str, Tensor], source: Path) -> Widened:
    """Replace 8-bit floats by what they stand for.

    Args:
        tensors: As the file names them.
        source: The file, or the folder that it is in.

    Returns:
        Without 8-bit floats everything as it was.

    Raises:
        ValueError: Scales of blocks, or that do not fit their weight.
    """
    small = {name for name, tensor in tensors.items() if tensor.dtype in FLOATS and tensor.numel()}
    if not small:
        return Widened(dict(tensors), [], [])
    pages = MappedPages(tensors.values(), source)
    widened: dict[str, Tensor] = {}
    gone: list[str] = []
    kinds: Counter[tuple[torch.dtype, bool]] = Counter()
    for name, tensor in tensors.items():
        module, _, last = name.rpartition(".")
        if last == _MARKER or (
            last in (*_SCALES, *_LEFT_OUT, *_OF_BLOCKS) and f"{module}.weight" in small
        ):
            gone.append(name)
            continue
        if name not in small:
            widened[name] = tensor
            continue
        scale = _scale_of(module, tensors, source) if last == "weight" else None
        if scale is None:
            widened[name] = tensor.to(torch.float16)
        else:
            widened[name] = _scaled(f"{source}: {shown(name)}", tensor, scale)
        kinds[tensor.dtype, scale is not None] += 1
        pages.read(tensor.nbytes)
    notes = [
        f"{count:,} weights were {str(dtype).removeprefix('torch.')}"
        + (" with scales, and became float32" if scaled else ", and became float16")
        for (dtype, scaled), count in kinds.items()
    ]
    return Widened(widened, gone, notes)


def _scale_of(module: str, tensors: Mapping[str, Tensor], source: Path) -> Tensor | None:
    """The scale of a layer's weight."""
    for last in _OF_BLOCKS:
        if (name := f"{module}.{last}") in tensors:
            raise ValueError(
                f"{source} holds {shown(name)}, which scales blocks of a weight, and that is not "
                "supported; give a checkpoint in fp32, bf16 or fp16"
            )
    for last in _SCALES:
        if (scale := tensors.get(f"{module}.{last}")) is not None:
            return scale
    return None


def _scaled(name: str, weight: Tensor, scale: Tensor) -> Tensor:
    """A weight times its scale: one number, or one for each row."""
    rows = weight.shape[0] if weight.ndim else 1
    if not scale.is_floating_point() or scale.numel() not in (1, rows):
        raise ValueError(
            f"{name} has a scale of type {str(scale.dtype).removeprefix('torch.')} and shape "
            f"{tuple(scale.shape)}, and not one number or one for each of {rows:,} rows; give a "
            "checkpoint in fp32, bf16 or fp16"
        )
    factor = cast(f"{name}'s scale", scale, dtype=torch.float32).reshape(-1)
    if factor.numel() > 1:
        factor = factor.reshape(rows, *(1,) * (weight.ndim - 1))
    return weight.to(torch.float32).mul_(factor)
