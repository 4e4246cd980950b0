"""Writing models, whole or not at all, in any of three layouts; and converting between them.

A conversion holds little of a model in memory: weights are mapped from the source and cast one by
one as they are written, and the pages that were read are released.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..atomic import replacing
from ..config import PBEConfig
from ..model import PaintByExample
from ..sampling.schedule import NoiseSchedule
from .diffusers_folder import write_folder
from .diffusers_layout import diffusers_configs, to_diffusers
from .infer_config import METADATA_KEY, check_told, is_stable_diffusion
from .load import (
    START,
    Report,
    check_fit,
    lay_out,
    load_weights,
    report,
)
from .official_names import PARTS, POSITION_IDS, TOWER, canonical
from .reading import read, starting_point, state_dict
from .safetensors_io import Deferred, MappedPages, Releasing, cast, write_safetensors

Layout = Literal["safetensors", "official", "diffusers"]


def save_model(
    path: str | Path,
    model: PaintByExample,
    *,
    dtype: torch.dtype | None = torch.float32,
    metadata: Mapping[str, Any] | None = None,
    parts: Iterable[str] = tuple(PARTS),
    pages: MappedPages | None = None,
) -> None:
    """Write safetensors with the configuration in the metadata; appears whole or not at all.

    Args:
        path: Ends in `.safetensors`.
        model: Any device and type.
        dtype: Type of the weights in the file; `None` keeps theirs.
        metadata: Further entries; values that are not strings are stored as JSON.
        parts: Which parts to write, names in `PARTS`.
        pages: Where the weights are mapped from, if they are unchanged, to release what was read.

    Raises:
        ValueError: Values are not finite or beyond the type's range, or `path` cannot be written.
    """
    weights = state_dict(model, parts)
    _write(Path(path), model.config, weights, dtype=dtype, metadata=metadata, pages=pages)


def save_parts(
    path: str | Path,
    config: PBEConfig,
    parts: Mapping[str, Mapping[str, Tensor | Deferred]],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a whole model whose parts live elsewhere, such as in ComfyUI, as `save_model` does.

    Args:
        path: Ends in `.safetensors`; its folder exists.
        config: Architecture.
        parts: The weights of each part in `PARTS`, under the names of its module. Those that are
            deferred are made one by one.
        dtype: Type of the weights in the file.

    Raises:
        ValueError: A part does not fit the architecture, or as `save_model`.
    """
    with torch.device("meta"):
        model = PaintByExample(config)
    weights = {}
    for part, prefix in PARTS.items():
        named = {canonical(prefix + name): tensor for name, tensor in parts[part].items()}
        remedy = f"take the {part} that was loaded with the others"
        check_fit(state_dict(model, [part]), named, f"the {part}", remedy)
        weights |= named
    _write(Path(path), config, weights, dtype=dtype)


def _write(
    path: Path,
    config: PBEConfig,
    weights: Mapping[str, Tensor | Deferred],
    *,
    dtype: torch.dtype | None,
    metadata: Mapping[str, Any] | None = None,
    pages: MappedPages | None = None,
) -> None:
    """Weights under official names, the configuration, and the schedule that follows from it."""
    entries = {
        "format": "pt",
        METADATA_KEY: json.dumps(config.to_dict()),
        **{k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()},
    }
    dtypes = dict.fromkeys(weights, dtype) if dtype else {}
    tensors = {**weights, **NoiseSchedule.linear(config.schedule).buffers()}
    with replacing(path) as part:
        write_safetensors(part, tensors, entries, dtypes=dtypes, pages=pages)


