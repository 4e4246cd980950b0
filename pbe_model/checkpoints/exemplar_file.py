"""Encoded exemplars as files: what the model knows of a picture, to be used again without it.

A file is safetensors with the tensors `positive` and `negative`, and says in its metadata of which
version of this format it is (`pbe_exemplar`), how many tokens of which width it holds, and which
checkpoint made them, if that is known. Every model that takes tokens of that width accepts the
file, but they mean the same only to the checkpoint that made them, or to one fine-tuned from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import replacing
from ..untrusted import shown
from .safetensors_io import WEIGHT_TYPES, cast, write_safetensors
from .weights_file import read_weights

VERSION = "1"
_VERSION_KEY = "pbe_exemplar"
_MOST = 2**24  # numbers in all tokens; an exemplar has 768, or 257 times that
_TENSORS = ("positive", "negative")


@dataclass(frozen=True)
class EncodedExemplar:
    """Exemplars as the denoiser's cross-attention sees them.

    Attributes:
        positive: `(B, M, D)`, from `ExemplarEncoder.forward`.
        negative: `(B, M, D)` or `(1, M, D)`, from `ExemplarEncoder.unconditional`.
        checkpoint: Name of the checkpoint that encoded them; empty if unknown.
    """

    positive: Tensor
    negative: Tensor
    checkpoint: str = ""


def save_exemplar(path: str | Path, exemplar: EncodedExemplar) -> None:
    """Write an encoded exemplar in float32; the file appears whole or not at all.

    Args:
        path: Ends in `.safetensors`; its folder exists.
        exemplar: Tensors of any floating-point type.

    Raises:
        ValueError: The two tensors do not match, values are not finite, or `path` cannot be
            written.
    """
    tensors = {name: getattr(exemplar, name) for name in _TENSORS}
    if problem := _problem(tensors):
        raise ValueError(f"{problem}; save what one Exemplar Encoder made")
    _, tokens, width = exemplar.positive.shape
    metadata = {
        "format": "pt",
        _VERSION_KEY: VERSION,
        "tokens": str(tokens),
        "context_dim": str(width),
        **({"checkpoint": exemplar.checkpoint} if exemplar.checkpoint else {}),
    }
    with replacing(Path(path)) as part:
        write_safetensors(part, tensors, metadata, dtypes=dict.fromkeys(tensors, torch.float32))


def load_exemplar(path: str | Path) -> EncodedExemplar:
    """Read an encoded exemplar; the file may come from anywhere.

    Returns:
        Tensors in float32, not mapped from the file.

    Raises:
        ValueError: Damaged, of another version, or not an encoded exemplar.
    """
    tensors, metadata, _ = read_weights(Path(path))
    version = metadata.get(_VERSION_KEY)
    if version is None:
        raise ValueError(f"{path} holds no encoded exemplar; give a file that Save Exemplar wrote")
    if version != VERSION:
        raise ValueError(
            f"{path} is an encoded exemplar of version {shown(repr(version), 20)}, but this code "
            f"reads version {VERSION!r}; update it, or encode the picture again"
        )
    if problem := _problem(tensors):
        raise ValueError(f"{path} is damaged ({problem}); encode the picture again")
    try:
        positive, negative = (
            cast(name, tensors[name].clone(), dtype=torch.float32) for name in _TENSORS
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return EncodedExemplar(positive, negative, metadata.get("checkpoint", ""))


def _problem(tensors: dict[str, Tensor]) -> str:
    """What is wrong with a file's tensors; empty if nothing is."""
    if missing := [name for name in _TENSORS if name not in tensors]:
        return f"{' and '.join(missing)} missing"
    for name in _TENSORS:
        tensor = tensors[name]
        if tensor.ndim != 3 or not tensor.numel() or tensor.dtype not in WEIGHT_TYPES:
            kind = str(tensor.dtype).removeprefix("torch.")
            return f"{name} is {kind} of shape {tuple(tensor.shape)}, not tokens (B, M, D)"
        if tensor.numel() > _MOST:
            return f"{name} has {tensor.numel():,} numbers, and {_MOST:,} are the most"
    positive, negative = (tensors[name] for name in _TENSORS)
    if positive.shape[1:] != negative.shape[1:] or len(negative) not in (1, len(positive)):
        shapes = f"{tuple(positive.shape)} and {tuple(negative.shape)}"
        return f"positive and negative are of shapes {shapes}, which do not match"
    return ""
