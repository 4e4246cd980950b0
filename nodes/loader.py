"""Load Paint by Example: a checkpoint as the host's MODEL and VAE, and our exemplar encoder."""

from __future__ import annotations

import os
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..pbe_model import PaintByExample
from ..pbe_model.checkpoints.download import UNFINISHED
from ..pbe_model.untrusted import read_bytes
from .adapter import HostEncoder, latent_format, load_model, load_vae
from .category import CATEGORY, SEARCHES
from .exemplar import PBEEncoder
from .folders import MODEL_EXTENSIONS, MODEL_FOLDER

BUNDLED_CHOICE = "bundled demo"
_CHECKPOINT_FOLDERS = (MODEL_FOLDER, "checkpoints")
WEIGHT_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
_MAX_INDEX = 2**16  # largest model_index.json in bytes; they have less than a thousand
ATTENTIONS = ["auto", "pytorch", "xformers"]


class PBELoader(io.ComfyNode):
    """Loads the bundled model or a checkpoint of the user's."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PBELoader",
            display_name="Load Paint by Example",
            category=CATEGORY,
            description="Loads a Paint by Example checkpoint: denoiser, exemplar encoder and VAE.",
            search_aliases=[*SEARCHES, "pbe", "checkpoint", "reference inpainting"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=_choices(),
                    default=BUNDLED_CHOICE,
                    tooltip=(
                        "The small model that comes with this pack, or a file in "
                        "models/paint_by_example or models/checkpoints: official .ckpt, "
                        "safetensors, or a diffusers folder."
                    ),
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip=(
                        "How the denoiser's weights are stored. default: ComfyUI's choice for your "
                        "card. fp8 halves the memory of fp16 at some loss."
                    ),
                ),
                io.Combo.Input(
                    "attention",
                    options=ATTENTIONS,
                    default="auto",
                    advanced=True,
                    tooltip=(
                        "auto: the one ComfyUI was started with. pytorch, xformers: that one, for "
                        "this model only."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(
                    "model",
                    display_name="model",
                    tooltip="The denoiser, a native MODEL: LoRAs and KSampler work on it.",
                ),
                PBEEncoder.Output(
                    "encoder", display_name="encoder", tooltip="For Exemplar Encoder."
                ),
                io.Vae.Output("vae", display_name="vae", tooltip="The first stage, a native VAE."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, weight_dtype: str, attention: str) -> float:
        """Changes when the file does, so that a replaced checkpoint is loaded again."""
        path = _path(checkpoint)
        return os.path.getmtime(path) if path else 0.0

    @classmethod
    def execute(cls, checkpoint: str, weight_dtype: str, attention: str) -> io.NodeOutput:
        arguments = (_path(checkpoint), weight_dtype, attention)
        model, encoder, vae = _load(*arguments)
        # With this the host loads the MODEL again, to compile it or for another card.
        model.cached_patcher_init = (_load, arguments, 0)
        return io.NodeOutput(model, encoder, vae)


def _load(path: str | None, weight_dtype: str, attention: str, disable_dynamic: bool = False):
    """A checkpoint as MODEL, PBE_ENCODER and VAE."""
    parts = PaintByExample.from_checkpoint(path, dtype=None)
    config = parts.config
    vae = load_vae(config.vae, parts.vae.state_dict())
    model = load_model(
        config,
        parts.unet.state_dict(),
        latent_format(config.vae, vae),
        weight_dtype=WEIGHT_DTYPES[weight_dtype],
        attention=attention,
        dynamic=not disable_dynamic,
    )
    return model, HostEncoder.wrap(parts.encoder), vae


def _choices() -> list[str]:
    """The bundled model, then the user's files and diffusers folders as `folder/name`."""
    folders = list(_diffusers_folders())
    # Files in a diffusers folder, or in that of an unfinished download, are parts of a model.
    parts = (*(f"{folder}/" for folder in folders), f"{UNFINISHED}/")
    files = [
        f"{folder}/{name}"
        for folder in _CHECKPOINT_FOLDERS
        for name in folder_paths.get_filename_list(folder)
        if os.path.splitext(name)[1].lower() in MODEL_EXTENSIONS
    ]
    files = [file for file in files if not any(part in file for part in parts)]
    return [BUNDLED_CHOICE, *files, *folders]


def _diffusers_folders() -> dict[str, str]:
    """Diffusers folders of Paint by Example: their paths by their names in the list."""
    found = {}
    for kind in (MODEL_FOLDER, "diffusers"):
        for root in folder_paths.get_folder_paths(kind):
            for index in sorted(Path(root).glob("*/model_index.json")):
                if _is_paint_by_example(index):
                    found[f"{kind}/{index.parent.name}"] = str(index.parent)
    return found


def _is_paint_by_example(index: Path) -> bool:
    try:
        return b"PaintByExamplePipeline" in read_bytes(index, _MAX_INDEX)
    except (OSError, ValueError):  # such as a pipe; waiting for it would block the list of nodes
        return False


def _path(choice: str) -> str | None:
    """The file or folder behind a choice, None for the bundled model.

    The host has checked the choice against the list; this resolves it inside its folder again.
    """
    if choice == BUNDLED_CHOICE:
        return None
    if choice in (folders := _diffusers_folders()):
        return folders[choice]
    folder, name = choice.split("/", 1)
    return folder_paths.get_full_path_or_raise(folder, name)
