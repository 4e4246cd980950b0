"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) as this package writes them.

An adapter of rank r adds `alpha / r * up @ down` to a layer's weight. The denoiser's layers are
named as kohya's trainers of Stable Diffusion name them: `lora_unet_`, diffusers' module with
underscores, then `.lora_down.weight`, `.lora_up.weight` and `.alpha`. So ComfyUI's LoRA loaders
take what is written here. Layers of the exemplar's mapper have no such names; they are called
`lora_encoder_` and the official name, which only this package reads. Reading, other people's files
too, is in `adapter_apply`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic import replacing
from ..config import PBEConfig
from ..model import PaintByExample
from .adapter_apply import Applied, apply_lora, changeable
from .adapter_math import changed
from .adapter_names import names_in_file
from .infer_config import METADATA_KEY
from .safetensors_io import cast, write_safetensors

__all__ = ["ALPHA", "DOWN", "UP", "Applied", "adaptable", "apply_lora", "merge", "names_in_file",
           "parse_lora", "save_lora"]  # fmt: skip

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
"""Suffixes of a layer's tensors in a file."""


def adaptable(model: PaintByExample) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that an adapter can change: those of the denoiser and of the exemplar's mapper.

    Returns:
        Layers by their names in the model, such as `unet.middle_block.1.proj_in`.
    """
    return {
        path: layer
        for path, layer in changeable(model).items()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }


@torch.no_grad()
def merge(name: str, weight: Tensor, up: Tensor, down: Tensor, scale: float) -> None:
    """Add `scale * up @ down` to a weight, in place.

    Args:
        name: Name for errors.
        weight: `(out, in)`, or of a convolution `(out, in, h, w)`.
        up: `(out, r)` or `(out, r, 1, 1)`.
        down: `(r, in)` or `(r, in, h, w)`.
        scale: Alpha over rank, times the strength.

    Raises:
        ValueError: The sum is not finite in the weight's type.
    """
    new = changed(weight, {"up": up, "down": down}, scale, 1.0, weight.device)
    weight.copy_(cast(name, new, device=weight.device, dtype=weight.dtype))


def save_lora(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: PBEConfig,
    *,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter as safetensors; appears whole or not at all.

    Args:
        path: Ends in `.safetensors`.
        tensors: Under the names that `names_in_file` gives, with their suffixes.
        config: The model's; `apply_lora` refuses to merge into another architecture.
        dtype: Type of the weights in the file.
        metadata: Further entries; values that are not strings are stored as JSON.

    Raises:
        ValueError: Values are not finite or beyond the type's range, or `path` cannot be written.
    """
    entries = {
        "format": "pt",
        METADATA_KEY: json.dumps(config.to_dict()),
        **{k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()},
    }
    with replacing(path) as part:
        write_safetensors(part, tensors, entries, dtypes=dict.fromkeys(tensors, dtype))


def parse_lora(text: str) -> tuple[str, float]:
    """Path and strength from `FILE` or `FILE:STRENGTH`, as commands take it.

    Raises:
        ValueError: The strength is not finite.
    """
    file, colon, last = text.rpartition(":")
    try:
        strength = float(last) if colon else None
    except ValueError:  # the colon belongs to the file's name
        strength = None
    if strength is None:
        return text, 1.0
    if not math.isfinite(strength):
        raise ValueError(f"{text}: the strength is {last}; give a number such as {file}:0.8")
    return file, strength
