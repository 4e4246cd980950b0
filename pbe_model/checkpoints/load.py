"""Loading models, strictly: every tensor accounted for, shapes checked, no code run.

Files hold the names of `official_names`. Ours are safetensors with the configuration
in the metadata; without it the sizes are read off the tensors. Weights stay mapped from the file:
each is read once, to be checked and cast, and its pages are released.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import PBEConfig
from ..model import PaintByExample
from ..networks.attention import Attention, sdpa_attention, select_attention
from ..untrusted import shown
from .infer_config import METADATA_KEY, check_told, infer_config, is_stable_diffusion
from .official_names import PARTS, canonical
from .reading import Checkpoint, expected_tensors, read, starting_point, state_dict
from .safetensors_io import Deferred, MappedPages, cast, check_types

START = ("unet", "vae")
"""The parts that a Stable Diffusion checkpoint has too: where a training run starts."""

BUNDLED = Path(__file__).parents[1] / "assets" / "bundled.safetensors"

_OURS = ("format", METADATA_KEY)  # metadata that `save_model` writes itself


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
    misshapen: list[str]
    """Of another shape than the model's."""
    unexpected: list[str]
    dropped: list[str]
    foreign: list[str]
    notes: list[str]
    """What else was done to make a model of the file."""
    metadata: dict[str, str]


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
            ("of another shape", _misshapen(expected, tensors)),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{source} does not fit the model: {'; '.join(problems)}; {remedy}")


def _misshapen(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor | Deferred]
) -> list[str]:
    return [n for n in expected if n in tensors and tensors[n].shape != expected[n].shape]


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
    expected = expected_tensors(config)
    check_types(expected, file.tensors, file.path)
    return Report(
        path=file.path,
        format=file.format,
        config=config,
        size=_bytes(file.path),
        parameters=sum(t.numel() for t in file.tensors.values()),
        dtypes=file.dtypes,
        kept=[n for n in expected if n in file.tensors],
        renamed=file.renamed,
        missing=[n for n in expected if n not in file.tensors],
        misshapen=_misshapen(expected, file.tensors),
        unexpected=[n for n in file.tensors if n not in expected],
        dropped=file.dropped,
        foreign=file.foreign,
        notes=file.notes,
        metadata={k: v for k, v in file.metadata.items() if k not in _OURS},
    )


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
