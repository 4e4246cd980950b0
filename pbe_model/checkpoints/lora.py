"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) as files, and merging them into a model.

An adapter of rank r adds `alpha / r * up @ down` to a layer's weight. The denoiser's layers are
named as trainers of Stable Diffusion name them: `lora_unet_`, diffusers' module with underscores,
then `.lora_down.weight`, `.lora_up.weight` and `.alpha`. So ComfyUI's LoRA loaders take what is
written here, and what those trainers write for SD 1.x is read, if it is for the denoiser alone.
Layers of the exemplar's mapper have no such names; they are called `lora_encoder_` and the official
name, which only this package reads.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..atomic import replacing
from ..config import PBEConfig
from ..model import PaintByExample
from ..untrusted import parse_json, shown
from .diffusers_layout import module_table, renamed
from .infer_config import METADATA_KEY
from .official_names import MAPPER, UNET
from .safetensors_io import WEIGHT_TYPES, cast, check_types, read_safetensors, write_safetensors

DOWN, UP, ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"
"""Suffixes of a layer's tensors in a file."""

_MAX_RANK = 4096
_ALPHA_TYPES = (*WEIGHT_TYPES, torch.int32, torch.int64)
_MAPPER = f"encoder.{MAPPER}"


def adaptable(model: PaintByExample) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that an adapter can change: those of the denoiser and of the exemplar's mapper.

    Returns:
        Layers by their names in the model, such as `unet.middle_block.1.proj_in`.
    """
    return {
        path: layer
        for path, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and path.startswith(("unet.", _MAPPER))
    }


def names_in_file(paths: Iterable[str], config: PBEConfig) -> dict[str, str]:
    """What layers of `adaptable` are called in a file, by their names in the model."""
    table, names = module_table(config), {}
    for path in paths:
        part, _, rest = path.partition(".")
        if part == "unet":
            (theirs,) = renamed(UNET + rest, table)
            rest = theirs.removeprefix("unet.")
        names[path] = f"lora_{part}_{rest}".replace(".", "_")
    return names


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
    weight.copy_(_merged(name, weight, up, down, scale))


def _merged(name: str, weight: Tensor, up: Tensor, down: Tensor, scale: float) -> Tensor:
    product = up.flatten(1).to(weight.device, torch.float32) @ down.flatten(1).to(
        weight.device, torch.float32
    )
    merged = weight.float() + scale * product.view(weight.shape)
    return cast(name, merged, device=weight.device, dtype=weight.dtype)


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


@torch.no_grad()
def apply_lora(model: PaintByExample, path: str | Path, strength: float = 1.0) -> list[str]:
    """Merge an adapter into the weights of a model in memory.

    Several add up. Merging the same one with the opposite strength takes it back, up to rounding.

    Args:
        model: Changed only if the whole file fits it.
        path: Safetensors, from `save_lora` or a trainer of SD 1.x.
        strength: Factor of what the adapter adds.

    Returns:
        The layers adapted, by their names in the model.

    Raises:
        ValueError: No such file, damaged, for another model, or names or shapes do not fit.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise ValueError(f"no adapter at {shown(path)}; check the path")
    tensors, metadata = read_safetensors(path)
    if METADATA_KEY in metadata:
        _check_model(path, metadata[METADATA_KEY], model.config)
    layers = adaptable(model)
    known = {theirs: name for name, theirs in names_in_file(layers, model.config).items()}
    # The other form in which trainers write them: the official names.
    known |= {name.replace(".", "_").replace("unet_", "lora_unet_", 1): name
              for name in layers if name.startswith("unet.")}  # fmt: skip
    found: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        suffix = next((s for s in (DOWN, UP, ALPHA) if name.endswith(s)), "")
        layer = known.get(name.removesuffix(suffix)) if suffix else None
        if layer is None:
            unknown.append(name)
        else:
            found.setdefault(layer, {})[suffix] = tensor
    if unknown or not found:
        raise ValueError(
            f"{path} is not an adapter for this model: {len(unknown)} of its {len(tensors)} "
            f"tensors are unknown ({', '.join(map(shown, unknown[:5]))}"
            f"{' ...' if len(unknown) > 5 else ''}); give one for the denoiser, without parts for "
            "a text encoder"
        )
    bad = [layer for layer, parts in found.items() if not _fits(layers[layer].weight, parts)]
    if bad:
        raise ValueError(
            f"{path} does not fit the model: {', '.join(bad[:5])} ({len(bad)}) lack a half or "
            "have another shape; give an adapter of the same architecture"
        )
    check_types((n for n in tensors if not n.endswith(ALPHA)), tensors, path)
    check_types((n for n in tensors if n.endswith(ALPHA)), tensors, path, _ALPHA_TYPES)
    changes = []
    for layer, parts in found.items():
        rank = parts[DOWN].shape[0]
        for suffix, tensor in parts.items():
            cast(f"{path}: {layer}{suffix}", tensor)  # refuses what is not a number
        alpha = parts[ALPHA].item() if ALPHA in parts else rank
        changes.append(
            (layer, layers[layer].weight, parts[UP], parts[DOWN], strength * alpha / rank)
        )
    # All of them once without effect: where one fails, none may have been made.
    for change in changes:
        _merged(*change)
    for change in changes:
        merge(*change)
    return list(found)


def _fits(weight: Tensor, parts: Mapping[str, Tensor]) -> bool:
    if UP not in parts or DOWN not in parts:
        return False
    up, down = parts[UP], parts[DOWN]
    return (
        min(up.ndim, down.ndim) >= 2
        and up.shape[0] == weight.shape[0]
        and up[0].numel() == down.shape[0]
        and 0 < down.shape[0] <= _MAX_RANK
        and down[0].numel() == weight[0].numel()
        and (ALPHA not in parts or parts[ALPHA].numel() == 1)
    )


def _check_model(path: Path, stated: str, config: PBEConfig) -> None:
    """Compare the architecture that an adapter of ours names."""
    try:
        values = parse_json(stated)
        differing = [
            name
            for name, value in json.loads(json.dumps(config.to_dict())).items()
            if name not in ("resolution", "defaults") and values.get(name, value) != value
        ]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: its configuration is damaged ({error}); export it again") from (
            error
        )
    if differing:
        raise ValueError(
            f"{path} was trained for another model (its {', '.join(differing)} differ); give the "
            "checkpoint that it was trained on"
        )


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
