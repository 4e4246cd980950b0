"""Save Paint by Example: MODEL, encoder and VAE as one file that the loader reads."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..pbe_model.checkpoints.save import save_parts
from .adapter import HostEncoder, denoiser_weights, held_as, not_weights, pbe_config, show
from .category import CATEGORY, SEARCHES
from .exemplar import PBEEncoder
from .file_names import checked_name
from .folders import MODEL_FOLDER

_ENDING = ".safetensors"
FILE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_HOW_TO_KEEP = {
    "denoiser": "choose weight dtype fp32 in Load Paint by Example",
    "VAE": "start ComfyUI with --fp32-vae",
}


class PBESaveModel(io.ComfyNode):
    """Writes a whole model, with LoRAs and merges in its weights, to the models folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PBESaveModel",
            display_name="Save Paint by Example",
            category=CATEGORY,
            description=(
                "Saves a model as one safetensors file in models/paint_by_example, with LoRAs and "
                "merges in its weights. Load Paint by Example lists it, and pbe reads it."
            ),
            search_aliases=[
                *SEARCHES,
                "pbe",
                "save checkpoint",
                "export model",
                "merge",
                "bake lora",
            ],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "From Load Paint by Example, through any LoRA loaders and merging nodes: "
                        "what they change is saved."
                    ),
                ),
                PBEEncoder.Input("encoder", tooltip="From Load Paint by Example."),
                io.Vae.Input("vae", tooltip="From Load Paint by Example."),
                io.String.Input(
                    "name",
                    default="paint_by_example_merged",
                    tooltip=(
                        "File name, without ending. May have a folder in front: mine/merged. A "
                        "file that is there already is never overwritten."
                    ),
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(FILE_DTYPES),
                    default="fp32",
                    tooltip=(
                        "How the weights are stored. fp32 loses nothing; fp16 and bf16 halve the "
                        "file, and fp16 is what most cards compute in anyway."
                    ),
                ),
            ],
            outputs=[],
        )

    @classmethod
    def execute(
        cls, model: Any, encoder: HostEncoder, vae: Any, name: str, dtype: str
    ) -> io.NodeOutput:
        config, path = pbe_config(model), _new_file(name)
        if (encoder.model.config, encoder.model.cond_stage_model.tokens) != (
            config.exemplar,
            config.tokens,
        ):
            raise ValueError(
                "the encoder is of another architecture than this MODEL's; connect the encoder "
                "that was loaded with it"
            )
        parts = {
            "unet": denoiser_weights(model),
            "vae": vae.get_sd(),
            "encoder": encoder.model.state_dict(),
        }
        made = _make_folder(path.parent)
        try:
            save_parts(path, config, parts, dtype=FILE_DTYPES[dtype])
        except BaseException:  # also where the user cancels
            with suppress(OSError):  # others may have saved there meanwhile
                for folder in made:
                    folder.rmdir()
            raise
        choice = f"{MODEL_FOLDER}/{path.relative_to(_folder()).as_posix()}"
        lines = [
            f"Saved {_megabytes(path)} to {path}",
            f"Press R, then choose {choice} in Load Paint by Example.",
            *_notes(model, vae, FILE_DTYPES[dtype]),
        ]
        text = "\n".join(lines)
        show(cls.hidden.unique_id, text)
        return io.NodeOutput(ui={"text": [text]})


def _folder() -> Path:
    """Where the loader looks first."""
    return Path(folder_paths.get_folder_paths(MODEL_FOLDER)[0])


def _new_file(name: str) -> Path:
    """The file of that name, which must not be there yet."""
    name = checked_name(name)
    path = _folder() / (name if name.endswith(_ENDING) else name + _ENDING)
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(_folder())):
        raise ValueError(f"{name!r} leads out of {_folder()}; give another name")
    if os.path.lexists(path):
        raise ValueError(f"{path} is there already; give another name, or delete it first")
    return path


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns what was made, the innermost first."""
    missing = [f for f in (folder, *folder.parents) if not f.is_dir()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"cannot make the folder {folder}: {error.strerror}; give another name"
        ) from error
    return missing


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.0f} MB"


def _notes(model: Any, vae: Any, dtype: torch.dtype) -> list[str]:
    """What the file does not hold, though one might think so."""
    notes = [
        f"The {part} was kept in {str(kept).removeprefix('torch.')}, so the file is no more exact; "
        f"to keep all, {_HOW_TO_KEEP[part]}."
        for part, kept in held_as(model, vae).items()
        if kept.itemsize < dtype.itemsize
    ]
    if settings := not_weights(model):
        notes.append(f"Not in the file, as they are no weights: {', '.join(settings)}.")
    return notes
