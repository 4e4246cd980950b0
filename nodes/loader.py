"""Load Paint by Example: a checkpoint as the host's MODEL and VAE, and our exemplar encoder."""

from __future__ import annotations

import os

import folder_paths
import torch
from comfy_api.latest import io

from ..pbe_model import PaintByExample
from .adapter import HostEncoder, latent_format, load_model, load_vae
from .exemplar import PBEEncoder

CATEGORY = "paint by example"
BUNDLED = "bundled demo"
MODEL_FOLDER = "paint_by_example"
MODEL_EXTENSIONS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
FOLDERS = (MODEL_FOLDER, "checkpoints")
WEIGHT_DTYPES: dict[str, torch.dtype | None] = {
    "default": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
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
            search_aliases=["pbe", "checkpoint", "exemplar", "reference inpainting"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=_choices(),
                    default=BUNDLED,
                    tooltip=(
                        "The small model that comes with this pack, or a file in "
                        "models/paint_by_example or models/checkpoints: official .ckpt or "
                        "safetensors."
                    ),
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip=(
                        "How the denoiser's weights are kept. default: ComfyUI's choice for your "
                        "card. fp8 halves the memory of fp16 at some loss."
                    ),
                ),
                io.Combo.Input(
                    "attention",
                    options=ATTENTIONS,
                    default="auto",
                    advanced=True,
                    tooltip=(
                        "auto: what ComfyUI was started with. pytorch, xformers: that one, in this "
                        "model only."
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
        parts = PaintByExample.from_checkpoint(_path(checkpoint))
        config = parts.config
        vae = load_vae(config.vae, parts.vae.state_dict())
        model = load_model(
            config,
            parts.unet.state_dict(),
            latent_format(config.vae, vae),
            weight_dtype=WEIGHT_DTYPES[weight_dtype],
            attention=attention,
        )
        return io.NodeOutput(model, HostEncoder.wrap(parts.encoder), vae)


def register_model_folder() -> None:
    """Add `models/paint_by_example` to the folders that the host searches."""
    folder_paths.add_model_folder_path(
        MODEL_FOLDER, os.path.join(folder_paths.models_dir, MODEL_FOLDER)
    )
    paths, _ = folder_paths.folder_names_and_paths[MODEL_FOLDER]
    folder_paths.folder_names_and_paths[MODEL_FOLDER] = (paths, set(MODEL_EXTENSIONS))


def _choices() -> list[str]:
    """The bundled model, then the user's files as `folder/name`."""
    files = [
        f"{folder}/{name}"
        for folder in FOLDERS
        for name in folder_paths.get_filename_list(folder)
        if os.path.splitext(name)[1].lower() in MODEL_EXTENSIONS
    ]
    return [BUNDLED, *files]


def _path(choice: str) -> str | None:
    """The file behind a choice, None for the bundled model.

    The host has checked the choice against the list; this resolves it inside its folder again.
    """
    if choice == BUNDLED:
        return None
    folder, name = choice.split("/", 1)
    return folder_paths.get_full_path_or_raise(folder, name)
