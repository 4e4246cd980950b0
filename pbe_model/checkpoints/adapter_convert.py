"""An adapter in the form that every LoRA loader for Stable Diffusion 1.x reads, ComfyUI's included.

ComfyUI knows kohya's names, alpha beside the halves, and Kronecker products without cores. So names
of PEFT and diffusers become kohya's, the strength that a configuration states becomes alpha, and
the matrices of a Kronecker product are multiplied out, with the strength in them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..atomic import replacing
from ..untrusted import shown
from .adapter_file import Scales, read_adapter, scale_of
from .adapter_math import MAX_RANK, is_whole, rank_of, whole_matrices
from .adapter_names import family, sort_layers
from .infer_config import METADATA_KEY
from .official_names import MAPPER
from .safetensors_io import cast, check_types, write_safetensors

_KOHYA = {
    "up": "lora_up.weight",
    "down": "lora_down.weight",
    "mid": "lora_mid.weight",
    "bias": "diff_b",
}
"""Last words of a name, where they are not the role itself."""

_OF_DENOISER = re.compile(
    r"(?:down_blocks|up_blocks|input_blocks|output_blocks)_\d|mid_block_|middle_block_|conv_in$|"
    r"conv_out$|conv_norm_out$|time_embed|out_\d|encoder_" + MAPPER.replace(".", "_")
)
_LARGEST = 2**26  # numbers in a matrix that is multiplied out; the widest layer of SD 1.x has 2^25


@dataclass(frozen=True)
class Converted:
    """An adapter under kohya's names, and what became of the tensors in its file."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    """Of the file, as far as it concerns the model."""
    layers: int
    of_text_encoder: list[str]
    unknown: list[str]


def convert_adapter(
    source: str | Path, out: str | Path, dtype: torch.dtype | None = None
) -> Converted:
    """Write an adapter under the names of kohya's trainers; appears whole or not at all.

    Args:
        source: What `apply_lora` reads.
        out: Ends in `.safetensors`; its folder exists.
        dtype: Type of the tensors in it; `None` keeps theirs.

    Raises:
        ValueError: As `read_as_kohya`; `out` is the source.
    """
    found, out = read_as_kohya(source), Path(out)
    if out.exists() and out.samefile(found.path):
        raise ValueError(f"{out} is the adapter to convert; choose another name")
    types = dict.fromkeys(found.tensors, dtype) if dtype else {}
    with replacing(out) as part:
        write_safetensors(part, found.tensors, {"format": "pt", **found.metadata}, dtypes=types)
    return found


@torch.no_grad()
def read_as_kohya(source: str | Path) -> Converted:
    """Read an adapter of any kind under the names of kohya's trainers.

    Args:
        source: What `apply_lora` reads.

    Raises:
        ValueError: As `apply_lora`, but for what only a model tells.
    """
    file = read_adapter(Path(source))
    if other := family(file.tensors):
        raise ValueError(f"{file.path} is an adapter for {other}, which this model cannot use")
    found = sort_layers(file.tensors, lambda layer: layer if _OF_DENOISER.match(layer) else None)
    if found.unsupported or not found.parts:
        name = shown(next(iter((*found.unsupported, *file.tensors)), "nothing"))
        raise ValueError(
            f"{file.path} holds {name}, which is no part of an adapter for the denoiser of Stable "
            "Diffusion 1.x that can be read; give a LoRA, LoCon, LoHa, LoKr or DoRA"
        )
    tensors: dict[str, Tensor] = {}
    for layer, stored in found.parts.items():
        parts = {role: file.tensors[name] for role, name in stored.items()}
        by_name = {stored[role]: tensor for role, tensor in parts.items() if role != "alpha"}
        check_types(by_name, by_name, file.path)
        if not is_whole(parts) or not _is_modest(parts):
            raise ValueError(
                f"{file.path}: {shown(next(iter(stored.values())))} and what belongs to it make no "
                "change of a layer; export the adapter again"
            )
        for name, tensor in by_name.items():
            cast(f"{file.path}: {shown(name)}", tensor)
        prefix = f"lora_{layer}" if layer.startswith("encoder_") else f"lora_unet_{layer}"
        for role, tensor in _as_kohya(parts, file.scales, next(iter(stored.values()))).items():
            tensors[f"{prefix}.{_KOHYA.get(role, role)}"] = tensor
    metadata = {k: v for k, v in file.metadata.items() if k == METADATA_KEY}
    return Converted(
        file.path, tensors, metadata, len(found.parts), found.of_text_encoder, found.unknown
    )


def _is_modest(parts: dict[str, Tensor]) -> bool:
    """Whether the parts have the dimensions that multiplying them takes, and not too large ones."""
    matrices = [tensor for role, tensor in parts.items() if role.startswith(("up", "down", "lokr"))]
    rank = rank_of(parts)
    return (
        all(t.ndim >= 1 and 0 < t.numel() <= _LARGEST for t in matrices)
        and (rank is None or 0 < rank <= MAX_RANK)
        and ("alpha" not in parts or parts["alpha"].numel() == 1)
    )


def _as_kohya(parts: dict[str, Tensor], scales: Scales | None, name: str) -> dict[str, Tensor]:
    """The parts of a layer as kohya's and LyCORIS' trainers store them."""
    scale, rank = scale_of(parts, scales, name), rank_of(parts)
    changed = {role: tensor for role, tensor in parts.items() if role != "alpha"}
    if any(role.startswith("lokr_") for role in parts):
        first, second = whole_matrices(parts)
        changed = {role: t for role, t in changed.items() if not role.startswith("lokr_")}
        changed |= {"lokr_w1": first * scale, "lokr_w2": second.contiguous()}
    elif rank is not None:
        changed["alpha"] = torch.tensor(scale * rank)
    if (bias := changed.pop("up_bias", None)) is not None:
        changed["bias"] = bias * scale
    if (vector := changed.pop("magnitude", None)) is not None:
        sides = parts["down"].ndim if "down" in parts else 2
        changed["dora_scale"] = vector.reshape(-1, *(1,) * (sides - 1))
    return changed
