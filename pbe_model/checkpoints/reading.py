"""Checkpoints as tensors under the official names, whatever wrote them.

Files are told apart by their content (`weights_file`), wrappers around names and dictionaries are
left out (`wrappers`), 8-bit floats become numbers (`eight_bits`), and names of diffusers' folders
become official ones (`diffusers_layout`).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..config import PBEConfig, UNetConfig
from ..model import PaintByExample
from ..untrusted import shown
from .diffusers_folder import read_folder
from .diffusers_layout import diffusers_config, from_diffusers
from .eight_bits import widen
from .infer_config import METADATA_KEY, check_layers, is_stable_diffusion
from .official_names import (
    FIRST_CONVOLUTION,
    PARTS,
    TEXT_ENCODER,
    UNET,
    average_of,
    canonical,
    is_derived,
)
from .safetensors_io import check_types, types_of
from .weights_file import read_weights
from .wrappers import OFFICIAL, Nested, find_weights, unwrap

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A file's tensors under the official names, and its metadata."""

    path: Path
    tensors: dict[str, Tensor]
    """Mapped from the file where possible."""
    renamed: dict[str, str]
    """Official names by the names in the file, where they differ."""
    dropped: list[str]
    """Names in the file that a model does not need."""
    foreign: list[str]
    """Classes and functions that the file's pickle names; none of them was called."""
    metadata: dict[str, str]
    format: str
    dtypes: list[str]
    """The types that the file stores."""
    notes: list[str]
    """What else was done to make weights of the file's content, as sentences."""


def read(path: str | Path, *, ema: bool = False) -> Checkpoint:
    """Read a file of weights or a folder of diffusers, complete or not.

    Args:
        path: File or folder.
        ema: Take the denoiser's moving average, which trainers of latent diffusion keep
            (`model_ema.`), or the average that the file has beside the last weights.

    Raises:
        ValueError: No such file, damaged, no tensors in it, or no moving average.
    """
    path = Path(path)
    if os.path.isdir(path):
        file = _read_diffusers(path)
        if ema:  # which no such folder has
            _moving_average(path, file.tensors, file.tensors)
    elif not os.path.isfile(path):
        raise ValueError(f"no checkpoint at {shown(path)}; check the path")
    else:
        file = _read_file(path, ema)
    if not file.tensors:
        raise ValueError(f"{path} holds no weights; give a Paint by Example checkpoint")
    if file.notes:
        _LOG.info("%s: %s", shown(path), "; ".join(file.notes))
    return file


def _read_file(path: Path, ema: bool) -> Checkpoint:
    foreign: set[str] = set()
    held, metadata, kind = read_weights(path, foreign)
    nested = Nested(held, [])
    if kind == "torch":
        nested = find_weights(held, OFFICIAL, path, ema=ema)
        stated = held.get(METADATA_KEY)
        metadata = {METADATA_KEY: stated} if isinstance(stated, str) else {}
    widened = widen(nested.tensors, path)
    bare = unwrap(widened.tensors, OFFICIAL, path, ema=ema)
    tensors, renamed, dropped = {}, {}, [*widened.dropped, *bare.dropped]
    for name, tensor in bare.tensors.items():
        if is_derived(name):
            dropped.append(bare.given[name])
            continue
        official = canonical(name)
        if official in tensors:
            raise ValueError(
                f"{path} holds {shown(official)} twice, also as {shown(bare.given[name])}; keep "
                "one of them"
            )
        tensors[official] = tensor
        if official != bare.given[name]:
            renamed[bare.given[name]] = official
    if ema and not (nested.averaged or bare.averaged):
        tensors |= _moving_average(path, tensors, bare.tensors)
    return Checkpoint(
        path,
        tensors,
        renamed,
        dropped,
        sorted(foreign),
        metadata,
        "official ckpt" if kind == "torch" else kind,
        types_of(nested.tensors[bare.given[name]] for name in bare.tensors if not is_derived(name)),
        [*nested.notes, *widened.notes, *bare.notes],
    )


def _read_diffusers(path: Path) -> Checkpoint:
    """A folder's tensors under official names; its configuration becomes our metadata."""
    folder = read_folder(path)
    try:
        config = diffusers_config(folder.configs)
        check_layers(config, folder.tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # Before tensors are put together, which would hide their types.
    check_types([n for n in folder.tensors if not is_derived(n)], folder.tensors, path)
    named, renamed = from_diffusers(folder.tensors, expected_tensors(config), config)
    return Checkpoint(
        path,
        {name: tensor for name, tensor in named.items() if not is_derived(name)},
        {folder.given[name]: official for name, official in renamed.items()},
        [*folder.dropped, *(name for name in named if is_derived(name))],
        [],
        {METADATA_KEY: json.dumps(config.to_dict())},
        "diffusers folder",
        folder.dtypes,
        folder.notes,
    )


def _moving_average(
    path: Path, tensors: Mapping[str, Tensor], held: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The denoiser's moving average, which a file holds too, under the denoiser's names."""
    found = {}
    for name in tensors:
        if name.startswith(UNET):
            average = average_of(name)
            if average not in held:
                raise ValueError(
                    f"{path} has no moving average of {shown(name)} ({shown(average)}); use its "
                    "last weights"
                )
            found[name] = held[average]
    return found


def starting_point(file: Checkpoint) -> Checkpoint:
    """What training takes from an SD 1.4 or 1.5 checkpoint; other checkpoints as they are.

    The denoiser's first convolution gets five input channels of zeros, for the masked photo and
    the mask, after those of the noisy latent (arXiv 2211.13227, section 3.2). The text encoder is
    dropped, and there is no image encoder in such a file.
    """
    if not is_stable_diffusion(file.tensors):
        return file
    text = [name for name in file.tensors if name.startswith(TEXT_ENCODER)]
    tensors = {name: tensor for name, tensor in file.tensors.items() if name not in set(text)}
    first = tensors[FIRST_CONVOLUTION]
    more = UNetConfig.in_channels - first.shape[1]
    tensors[FIRST_CONVOLUTION] = torch.cat(
        [first, first.new_zeros(first.shape[0], more, *first.shape[2:])], dim=1
    )
    return replace(
        file,
        tensors=tensors,
        dropped=file.dropped + text,
        format=f"{file.format} of Stable Diffusion",
    )


def state_dict(model: PaintByExample, parts: Iterable[str] = tuple(PARTS)) -> dict[str, Tensor]:
    """The weights of the model, or of some of its parts, under the official names."""
    return {
        canonical(PARTS[part] + name): tensor
        for part in parts
        for name, tensor in getattr(model, part).state_dict().items()
    }


@lru_cache(maxsize=1)
def expected_tensors(config: PBEConfig) -> dict[str, Tensor]:
    """What a complete checkpoint holds: official names, and shapes without memory."""
    with torch.device("meta"):
        return state_dict(PaintByExample(config))
