"""Diffusers folders: `unet/`, `vae/` and `image_encoder/`, each with its config.json.

How their names map to ours is in `diffusers_layout`; here is how they lie on the disk.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..untrusted import read_json, shown
from .diffusers_layout import FOLDERS, SCHEDULER
from .eight_bits import widen
from .links import followed
from .official_names import is_derived
from .safetensors_io import MAX_HEADER, MappedPages, types_of, write_safetensors
from .weights_file import read_weights
from .wrappers import PARTS_OF_FOLDER, Layout, Nested, find_weights, unwrap

_MAX_SHARDS = 1000

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
"""What a part's file may be called, in the order in which they are looked for."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What a folder holds."""

    configs: dict[str, dict[str, Any]]
    """By part; the scheduler's, which may be missing, is under `SCHEDULER`."""
    tensors: dict[str, Tensor]
    """By part and name, such as `unet.conv_in.weight`."""
    given: dict[str, str]
    """What a name is in the file, after its part."""
    dropped: list[str]
    dtypes: list[str]
    """The types that the files store."""
    notes: list[str]
    """What was done to make weights of the files' content, for a report."""


def read_folder(path: Path) -> Folder:
    """Read a folder's configurations and weights.

    Args:
        path: A Paint by Example folder, or a Stable Diffusion one, which has no image encoder.

    Raises:
        ValueError: A part is missing or damaged, or a link leads out of the folder.
    """
    configs: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    given: dict[str, str] = {}
    stored: list[Tensor] = []
    dropped: list[str] = []
    notes: list[str] = []
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
        configs[part] = read_config(followed(file, path))
        loaded, entries = read_part(path / part, path, PARTS_OF_FOLDER[part])
        widened = widen(loaded, path)
        bare = unwrap(widened.tensors, PARTS_OF_FOLDER[part], path / part)
        for name, as_given in bare.given.items():
            if not is_derived(f"{part}.{name}"):
                stored.append(loaded[as_given])
        tensors |= {f"{part}.{name}": tensor for name, tensor in bare.tensors.items()}
        given |= {f"{part}.{name}": f"{part}.{own}" for name, own in bare.given.items()}
        dropped += [f"{part}.{name}" for name in (*widened.dropped, *bare.dropped)]
        notes += [f"{part}: {note}" for note in (*entries, *widened.notes, *bare.notes)]
    if (scheduler := path / SCHEDULER).is_file():
        configs[SCHEDULER] = read_config(followed(scheduler, path))
    return Folder(
        configs=configs,
        tensors=tensors,
        given=given,
        dropped=dropped,
        dtypes=types_of(stored),
        notes=notes,
    )


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


def read_part(folder: Path, root: Path, layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """All tensors of one subfolder: one file, or shards with an index; no pickle if possible.

    Args:
        folder: The subfolder.
        root: Links must not lead out of it.
        layout: Where a pickle holds dictionaries, tells which one has the weights.

    Returns:
        Tensors as the files name them, and in which entries of dictionaries they were.
    """
    for suffix in (".safetensors", ".bin"):
        for stem in STEMS:
            single, index = folder / (stem + suffix), folder / f"{stem}{suffix}.index.json"
            if single.exists():
                return _read_shards([single], root, layout)
            if index.is_file():
                found = read_config(followed(index, root)).get("weight_map")
                if not isinstance(found, dict):
                    raise ValueError(f"{index} has no weight_map; download the folder again")
                # File names without folders: an index must not lead out of its own.
                shards = sorted({Path(str(name)).name for name in found.values()})
                if len(shards) > _MAX_SHARDS:
                    raise ValueError(
                        f"{index} names {len(shards):,} files, and {_MAX_SHARDS:,} are the most; "
                        "download the folder again"
                    )
                return _read_shards([folder / name for name in shards], root, layout)
    raise ValueError(f"no weights in {folder}; download the folder again")


def _read_shards(
    paths: list[Path], root: Path, layout: Layout
) -> tuple[dict[str, Tensor], list[str]]:
    tensors: dict[str, Tensor] = {}
    notes: list[str] = []
    for path in paths:
        if not os.path.isfile(path):
            raise ValueError(f"{shown(path)} is missing; download the folder again")
        held, _, kind = read_weights(followed(path, root))
        nested = find_weights(held, layout, path) if kind == "torch" else Nested(held, [])
        tensors |= nested.tensors
        notes += nested.notes
    return tensors, notes
