"""Names in the official checkpoint: the prefix of each part, and what else the file holds.

The modules of `networks` carry the names below these prefixes as attributes. Everything that reads
or writes checkpoints takes the prefixes from here.
"""

from __future__ import annotations

import re

UNET = "model.diffusion_model."
VAE = "first_stage_model."
EMBEDDER = "cond_stage_model."
"""CLIP's tower, the mapper and a LayerNorm."""

PROJECTION = "proj_out."
LEARNABLE_VECTOR = "learnable_vector"
TOWER = f"{EMBEDDER}transformer.vision_model."
TEXT_ENCODER = f"{EMBEDDER}transformer.text_model."
"""In place of `TOWER` in Stable Diffusion's files."""

MAPPER = f"{EMBEDDER}mapper."
MOVING_AVERAGE = "model_ema."
"""The denoiser's weights again, averaged over the training."""

PARTS = {"unet": UNET, "vae": VAE, "encoder": ""}
"""Prefix of each part of the model; the encoder's own names say `EMBEDDER` and so on."""

FIRST_CONVOLUTION = f"{UNET}input_blocks.0.0.weight"
"""The denoiser's first layer; its shape tells how many channels the denoiser takes."""

CROSS_ATTENTION_KEY = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
"""A layer whose shape tells how wide the exemplar's tokens are."""

POSITION_IDS = f"{TOWER}embeddings.position_ids"
"""The numbers 0 .. n, which older versions of transformers saved as a buffer."""

_BARE_UNET = UNET.removeprefix("model.")
_UNNAMED_TOWER = re.compile(
    re.escape(f"{EMBEDDER}transformer.") + r"(?!vision_model\.|text_model\.)"
)
_DERIVED = re.compile(
    r"(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_alphas_cumprod|posterior_\w+|"
    r"lvlb_weights|logvar|scale_factor)"
    rf"|({re.escape(EMBEDDER)}transformer|image_encoder\.model)"  # the latter is diffusers' name
    r"\.(vision_model\.)?embeddings\.position_ids"
    rf"|{re.escape(MOVING_AVERAGE)}.*"
)


def canonical(name: str) -> str:
    """The official name; files may leave out the first `model.`, or the tower's `vision_model.`."""
    if name.startswith(_BARE_UNET):
        return UNET + name.removeprefix(_BARE_UNET)
    return _UNNAMED_TOWER.sub(TOWER, name)


def is_derived(name: str) -> bool:
    """Whether a tensor follows from the configuration, or belongs to training alone."""
    return _DERIVED.fullmatch(name) is not None


def average_of(name: str) -> str:
    """Where the moving average of a denoiser's weight is; names have no dots there."""
    return MOVING_AVERAGE + name.removeprefix("model.").replace(".", "")
