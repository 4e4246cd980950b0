"""Files of adapters: the tensors, and how strong the program that wrote them meant them to be.

Kohya's and LyCORIS' trainers store alpha beside a layer's tensors. PEFT writes a folder, with alpha
and rank in its `adapter_config.json`; diffusers puts that into the metadata of its file. Without
either, the scale is 1, as every reader of such files takes it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..untrusted import parse_json, read_json, shown
from .adapter_math import Parts, rank_of
from .weights_file import read_weights

PEFT_CONFIG = "adapter_config.json"
_IN_FOLDER = (
    "adapter_model.safetensors",
    "adapter_model.bin",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
)
_DIFFUSERS_KEY = "lora_adapter_metadata"
_MOST = 2**20  # bytes of a configuration; PEFT's have a few thousand
_MOST_PATTERNS = 10_000
_KINDS = ("LORA", "LOHA", "LOKR")
_OTHER_BASE = ("pissa", "olora", "corda", "loftq")
"""Beginnings of `init_lora_weights` that change the weights that an adapter is for."""


@dataclass(frozen=True, kw_only=True)
class Scales:
    """What PEFT's configuration says about the strength of layers."""

    rank: int = 8
    alpha: float = 8
    ranks: dict[str, int] = field(default_factory=dict)
    """By ends of the names of layers."""
    alphas: dict[str, float] = field(default_factory=dict)
    stabilised: bool = False
    """Alpha over the root of the rank (arXiv 2312.03732)."""

    def of(self, name: str, rank: int | None) -> float:
        """The scale of a layer.

        Args:
            name: A tensor's name in the file, which begins with the layer's.
            rank: Its rank, where shapes tell.
        """
        divisor = rank or _matching(self.ranks, name, self.rank)
        if self.stabilised:
            divisor = math.sqrt(divisor)
        return _matching(self.alphas, name, self.alpha) / divisor


def scale_of(parts: Parts, scales: Scales | None, name: str) -> float:
    """The scale of a layer's change: from its own alpha, else from the configuration, else 1.

    Args:
        parts: The layer's tensors, by role.
        scales: Of the file.
        name: The name in the file of one of them.
    """
    rank = rank_of(parts)
    if "alpha" in parts:
        return 1.0 if rank is None else parts["alpha"].item() / rank
    return 1.0 if scales is None else scales.of(name, rank)


@dataclass(frozen=True)
class AdapterFile:
    """What a file of an adapter holds."""

    path: Path
    tensors: dict[str, Tensor]
    """By the names in the file."""
    metadata: dict[str, str]
    scales: Scales | None
    """None where the file itself has to state alpha."""


def read_adapter(path: Path) -> AdapterFile:
    """Read a file, or the folder that PEFT or diffusers made.

    Raises:
        ValueError: No such file, damaged, or of a kind of adapter that is not supported.
    """
    file = path
    if os.path.isdir(path):
        file = next((path / name for name in _IN_FOLDER if os.path.isfile(path / name)), path)
    if not os.path.isfile(file):
        raise ValueError(f"no adapter at {shown(path)}; check the path")
    held, metadata, _ = read_weights(file)
    nested = held.get("state_dict", held)
    tensors = {
        name: tensor
        for name, tensor in (nested if isinstance(nested, dict) else {}).items()
        if isinstance(name, str) and isinstance(tensor, Tensor)
    }
    scales = None
    config = file.parent / PEFT_CONFIG
    if file.name.startswith("adapter_model.") and os.path.isfile(config):
        scales = _scales(read_json(config, _MOST, "export the adapter again"), config)
    elif (stated := metadata.get(_DIFFUSERS_KEY)) is not None:
        scales = _scales(_of_denoiser(stated, file), file)
    return AdapterFile(file, tensors, metadata, scales)


def _of_denoiser(stated: str, file: Path) -> dict[str, Any]:
    """The denoiser's part of the configurations that diffusers writes into one."""
    try:
        if len(stated) > _MOST:
            raise ValueError(f"it has {len(stated):,} characters")
        values = parse_json(stated)
    except ValueError as error:
        raise ValueError(
            f"{file}: its {_DIFFUSERS_KEY} is damaged ({error}); export it again"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: its {_DIFFUSERS_KEY} is no JSON object; export it again")
    return {k.removeprefix("unet."): v for k, v in values.items() if k.startswith("unet.")}


def _scales(values: Mapping[str, Any], source: Path) -> Scales:
    kind = values.get("peft_type", "LORA")
    if kind not in _KINDS:
        raise ValueError(
            f"{source} is of an adapter of type {shown(repr(kind), 40)}, and {', '.join(_KINDS)} "
            "can be read; merge it into its model with PEFT"
        )
    init = values.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_OTHER_BASE):
        raise ValueError(
            f"{source} has init_lora_weights {shown(repr(init), 40)}, which changes the model that "
            "the adapter is for; save it with PEFT's path_initial_model_for_weight_conversion"
        )
    for name in ("fan_in_fan_out", "layer_replication", "use_qalora", "megatron_config"):
        if values.get(name):
            raise ValueError(
                f"{source} has {name} {shown(repr(values[name]), 40)}, which is not supported; "
                "merge it into its model with PEFT"
            )
    alpha = "lora_alpha" if "lora_alpha" in values else "alpha"
    return Scales(
        rank=_number(values, "r", source, int),
        alpha=_number(values, alpha, source, float),
        ranks={name: int(value) for name, value in _pattern(values, "rank_pattern", source)},
        alphas=dict(_pattern(values, "alpha_pattern", source)),
        stabilised=values.get("use_rslora") is True,
    )


def _number(values: Mapping[str, Any], name: str, source: Path, kind: type) -> Any:
    return kind(_checked(name, values.get(name, 8), source))  # PEFT's default for both


def _checked(name: str, value: Any, source: Path) -> float:
    number = type(value) in (int, float)
    if not (number and 0 < value < 2**31):  # which NaN is not either
        raise ValueError(f"{source} has {name} {shown(repr(value), 40)}; export the adapter again")
    return value


def _pattern(values: Mapping[str, Any], name: str, source: Path) -> list[tuple[str, float]]:
    """The entries of a pattern. PEFT takes names as regular expressions, which take arbitrarily
    long; those that people use are ends of names, or whole ones behind `^`."""
    given = values.get(name) or {}
    if not isinstance(given, dict) or len(given) > _MOST_PATTERNS:
        raise ValueError(f"{source} has a damaged {name}; export the adapter again")
    entries = []
    for key, value in given.items():
        word = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", word):
            raise ValueError(
                f"{source} has {shown(repr(key), 80)} in {name}, and only names of layers can be "
                "read; merge the adapter into its model with PEFT"
            )
        entries.append((word, _checked(name, value, source)))
    return entries


def _matching(entries: Mapping[str, Any], name: str, default: Any) -> Any:
    """The first entry whose key is the end of the layer that a tensor's name begins with."""
    layer = re.split(r"\.(?:lora_[AB]|lora_magnitude|hada_|lokr_)", name)[0]
    for key, value in entries.items():
        if layer == key or layer.endswith(f".{key}"):
            return value
    return default
