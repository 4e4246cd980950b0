"""Merging adapters into a model in memory: whatever trainers of Stable Diffusion 1.x write.

Every tensor in a file is accounted for. What changes a layer of this model is merged; what is for a
text encoder, or for layers that this model does not have, is counted; a kind of change that is not
known, or a shape that does not fit, is an error, and so is a file of which nothing is left.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import PBEConfig
from ..model import PaintByExample
from ..untrusted import parse_json, shown
from .adapter_file import read_adapter, scale_of
from .adapter_math import changed, changes_weight, fits, is_whole
from .adapter_names import Sorted, family, is_of_peft, sort_names
from .infer_config import METADATA_KEY
from .official_names import MAPPER
from .safetensors_io import WEIGHT_TYPES, cast, check_types

_LOG = logging.getLogger(__name__)
_ALPHA_TYPES = (*WEIGHT_TYPES, torch.int32, torch.int64)
_MAPPER = f"encoder.{MAPPER}"


@dataclass(frozen=True)
class Applied:
    """What became of an adapter's tensors."""

    path: Path
    layers: list[str]
    """Those that were changed, by their names in the model."""
    of_text_encoder: list[str]
    """Names in the file for an encoder of text, which this model does not have."""
    unknown: list[str]
    """Names in the file for layers that this model does not have."""
    alpha_stated: bool
    """Whether anything tells alpha; otherwise the scale is 1."""

    @property
    def complete(self) -> bool:
        """Whether every tensor was used, at a strength that is known."""
        return not (self.of_text_encoder or self.unknown) and self.alpha_stated

    def __str__(self) -> str:
        """A line for people."""
        said = [f"{len(self.layers):,} layers changed"]
        if self.of_text_encoder:
            said.append(f"{len(self.of_text_encoder):,} tensors of a text encoder left out")
        if self.unknown:
            said.append(
                f"{len(self.unknown):,} tensors for layers that this model does not have left out "
                f"({_some(self.unknown)})"
            )
        if not self.alpha_stated:
            said.append("its alpha is stated nowhere and taken to be the rank")
        return f"{shown(self.path)}: {'; '.join(said)}"


@dataclass(frozen=True)
class _Change:
    """What becomes of a layer."""

    layer: str
    module: nn.Module
    parts: dict[str, Tensor]
    scale: float
    strength: float

    def values(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, parameter, and its new value, one after the other."""
        if changes_weight(self.parts):
            weight = self.module.get_parameter("weight")
            new = changed(weight, self.parts, self.scale, self.strength, weight.device)
            yield f"{self.layer}.weight", weight, new
        for role, scale in (("bias", 1.0), ("up_bias", self.scale)):
            if role in self.parts:
                bias = self.module.get_parameter("bias")
                difference = self.parts[role].to(bias.device, torch.float32)
                yield f"{self.layer}.bias", bias, bias.float() + self.strength * scale * difference


@torch.no_grad()
def apply_lora(model: PaintByExample, path: str | Path, strength: float = 1.0) -> Applied:
    """Merge an adapter into the weights of a model in memory.

    Several add up. Merging the same one with the opposite strength takes it back, up to rounding,
    unless it sets the lengths of rows (DoRA).

    Args:
        model: Changed only if the whole file fits it.
        path: From `save_lora`, or from a trainer of SD 1.x: kohya's, LyCORIS', diffusers' or PEFT's
            file, or the folder of the latter two.
        strength: Factor of the change.

    Raises:
        ValueError: No such file, damaged, for another model, or of a kind or shape that does not
            fit.
    """
    file = read_adapter(Path(path))
    path = file.path
    if METADATA_KEY in file.metadata:
        _check_model(path, file.metadata[METADATA_KEY], model.config)
    layers = changeable(model)
    names = sort_names(file.tensors, layers, model.config)
    _check_names(path, names, list(file.tensors))
    changes = []
    for layer, stored in names.parts.items():
        parts = {role: file.tensors[name] for role, name in stored.items()}
        _check_parts(path, layer, stored, parts, layers[layer])
        scale = scale_of(parts, file.scales, next(iter(stored.values())))
        changes.append(_Change(layer, layers[layer], parts, scale, strength))
    # All of them once without effect: where one fails, none may have been made.
    for change in changes:
        for name, parameter, value in change.values():
            cast(name, value, dtype=parameter.dtype)
    for change in changes:
        for name, parameter, value in change.values():
            parameter.copy_(cast(name, value, dtype=parameter.dtype, device=parameter.device))
    stated = file.scales is not None or not any(
        "alpha" not in stored and any(map(is_of_peft, stored.values()))
        for stored in names.parts.values()
    )
    applied = Applied(
        path, list(names.parts), names.of_text_encoder, names.unknown, alpha_stated=stated
    )
    _LOG.info("%s", applied)
    return applied


def changeable(model: PaintByExample) -> dict[str, nn.Module]:
    """The layers that other people's adapters can change: also normalisations, by differences."""
    return {
        path: layer
        for path, layer in model.named_modules()
        if path.startswith(("unet.", _MAPPER))
        and isinstance(layer, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm))
    }


def _check_names(path: Path, names: Sorted, every: list[str]) -> None:
    """Refuse an adapter for another model, or with parts that would be left out."""
    if other := family(every):
        raise ValueError(
            f"{path} is an adapter for {other}, by names such as "
            f"{shown((names.unknown or every)[0])}, and this model has the architecture of Stable "
            "Diffusion 1.x; give an adapter for that"
        )
    if names.unsupported:
        raise ValueError(
            f"{path} holds {shown(names.unsupported[0])}, a kind of change that is not supported "
            "(LoRA, LoCon, LoHa, LoKr, DoRA and plain differences are); merge it with the program "
            "that made it"
        )
    if names.parts:
        return
    if names.of_text_encoder and not names.unknown:
        raise ValueError(
            f"{path} changes a text encoder alone ({len(every):,} tensors), and this model has "
            "none; give an adapter for the denoiser"
        )
    raise ValueError(
        f"{path} is not an adapter for this model: it has no layer that one of its "
        f"{len(every):,} tensors is for ({_some(names.unknown)}); give one for Stable Diffusion "
        "1.x, or for this checkpoint"
    )


def _check_parts(
    path: Path, layer: str, stored: dict[str, str], parts: dict[str, Tensor], module: nn.Module
) -> None:
    """Refuse parts that make no change together, or not one of this layer."""
    if not is_whole(parts):
        raise ValueError(
            f"{path} does not fit the model: {shown(_some(list(stored.values())))} make no change "
            "of a layer, as a half is missing or there are two kinds; export the adapter again"
        )
    by_name = {stored[role]: tensor for role, tensor in parts.items()}
    alphas = [stored["alpha"]] if "alpha" in stored else []
    check_types([name for name in by_name if name not in alphas], by_name, path)
    check_types(alphas, by_name, path, _ALPHA_TYPES)
    weight, bias = (getattr(module, name) for name in ("weight", "bias"))
    if not fits(parts, weight, bias):
        shapes = ", ".join(f"{shown(n)} {tuple(t.shape)}" for n, t in list(by_name.items())[:3])
        raise ValueError(
            f"{path} does not fit the model: {shapes} cannot change {layer}, whose weight is "
            f"{tuple(weight.shape)}; give an adapter for a model of this architecture"
        )
    for name, tensor in by_name.items():
        cast(f"{path}: {shown(name)}", tensor)  # refuses what is not a number


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (" ..." if len(names) > 3 else "")


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