def save_official(
    path: str | Path,
    model: PaintByExample,
    *,
    dtype: torch.dtype | None = torch.float32,
    pages: MappedPages | None = None,
) -> None:
    """Write the official layout: a torch file whose `state_dict` has the official names.

    Beside it is the configuration, which shapes do not tell in full; other readers ignore it.
    Appears whole or not at all. The published file is float32; `dtype=None` keeps the types.

    Raises:
        ValueError: The model predicts v, or as `save_model`.
    """
    _check_official(model)
    tensors = {}
    for name, tensor in state_dict(model).items():
        tensors[name] = cast(name, tensor, dtype=dtype)
        if pages is not None:
            pages.read(tensor.nbytes)
    tensors.update(model.schedule.buffers())
    positions = tensors[TOWER + "embeddings.position_embedding.weight"].shape[0]
    tensors[POSITION_IDS] = torch.arange(positions)[None]
    with replacing(Path(path)) as part, Releasing(part, pages or MappedPages([], part)) as file:
        stated = json.dumps(model.config.to_dict())
        try:
            torch.save({"state_dict": tensors, METADATA_KEY: stated}, file)
        except RuntimeError as error:
            # After a write that failed torch's writer fails in its own words, as it ends the file.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


def save_diffusers(
    path: str | Path,
    model: PaintByExample,
    *,
    dtype: torch.dtype | None = torch.float32,
    pages: MappedPages | None = None,
) -> None:
    """Write the folder that diffusers' `PaintByExamplePipeline.from_pretrained` loads.

    Appears whole or not at all. `dtype=None` keeps the weights' types.

    Raises:
        ValueError: `path` exists, diffusers cannot represent the architecture, or as `save_model`.
    """
    configs = diffusers_configs(model.config)
    tensors = to_diffusers(state_dict(model), model.config)
    dtypes = dict.fromkeys(tensors, dtype) if dtype else {}
    write_folder(Path(path), configs, tensors, dtypes=dtypes, pages=pages)


def _check_official(model: PaintByExample) -> None:
    if model.config.schedule.prediction != "epsilon":
        raise ValueError(
            "the official layout cannot say that a model predicts v, and its readers would take v "
            "for the noise; keep it as safetensors or diffusers"
        )


def convert(
    source: str | Path,
    out: str | Path,
    *,
    layout: Layout,
    dtype: torch.dtype | None = None,
    ema: bool = False,
) -> Report:
    """Write a checkpoint in another layout, with little of it in memory at a time.

    Args:
        source: Whatever `read` reads; it has to be complete. A Stable Diffusion checkpoint becomes
            the start of a training run: our layout, without an image encoder.
        out: File to write, or folder for diffusers; its parent exists.
        layout: Ours (`"safetensors"`), the published file's (`"official"`) or `"diffusers"`.
        dtype: Type of the weights in it; `None` keeps theirs.
        ema: Take the denoiser's moving average instead of its last weights.

    Returns:
        What became of each tensor in the source.

    Raises:
        ValueError: As `PaintByExample.from_checkpoint`, or a layout that cannot hold the model.
    """
    source, out = Path(source), Path(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{out} is the checkpoint to convert; choose another name")
    file = read(source, ema=ema)
    parts = list(PARTS)
    if is_stable_diffusion(file.tensors):
        if layout != "safetensors":
            raise ValueError(
                f"{source} is a Stable Diffusion checkpoint without an image encoder, so it cannot "
                "become a complete model; use --to safetensors to start a training run from it"
            )
        parts, file = list(START), starting_point(file)
    found, model = report(file), lay_out(file, parts=parts)
    load_weights(model, file.tensors, source, parts)
    if "encoder" in parts:
        check_told(found.config, file.metadata, source)
    if layout == "official":
        _check_official(model)
    pages = MappedPages(file.tensors.values(), source)
    if layout == "diffusers":
        save_diffusers(out, model, dtype=dtype, pages=pages)
    elif layout == "safetensors":
        save_model(out, model, dtype=dtype, metadata=found.metadata, parts=parts, pages=pages)
    elif dtype is None or all(tensor.dtype == dtype for tensor in file.tensors.values()):
        save_official(out, model, dtype=None, pages=pages)
    else:
        # torch.save takes all tensors at once: it gets them mapped from a file, cast.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.part") as scratch:
            between = Path(scratch) / "model.safetensors"
            save_model(between, model, dtype=dtype, pages=pages)
            convert(between, out, layout="official")
    return found
