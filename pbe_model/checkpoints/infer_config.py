"""A checkpoint's architecture: what its metadata says, or else what its shapes tell."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import ExemplarConfig, PBEConfig, UNetConfig, VAEConfig
from ..untrusted import parse_json
from .official_names import (
    CROSS_ATTENTION_KEY,
    EMBEDDER,
    FIRST_CONVOLUTION,
    LEARNABLE_VECTOR,
    MAPPER,
    PROJECTION,
    TEXT_ENCODER,
    TOWER,
    UNET,
    VAE,
)

METADATA_KEY = "pbe_config"
"""The entry of our files' metadata that holds the configuration, as JSON."""

_COMFYUI_KEY = "modelspec.predict_key"
"""An entry that ComfyUI's nodes for saving models write; see docs/checkpoints.md."""

_OF_ADAPTERS = re.compile(r"lora_(up|down|A|B|unet)\b|lora_unet_|\.hada_w1|\.lokr_w")
_OF_DIFFUSERS = re.compile(r"(^|\.)(conv_in\.weight$|down_blocks\.0\.resnets\.)")
_MAX_STATED = 2**16  # characters of a configuration; ours have about a thousand


def infer_config(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> PBEConfig:
    """The architecture of a checkpoint.

    Args:
        tensors: Under official names. Without an image encoder (Stable Diffusion's files have
            none) that part is the published one.
        metadata: What else the file says; `METADATA_KEY` is looked for in it.

    Raises:
        ValueError: Metadata that is not a configuration, or tensors of another architecture.
    """
    if METADATA_KEY in metadata:
        config = _stated(metadata[METADATA_KEY])
        check_layers(config, tensors)
        return config
    _check_kind(tensors)
    shapes = _Shapes(tensors)
    channels = shapes(FIRST_CONVOLUTION)[1]
    if channels != UNetConfig.in_channels:
        raise ValueError(
            f"its denoiser takes {channels} channels and Paint by Example's takes 9, so this is "
            "another model; give a Paint by Example checkpoint"
        )
    has_tower = any(name.startswith(TOWER) for name in tensors)
    if _COMFYUI_KEY in metadata and not has_tower:
        raise ValueError(
            "ComfyUI's own node for saving models wrote it, which leaves out the exemplar encoder "
            "and the configuration; if it was a Paint by Example model, save it with the node "
            "Save Paint by Example"
        )
    if any(name.startswith(TEXT_ENCODER) for name in tensors):
        raise ValueError(
            "it has a text encoder: this is an inpainting model of Stable Diffusion, whose "
            "channels mean something else; give a Paint by Example checkpoint, or to train one "
            "start from SD 1.4 or 1.5"
        )
    has_encoder = any(name.startswith((EMBEDDER, PROJECTION, LEARNABLE_VECTOR)) for name in tensors)
    return PBEConfig(
        unet=_unet(shapes),
        vae=_vae(shapes),
        exemplar=_exemplar(shapes) if has_encoder else ExemplarConfig(),
    )


def check_told(config: PBEConfig, metadata: Mapping[str, str], source: object) -> None:
    """Refuse to paint with a configuration that was read off shapes which tell too little.

    No shape shows at which size a model was trained, nor the groups of its normalisations or the
    scale of its latents. Only of the published model's widths they are known.

    Args:
        config: From `infer_config`.
        metadata: Of the same file.
        source: Name for errors.

    Raises:
        ValueError: Other widths, and no configuration in the metadata.
    """
    if METADATA_KEY in metadata or (config.unet, config.vae) == (UNetConfig(), VAEConfig()):
        return
    raise ValueError(
        f"{source} is not of the published model's widths (its denoiser has "
        f"{config.unet.model_channels} channels instead of {UNetConfig.model_channels}), and as "
        "its metadata holds no configuration, nothing tells at which size it was trained; take "
        "the file as it was exported, or in Python pass config="
    )


def is_stable_diffusion(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a denoiser is that of SD 1.4 or 1.5, from which Paint by Example is trained."""
    first = tensors.get(FIRST_CONVOLUTION)
    return (
        first is not None
        and first.ndim == 4
        and first.numel() > 0
        and first.shape[1:] == (UNetConfig.out_channels, 3, 3)
        and not any(name.startswith((TOWER, LEARNABLE_VECTOR)) for name in tensors)
        and CROSS_ATTENTION_KEY in tensors
    )


def _check_kind(tensors: Mapping[str, Tensor]) -> None:
    """Refuse what people take for a whole model.

    Raises:
        ValueError: It is an adapter, or a part of a diffusers folder.
    """
    if FIRST_CONVOLUTION in tensors:
        return
    if any(_OF_ADAPTERS.search(name) for name in tensors):
        raise ValueError(
            "this is an adapter (LoRA), which changes a model and is none; give it beside a "
            "checkpoint, as --lora, or to a LoRA loader"
        )
    if any(_OF_DIFFUSERS.search(name) for name in tensors):
        raise ValueError(
            "its names are those of diffusers, whose configuration is in other files; this is not "
            "a whole model: give the folder that has unet, vae and image_encoder"
        )


def _stated(text: str) -> PBEConfig:
    try:
        if len(text) > _MAX_STATED:
            raise ValueError(f"it has {len(text):,} characters")
        values = parse_json(text)
        if not isinstance(values, dict):
            raise ValueError(f"it is of type {type(values).__name__}, not a JSON object")
        return PBEConfig.from_dict(values)
    except ValueError as error:
        raise ValueError(
            f"the configuration in the file's metadata is damaged ({error}); "
            "download it again, or in Python pass the right one as config="
        ) from error


def check_layers(config: PBEConfig, tensors: Mapping[str, Tensor]) -> None:
    """Refuse, before a model is laid out, a configuration that asks for absurdly many layers.

    Raises:
        ValueError: It asks for more layers than there are tensors that have values.
    """
    unet, vae, tower = config.unet, config.vae, config.exemplar
    layers = (
        len(unet.channel_mult) * unet.num_res_blocks
        + len(vae.ch_mult) * vae.num_res_blocks
        + tower.num_layers
        + tower.mapper_layers
    )
    full = sum(1 for tensor in tensors.values() if tensor.numel())
    if layers > full:
        raise ValueError(
            f"its configuration asks for {layers:,} layers and it has {full:,} tensors; "
            "download it again, or in Python pass the right one as config="
        )


class _Shapes:
    """Shapes of tensors that have to be there, and the numbers in their names."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __call__(self, name: str, dims: int = 4) -> torch.Size:
        tensor = self.tensors.get(name)
        if tensor is None or tensor.ndim != dims or not tensor.numel():
            raise ValueError(
                f"{name!r} is missing or misshapen, so this is not a Paint by Example checkpoint "
                "(LoRAs, text-to-image and other inpainting models are not); give one"
            )
        return tensor.shape

    def indices(self, pattern: str) -> list[int]:
        regex = re.compile(pattern)
        return sorted({int(match[1]) for match in map(regex.match, self.tensors) if match})


def _unet(shapes: _Shapes) -> UNetConfig:
    base = shapes(FIRST_CONVOLUTION)[0]
    # A stack that is missing as a whole must not be taken for one of no layers.
    shapes(UNET + "input_blocks.1.0.in_layers.2.weight")
    blocks_at = re.escape(UNET) + r"input_blocks\.(\d{1,4})\."
    # Downsamplings separate the levels; the rest of a level are its residual blocks.
    downs = shapes.indices(blocks_at + r"0\.op\.weight")
    blocks = shapes.indices(blocks_at + r"0\.in_layers\.2\.weight")
    last = [max((i for i in blocks if i < down), default=0) for down in downs] + [max(blocks)]
    widths = [shapes(f"{UNET}input_blocks.{i}.0.in_layers.2.weight")[0] for i in last]
    attending = set(shapes.indices(blocks_at + r"1\.norm\.weight"))
    return UNetConfig(
        model_channels=base,
        num_res_blocks=len(blocks) // len(widths),
        channel_mult=tuple(width // base for width in widths),
        attention_resolutions=tuple(2**i for i, block in enumerate(last) if block in attending),
        context_dim=shapes(CROSS_ATTENTION_KEY, 2)[1],
    )


def _vae(shapes: _Shapes) -> VAEConfig:
    ch = shapes(VAE + "encoder.conv_in.weight")[0]
    shapes(VAE + "encoder.down.0.block.0.conv1.weight")
    down = re.escape(VAE) + r"encoder\.down\."
    levels = shapes.indices(down + r"(\d{1,4})\.block\.0\.conv1\.weight")
    return VAEConfig(
        ch=ch,
        ch_mult=tuple(
            shapes(f"{VAE}encoder.down.{i}.block.0.conv2.weight")[0] // ch for i in levels
        ),
        num_res_blocks=len(shapes.indices(down + r"0\.block\.(\d{1,4})\.")),
        z_channels=shapes(VAE + "post_quant_conv.weight")[0],
    )


def _exemplar(shapes: _Shapes) -> ExemplarConfig:
    shapes(TOWER + "encoder.layers.0.self_attn.q_proj.weight", 2)
    shapes(MAPPER + "resblocks.0.attn.c_qkv.weight", 2)
    shapes(LEARNABLE_VECTOR, 3)
    hidden, _, _, patch = shapes(TOWER + "embeddings.patch_embedding.weight")
    side = round((shapes(TOWER + "embeddings.position_embedding.weight", 2)[0] - 1) ** 0.5)
    layers = shapes.indices(re.escape(TOWER) + r"encoder\.layers\.(\d{1,4})\.")
    mapper = shapes.indices(re.escape(MAPPER) + r"resblocks\.(\d{1,4})\.")
    return ExemplarConfig(
        image_size=side * patch,
        patch_size=patch,
        hidden_size=hidden,
        num_layers=len(layers),
        num_heads=hidden // 64,
        mapper_layers=len(mapper),
    )
