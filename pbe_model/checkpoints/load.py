"""Loading models, strictly: every tensor accounted for, shapes checked, no code run.

Files hold the names of `official_names`. Ours are safetensors with the configuration
in the metadata; without it the sizes are read off the tensors. Weights stay mapped from the file:
each is read once, to be checked and cast, and its pages are released.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..config import PBEConfig, UNetConfig
from ..model import PaintByExample
from ..networks.attention import Attention, sdpa_attention, select_attention
from ..untrusted import shown
from .diffusers_folder import read_folder
from .diffusers_layout import diffusers_config, from_diffusers
from .infer_config import (
    METADATA_KEY,
    check_layers,
    check_told,
    infer_config,
    is_stable_diffusion,
)
from .official_names import (
    FIRST_CONVOLUTION,
    PARTS,
    TEXT_ENCODER,
    UNET,
    average_of,
    canonical,
    is_derived,
)
from .safetensors_io import WEIGHT_TYPES, Deferred, MappedPages, cast, read_safetensors
from .torch_file import load_tensors

START = ("unet", "vae")
"""The parts that a Stable Diffusion checkpoint has too: where a training run starts."""

BUNDLED = Path(__file__).parents[1] / "assets" / "tiny.safetensors"

_OURS = ("format", METADATA_KEY)  # metadata that `save_model` writes itself


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


@dataclass(frozen=True)
class Report:
    """What `inspect` and `convert` find in a checkpoint."""

    path: Path
    format: str
    config: PBEConfig
    size: int
    """Total bytes on disk."""
    parameters: int
    dtypes: list[str]
    kept: list[str]
    """Official names of the tensors that a model takes from the file."""
    renamed: dict[str, str]
    missing: list[str]
    unexpected: list[str]
    dropped: list[str]
    foreign: list[str]
    metadata: dict[str, str]


def read(path: str | Path, *, ema: bool = False) -> Checkpoint:
    """Read a `.safetensors`, a pickled checkpoint or a folder of diffusers, complete or not.

    Args:
        path: File or folder.
        ema: Take the denoiser's moving average, which trainers of latent diffusion keep
            (`model_ema.`), instead of its last weights.

    Raises:
        ValueError: No such file, damaged, no tensors in it, or no moving average.
    """
    path = Path(path)
    foreign: set[str] = set()
    if os.path.isdir(path):
        loaded, renamed, metadata, kind = _read_diffusers(path)
    elif not os.path.isfile(path):
        raise ValueError(f"no checkpoint at {shown(path)}; check the path")
    elif path.suffix == ".safetensors":
        loaded, metadata = read_safetensors(path)
        renamed, kind = {}, "safetensors"
    else:
        outer = load_tensors(path, foreign)
        nested = outer.get("state_dict", outer)
        if not isinstance(nested, dict):
            raise ValueError(
                f"{path}: its 'state_dict' is not a dictionary, so this is not a model checkpoint; "
                "give a Paint by Example checkpoint"
            )
        loaded = {k: v for k, v in nested.items() if isinstance(k, str) and isinstance(v, Tensor)}
        stated = outer.get(METADATA_KEY)
        metadata = {METADATA_KEY: stated} if isinstance(stated, str) else {}
        renamed, kind = {}, "official ckpt"
    if ema:
        loaded |= _moving_average(path, loaded)
    tensors, dropped = {}, []
    for name, tensor in loaded.items():
        if is_derived(name):
            dropped.append(name)
            continue
        official = canonical(name)
        tensors[official] = tensor
        if official != name:
            renamed[name] = official
    if not tensors:
        raise ValueError(f"{path} holds no weights; give a Paint by Example checkpoint")
    return Checkpoint(path, tensors, renamed, dropped, sorted(foreign), metadata, kind)


def _read_diffusers(
    path: Path,
) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str], str]:
    """A folder's tensors under official names; its configuration becomes our metadata."""
    configs, tensors = read_folder(path)
    try:
        config = diffusers_config(configs)
        check_layers(config, tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    named, renamed = from_diffusers(tensors, _expected(config), config)
    return named, renamed, {METADATA_KEY: json.dumps(config.to_dict())}, "diffusers folder"


def _moving_average(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The denoiser's moving average, under the denoiser's names."""
    found = {}
    for name in tensors:
        if name.startswith(UNET):
            average = average_of(name)
            if average not in tensors:
                raise ValueError(
                    f"{path} has no moving average of {shown(name)} ({shown(average)}); use its "
                    "last weights"
                )
            found[name] = tensors[average]
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
def _expected(config: PBEConfig) -> dict[str, Tensor]:
    """What a complete checkpoint holds: official names, and shapes without memory."""
    with torch.device("meta"):
        return state_dict(PaintByExample(config))


def load_weights(
    model: PaintByExample,
    tensors: Mapping[str, Tensor],
    source: object,
    parts: Iterable[str] = tuple(PARTS),
) -> None:
    """Give the model these weights; they become its parameters, without a copy.

    Args:
        model: May be on torch's meta device.
        tensors: Under official names.
        source: Name for errors.
        parts: Names in `PARTS` of what `tensors` holds.

    Raises:
        ValueError: Names missing or unexpected, or a shape that differs; the first few are listed.
    """
    parts = list(parts)
    check_fit(state_dict(model, parts), tensors, source)
    for part in parts:
        module, prefix = getattr(model, part), PARTS[part]
        weights = {name: tensors[canonical(prefix + name)] for name in module.state_dict()}
        module.load_state_dict(weights, strict=True, assign=True)


def check_types(
    names: Iterable[str],
    tensors: Mapping[str, Tensor | Deferred],
    source: object,
    types: Sequence[torch.dtype] = WEIGHT_TYPES,
) -> None:
    """Check, before weights are read, that they are of a type that weights can have.

    Args:
        names: Which of the tensors are weights.
        tensors: By name; those that are missing are passed over.
        source: Name for errors.
        types: The types allowed.

    Raises:
        ValueError: Integers, booleans, or 8-bit floats, which mean nothing without their scales.
    """
    for name in names:
        if name in tensors and tensors[name].dtype not in types:
            dtype = str(tensors[name].dtype).removeprefix("torch.")
            raise ValueError(
                f"{source} holds {shown(name)} as {dtype}, which is not a weight type here; give a "
                "checkpoint in fp32, bf16 or fp16"
            )


def check_fit(
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor | Deferred],
    source: object,
    remedy: str = (
        "give a complete Paint by Example checkpoint, or in Python its architecture as config="
    ),
) -> None:
    """Check names, shapes and types of weights.

    Args:
        expected: What a model takes, by name.
        tensors: What there is.
        source: Name for errors.
        remedy: What the error advises.

    Raises:
        ValueError: Names missing or unexpected, a shape that differs, or as `check_types`.
    """
    check_types(expected, tensors, source)
    problems = [
        f"{kind} {', '.join(map(shown, names[:5]))}{' ...' if len(names) > 5 else ''} "
        f"({len(names)})"
        for kind, names in (
            ("missing", [n for n in expected if n not in tensors]),
            ("unexpected", [n for n in tensors if n not in expected]),
            (
                "of another shape",
                [n for n in expected if n in tensors and tensors[n].shape != expected[n].shape],
            ),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{source} does not fit the model: {'; '.join(problems)}; {remedy}")


def load_parts(model: PaintByExample, tensors: Mapping[str, Tensor], source: object) -> list[str]:
    """Copy the weights of those parts that a file holds, each of them whole, into the model.

    Args:
        model: Keeps its own weights for the other parts.
        tensors: Under official names.
        source: Name for errors.

    Returns:
        The names of the parts found, of `PARTS`.

    Raises:
        ValueError: A part is incomplete, or there is none.
    """
    found = []
    for part in PARTS:
        expected = state_dict(model, [part])
        if not any(name in tensors for name in expected):
            continue
        check_types(expected, tensors, source)
        bad = [n for n, t in expected.items() if n not in tensors or tensors[n].shape != t.shape]
        if bad:
            raise ValueError(
                f"{source}: the {part} lacks or misshapes {', '.join(bad[:5])} ({len(bad)}); "
                "give a checkpoint of the same architecture"
            )
        for name in expected:
            cast(f"{source}: {name}", tensors[name])  # refuses what is not a number
        with torch.no_grad():
            for name, parameter in expected.items():
                parameter.copy_(tensors[name])
        found.append(part)
    if not found:
        raise ValueError(
            f"{source} holds no part of a Paint by Example model; give a checkpoint of one"
        )
    return found


def load_model(
    path: str | Path | None = None,
    *,
    config: PBEConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    attention: str = "auto",
) -> PaintByExample:
    """Load a model; see `PaintByExample.from_checkpoint`."""
    device = torch.device(device)
    backend = select_attention(attention, device, dtype or torch.float32)
    file = read(BUNDLED if path is None else path)
    if is_stable_diffusion(file.tensors):
        raise ValueError(
            f"{file.path} is a Stable Diffusion checkpoint, which cannot see exemplars; it can be "
            "the start of a training run (init), but to paint give a Paint by Example checkpoint"
        )
    model = lay_out(file, config, attention=backend)
    pages = MappedPages(file.tensors.values(), file.path)
    tensors = {}
    for name, tensor in file.tensors.items():
        tensors[name] = cast(f"{file.path}: {name}", tensor, device=device, dtype=dtype)
        pages.read(tensor.nbytes)
    load_weights(model, tensors, file.path)
    if config is None:
        check_told(model.config, file.metadata, file.path)
    for module in model.modules():
        # transformers keeps the positions 0 .. n as a buffer outside the state dict.
        ids = getattr(module, "position_ids", None)
        if isinstance(ids, Tensor) and ids.is_meta:
            module.position_ids = torch.arange(ids.shape[-1], device=device)[None]
    return model.eval().requires_grad_(False)


def lay_out(
    file: Checkpoint,
    config: PBEConfig | None = None,
    *,
    parts: Iterable[str] = tuple(PARTS),
    attention: Attention = sdpa_attention,
) -> PaintByExample:
    """A model on torch's meta device, once the file's tensors are known to fit it."""
    with torch.device("meta"):
        model = PaintByExample(config or _config_of(file), attention=attention)
    check_fit(state_dict(model, parts), file.tensors, file.path)
    return model


def _config_of(file: Checkpoint) -> PBEConfig:
    try:
        return infer_config(file.tensors, file.metadata)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def inspect(path: str | Path) -> Report:
    """Describe a checkpoint without building the model's weights.

    Raises:
        ValueError: No such file, damaged, or another architecture.
    """
    return report(starting_point(read(path)))


def report(file: Checkpoint) -> Report:
    """What a model takes from a checkpoint, and what is missing or left over; see `inspect`."""
    config = _config_of(file)
    expected = _expected(config)
    check_types(expected, file.tensors, file.path)
    return Report(
        path=file.path,
        format=file.format,
        config=config,
        size=_bytes(file.path),
        parameters=sum(t.numel() for t in file.tensors.values()),
        dtypes=sorted({str(t.dtype).removeprefix("torch.") for t in file.tensors.values()}),
        kept=[n for n in expected if n in file.tensors],
        renamed=file.renamed,
        missing=[n for n in expected if n not in file.tensors],
        unexpected=[n for n in file.tensors if n not in expected],
        dropped=file.dropped,
        foreign=file.foreign,
        metadata={k: v for k, v in file.metadata.items() if k not in _OURS},
    )


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
