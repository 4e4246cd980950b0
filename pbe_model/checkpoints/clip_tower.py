"""CLIP's published image tower as the start of a training (`openai/clip-vit-large-patch14`).

The rest of the exemplar's encoder has no published start: mapper, LayerNorm and projection begin
as torch makes such layers, the learnable vector as standard normal numbers, as in the official
code. So loading a tower is all there is to do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..config import ExemplarConfig
from ..model import PaintByExample
from ..untrusted import shown
from .diffusers_folder import read_config, read_part
from .eight_bits import widen
from .official_names import TOWER
from .reading import state_dict
from .safetensors_io import cast, check_types
from .weights_file import read_weights
from .wrappers import TOWER as LAYOUT
from .wrappers import find_weights, unwrap

PUBLISHED = "openai/clip-vit-large-patch14"

_PREFIX = "vision_model."  # transformers 5 leaves it out where there is no text tower
# Text tower, projections into the joint space, temperature; and a buffer that counts.
_IGNORED = re.compile(
    r"text_model\..*|(text|visual)_projection\.weight|logit_scale|.*embeddings\.position_ids"
)


def load_tower(model: PaintByExample, path: str | Path) -> list[str]:
    """Copy CLIP's image tower into the model.

    Args:
        model: Keeps its other weights.
        path: A transformers folder or a file (`.safetensors` or a pickle, whose code is not run)
            of a `CLIPModel`, `CLIPVisionModel` or `CLIPVisionModelWithProjection`.

    Returns:
        Names in the file that do not belong to the image tower, and were left out.

    Raises:
        ValueError: No such file, damaged, not CLIP's image tower, or of another architecture.
    """
    path = Path(path)
    if os.path.isdir(path):
        file = path / "config.json"
        if os.path.isfile(file):
            _check_config(path, read_config(file), model.config.exemplar)
        tensors, _ = read_part(path, path, LAYOUT)
    elif not os.path.isfile(path):
        raise ValueError(f"no image tower at {path}; give the folder or file of {PUBLISHED}")
    else:
        held, _, kind = read_weights(path)
        tensors = find_weights(held, LAYOUT, path).tensors if kind == "torch" else held
    bare = unwrap(widen(tensors, path).tensors, LAYOUT, path)
    found, ignored = {}, [*bare.dropped]
    for name, tensor in bare.tensors.items():
        if _IGNORED.fullmatch(name):
            ignored.append(name)
        else:
            found[TOWER + name.removeprefix(_PREFIX)] = tensor
    expected = {
        name: tensor
        for name, tensor in state_dict(model, ["encoder"]).items()
        if name.startswith(TOWER)
    }
    check_types(expected, found, path)
    bad = [n for n, t in expected.items() if n not in found or found[n].shape != t.shape]
    bad += [name for name in found if name not in expected]
    if bad:
        sizes = model.config.exemplar
        names = ", ".join(shown(name.removeprefix(TOWER)) for name in bad[:5])
        raise ValueError(
            f"{path} is not an image tower for this model: missing, unexpected or of another shape "
            f"are {names}{' ...' if len(bad) > 5 else ''} ({len(bad)}); give CLIP's of width "
            f"{sizes.hidden_size} with {sizes.num_layers} layers and patches of "
            f"{sizes.patch_size} pixels (at official size {PUBLISHED})"
        )
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(cast(f"{path}: {name.removeprefix(TOWER)}", found[name]))
    return ignored


def _check_config(path: Path, values: Mapping[str, Any], sizes: ExemplarConfig) -> None:
    """Check what shapes do not tell: with another activation a tower loads, and sees nothing."""
    tower = values.get("vision_config", values)
    if not isinstance(tower, Mapping):
        raise ValueError(
            f"{path}: vision_config in its config.json is not a JSON object; give {PUBLISHED} or a "
            "fine-tune of it"
        )
    expected = {
        "hidden_act": "quick_gelu",
        "num_attention_heads": sizes.num_heads,
        "layer_norm_eps": 1e-5,
    }
    for name, value in expected.items():
        if tower.get(name, value) != value:
            raise ValueError(
                f"{path} has {name} {shown(repr(tower[name]))} and this model's image tower "
                f"{value!r}; give {PUBLISHED} or a fine-tune of it"
            )
