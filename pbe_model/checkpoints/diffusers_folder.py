"""Diffusers folders: `unet/`, `vae/` and `image_encoder/`, each with its config.json.

How their names map to ours is in `diffusers_layout`; here is how they lie on the disk.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..untrusted import read_json, shown
from .diffusers_layout import FOLDERS, SCHEDULER
from .safetensors_io import MAX_HEADER, MappedPages, read_safetensors, write_safetensors
from .torch_file import load_tensors

_MAX_SHARDS = 1000

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""What a part's file may be called, in the order in which they are looked for."""


def read_folder(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Configurations by part, and tensors by part and name, such as `unet.conv_in.weight`.

    The scheduler's configuration, which may be missing, is under `SCHEDULER`.

    Args:
        path: A Paint by Example folder, or a Stable Diffusion one, which has no image encoder.

    Raises:
        ValueError: A part is missing or damaged, or a link leads out of the folder.
    """
    configs, tensors = {}, {}
    stable_diffusion = (path / "text_encoder").is_dir()
    for part in FOLDERS:
        file = path / part / "config.json"
        if part == "image_encoder" and stable_diffusion and not file.parent.exists():
            continue
        if not file.is_file():
            raise ValueError(
                f"the folder {path} has no {part}/config.json; give a Paint by Example folder in "
                "diffusers' layout, or a .safetensors or .ckpt file"
            )
        configs[part] = read_config(_inside(file, path))
        for name, tensor in read_part(path / part, path).items():
            tensors[f"{part}.{name}"] = tensor
    if (scheduler := path / SCHEDULER).is_file():
        configs[SCHEDULER] = read_config(_inside(scheduler, path))
    return configs, tensors


def write_folder(
    path: Path,
    configs: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Tensor],
    *,
    dtypes: Mapping[str, torch.dtype] | None = None,
    pages: MappedPages | None = None,
) -> None:
    """Write a folder; it appears whole or not at all.

    Args:
        path: Does not exist yet; its parent does.
        configs: Content of the JSON files, by their paths in the folder.
        tensors: By part and name, such as `unet.conv_in.weight`.
        dtypes: Types in the files, by the names in `tensors`; others keep theirs.
        pages: Where the tensors are mapped from, to release what was read.

    Raises:
        ValueError: `path` exists or cannot be written, or as `write_safetensors`.
    """
    if path.exists():
        raise ValueError(f"{path} already exists; choose a new folder, or remove it")
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.part") as scratch:
            folder = Path(scratch) / path.name
            for name, values in configs.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            for part, file in FOLDERS.items():
                prefix = f"{part}."
                own = {
                    name.removeprefix(prefix): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(prefix)
                }
                types = {name: (dtypes or {}).get(prefix + name, own[name].dtype) for name in own}
                target = folder / part / file
                write_safetensors(target, own, {"format": "pt"}, dtypes=types, pages=pages)
            os.replace(folder, path)
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; check the permissions and the disk "
            "space"
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file of a folder.

    Raises:
        ValueError: Not readable, too large, not JSON, or not an object.
    """
    return read_json(path, MAX_HEADER, "download the folder again")


def read_part(folder: Path, root: Path) -> dict[str, Tensor]:
    """All tensors of one subfolder: one file, or shards with an index; no pickle if possible."""
    for suffix in (".safetensors", ".bin"):
        for stem in STEMS:
            single, index = folder / (stem + suffix), folder / f"{stem}{suffix}.index.json"
            if single.exists():
                return _read_shard(single, root)
            if index.is_file():
                found = read_config(_inside(index, root)).get("weight_map")
                if not isinstance(found, dict):
                    raise ValueError(f"{index} has no weight_map; download the folder again")
                # File names without folders: an index must not lead out of its own.
                shards = sorted({Path(str(name)).name for name in found.values()})
                if len(shards) > _MAX_SHARDS:
                    raise ValueError(
                        f"{index} names {len(shards):,} files, and {_MAX_SHARDS:,} are the most; "
                        "download the folder again"
                    )
                tensors: dict[str, Tensor] = {}
                for name in shards:
                    tensors |= _read_shard(folder / name, root)
                return tensors
    raise ValueError(f"no weights in {folder}; download the folder again")


def _read_shard(path: Path, root: Path) -> dict[str, Tensor]:
    if not os.path.isfile(path):
        raise ValueError(f"{shown(path)} is missing; download the folder again")
    if path.suffix == ".safetensors":
        return read_safetensors(_inside(path, root))[0]
    return {k: v for k, v in load_tensors(_inside(path, root)).items() if isinstance(v, Tensor)}


def _inside(path: Path, root: Path) -> Path:
    """The path, unless it is a link out of the folder; the hub's cache links to its own blobs."""
    real, home = path.resolve(), root.resolve()
    if not real.is_relative_to(home) and real.parent != home.parent.parent / "blobs":
        raise ValueError(
            f"{path} is a link that leads out of the folder, to {shown(real)}; put the file itself "
            "there"
        )
    return path
