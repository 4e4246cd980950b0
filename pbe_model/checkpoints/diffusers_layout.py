"""Renaming between the official names and those of a diffusers folder: tables, and their use.

A tensor of a folder is called by its subfolder and its name in there, such as
`unet.conv_in.weight`. Written from the layouts of diffusers' `UNet2DConditionModel`,
`AutoencoderKL` and `PaintByExampleImageEncoder`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..config import (
    MOST_LEVELS,
    ExemplarConfig,
    PBEConfig,
    Prediction,
    ScheduleConfig,
    UNetConfig,
    VAEConfig,
)
from ..networks.exemplar_encoder import CLIP_MEAN, CLIP_STD
from ..untrusted import shown
from .official_names import EMBEDDER, LEARNABLE_VECTOR, MAPPER, PROJECTION, UNET, VAE

FOLDERS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "image_encoder": "model.safetensors",
}
"""Subfolders of a diffusers folder that hold weights, and the file that each is written to."""

SCHEDULER = "scheduler/scheduler_config.json"
"""Where such a folder has its noise schedule."""

_PREDICTIONS: dict[str, Prediction] = {"epsilon": "epsilon", "v_prediction": "v"}

_RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_UNET = {
    "": "",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.1": "mid_block.attentions.0",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_VAE = {
    "": "",
    "encoder.norm_out": "encoder.conv_norm_out",
    "decoder.norm_out": "decoder.conv_norm_out",
}
_VAE_MIDDLE = {
    "block_1": "resnets.0",
    "block_2": "resnets.1",
    "attn_1.norm": "attentions.0.group_norm",
    "attn_1.q": "attentions.0.to_q",
    "attn_1.k": "attentions.0.to_k",
    "attn_1.v": "attentions.0.to_v",
    "attn_1.proj_out": "attentions.0.to_out.0",
}
_ENCODER = {
    f"{EMBEDDER}transformer": "model",
    f"{EMBEDDER}final_ln": "final_layer_norm",
    PROJECTION: "proj_out",
    LEARNABLE_VECTOR: "uncond_vector",
}
_MAPPER = {
    "attn.c_proj": "attn1.to_out.0",
    "ln_1": "norm1",
    "ln_2": "norm3",
    "mlp.c_fc": "ff.net.0.proj",
    "mlp.c_proj": "ff.net.2",
}
# Names from before diffusers 0.18, which published folders still use.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

_DIFFUSERS = "0.30.0"  # the version whose layout this is

Table = dict[str, tuple[str, ...]]


def module_table(config: PBEConfig) -> Table:
    """Diffusers' module for each official one, or several modules that share its rows in turn.

    What is below a module keeps its name, so the innermost module listed decides.
    """
    table: Table = {}
    for prefix, folder, names in (
        (UNET, "unet", _unet_table(config.unet)),
        (VAE, "vae", _vae_table(config.vae)),
        ("", "image_encoder", _ENCODER),
    ):
        for ours, theirs in names.items():
            table[f"{prefix}{ours}".rstrip(".")] = (f"{folder}.{theirs}".rstrip("."),)
    for i in range(config.exemplar.mapper_layers):
        ours, theirs = f"{MAPPER}resblocks.{i}", f"image_encoder.mapper.blocks.{i}"
        table |= {f"{ours}.{a}": (f"{theirs}.{b}",) for a, b in _MAPPER.items()}
        table[f"{ours}.attn.c_qkv"] = tuple(f"{theirs}.attn1.to_{letter}" for letter in "qkv")
    return table


def _unet_table(config: UNetConfig) -> dict[str, str]:
    names, a_level = dict(_UNET), config.num_res_blocks + 1
    residuals = {f"middle_block.{2 * i}": f"mid_block.resnets.{i}" for i in (0, 1)}
    for level in range(len(config.channel_mult)):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        for i in range(config.num_res_blocks):
            ours = f"input_blocks.{1 + level * a_level + i}"
            residuals[f"{ours}.0"] = f"{down}.resnets.{i}"
            names[f"{ours}.1"] = f"{down}.attentions.{i}"
        names[f"input_blocks.{(level + 1) * a_level}.0.op"] = f"{down}.downsamplers.0.conv"
        for i in range(a_level):
            ours = f"output_blocks.{level * a_level + i}"
            residuals[f"{ours}.0"] = f"{up}.resnets.{i}"
            names[f"{ours}.1"] = f"{up}.attentions.{i}"
            for place in (1, 2):  # after the transformer, where there is one
                names[f"{ours}.{place}.conv"] = f"{up}.upsamplers.0.conv"
    for ours, theirs in residuals.items():
        names |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in _RESIDUAL.items()}
    return names


def _vae_table(config: VAEConfig) -> dict[str, str]:
    names, levels = dict(_VAE), len(config.ch_mult)
    residuals = {}
    for half, kind, blocks in (
        ("encoder", "down", config.num_res_blocks),
        ("decoder", "up", config.num_res_blocks + 1),
    ):
        for a, b in _VAE_MIDDLE.items():
            names[f"{half}.mid.{a}"] = f"{half}.mid_block.{b}"
        for level in range(levels):
            # Ours count from the highest resolution, theirs in the order of computation.
            order = level if half == "encoder" else levels - 1 - level
            ours, theirs = f"{half}.{kind}.{level}", f"{half}.{kind}_blocks.{order}"
            names[f"{ours}.{kind}sample"] = f"{theirs}.{kind}samplers.0"
            for i in range(blocks):
                residuals[f"{ours}.block.{i}"] = f"{theirs}.resnets.{i}"
    for ours, theirs in residuals.items():
        names |= {ours: theirs, f"{ours}.nin_shortcut": f"{theirs}.conv_shortcut"}
    return names


def renamed(name: str, table: Table) -> tuple[str, ...]:
    """Diffusers' names for an official tensor: one, or several that share its rows in turn."""
    module, rest = name, ""
    while module not in table:
        module, dot, last = module.rpartition(".")
        assert module, f"{name} is not an official name"
        rest = dot + last + rest
    return tuple(theirs + rest for theirs in table[module])


def to_diffusers(tensors: Mapping[str, Tensor], config: PBEConfig) -> dict[str, Tensor]:
    """Official tensors under diffusers' names, as views of the same memory.

    Args:
        tensors: Under official names.
        config: The model's, whose depth decides the names.
    """
    table, converted = module_table(config), {}
    for name, tensor in tensors.items():
        names = renamed(name, table)
        if ".mid.attn_1." in name and tensor.ndim == 4:
            tensor = tensor[:, :, 0, 0]  # a linear layer there, a 1 x 1 convolution here
        converted.update(zip(names, tensor.chunk(len(names)), strict=True))
    return converted


def from_diffusers(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], config: PBEConfig
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The inverse of `to_diffusers`.

    Args:
        tensors: Under diffusers' names; those of older versions are understood.
        expected: The model's tensors under official names, for their shapes alone.
        config: The model's, whose depth decides the names.

    Returns:
        Tensors under official names, and under their own those that have no official name; and
        the official name by the name in `tensors`.
    """
    left = {_current(name): tensor for name, tensor in tensors.items()}
    theirs_as_given = {_current(name): name for name in tensors}
    table, converted, given = module_table(config), {}, {}
    for name, like in expected.items():
        names = renamed(name, table)
        if not all(theirs in left for theirs in names):
            continue
        parts = [left.pop(theirs) for theirs in names]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if like.ndim == 4 and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        converted[name] = tensor
        given |= {theirs_as_given[theirs]: name for theirs in names}
    return {**converted, **left}, given


def _current(name: str) -> str:
    """A name as the newest diffusers gives it, with the tower's `vision_model.` as official."""
    name = re.sub(r"^image_encoder\.model\.(?!vision_model\.)", r"\g<0>vision_model.", name)
    if match := re.fullmatch(r"(vae\..+\.attentions\.0)\.(\w+)\.(weight|bias)", name):
        return f"{match[1]}.{_OLD_ATTENTION.get(match[2], match[2])}.{match[3]}"
    return name


def diffusers_config(configs: Mapping[str, Mapping[str, Any]]) -> PBEConfig:
    """The architecture of a diffusers folder.

    Args:
        configs: What `config.json` says in each of `FOLDERS`, and under `SCHEDULER` that file;
            without an image encoder the folder is one of Stable Diffusion, of which Paint by
            Example can be trained.

    Raises:
        ValueError: An entry is missing or of the wrong kind.
    """
    unet, vae, tower = (_modest(configs.get(folder, {})) for folder in FOLDERS)
    try:
        widths, channels = unet["block_out_channels"], vae["block_out_channels"]
        sizes = VAEConfig(
            ch=channels[0],
            ch_mult=tuple(c // channels[0] for c in channels),
            num_res_blocks=vae["layers_per_block"],
            z_channels=vae["latent_channels"],
            scale_factor=vae["scaling_factor"]
            if "scaling_factor" in configs["vae"]
            else VAEConfig.scale_factor,
        )
        return PBEConfig(
            unet=UNetConfig(
                in_channels=unet["in_channels"] if tower else UNetConfig.in_channels,
                out_channels=unet["out_channels"],
                model_channels=widths[0],
                num_res_blocks=unet["layers_per_block"],
                channel_mult=tuple(width // widths[0] for width in widths),
                attention_resolutions=tuple(
                    2**level
                    for level, kind in enumerate(unet["down_block_types"])
                    if kind.startswith("CrossAttn")
                ),
                num_heads=unet["attention_head_dim"],  # in these files it counts the heads
                context_dim=unet["cross_attention_dim"],
                norm_groups=unet["norm_num_groups"],
            ),
            vae=sizes,
            exemplar=_exemplar_config(tower) if tower else ExemplarConfig(),
            schedule=_schedule_config(configs.get(SCHEDULER, {})),
            resolution=unet["sample_size"] * sizes.downscale,
        )
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        raise ValueError(
            f"its config.json files do not describe a Paint by Example model ({error!r}); download "
            "the folder again"
        ) from error


def _modest(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that describe a model: numbers and words, and short lists of them.

    So nothing is computed with a number of a million digits, or a list in place of a number.
    """

    def is_modest(value: Any) -> bool:
        return (
            isinstance(value, float)
            or (isinstance(value, int) and value.bit_length() < 32)
            or (isinstance(value, str) and len(value) < 100)
        )

    return {
        name: value
        for name, value in config.items()
        if is_modest(value)
        or (isinstance(value, list) and len(value) <= MOST_LEVELS and all(map(is_modest, value)))
    }


def _schedule_config(scheduler: Mapping[str, Any]) -> ScheduleConfig:
    """What the denoiser predicts; its betas are assumed to be the official ones, maybe rescaled."""
    kind = scheduler.get("prediction_type", "epsilon")
    if kind not in _PREDICTIONS:
        raise ValueError(
            f"{SCHEDULER} has prediction_type {shown(repr(kind))}; a denoiser can predict "
            f"{' or '.join(_PREDICTIONS)}"
        )
    return ScheduleConfig(
        prediction=_PREDICTIONS[kind],
        zero_terminal_snr=scheduler.get("rescale_betas_zero_snr", False),
    )


def _scheduler_entries(schedule: ScheduleConfig) -> dict[str, Any]:
    """The folder's scheduler: PNDM, as in the paper, and DDIM for models that predict v.

    Diffusers' PNDM extrapolates v itself instead of the noise, and cannot start from pure noise.
    """
    entries = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": _DIFFUSERS,
        "beta_end": schedule.linear_end,
        "beta_schedule": "scaled_linear",
        "beta_start": schedule.linear_start,
        "num_train_timesteps": schedule.num_timesteps,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    if schedule.prediction == "v":
        del entries["skip_prk_steps"]
        entries |= {
            "_class_name": "DDIMScheduler",
            "clip_sample": False,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": schedule.zero_terminal_snr,
            "timestep_spacing": "trailing" if schedule.zero_terminal_snr else "leading",
        }
    return entries


def _exemplar_config(tower: Mapping[str, Any]) -> ExemplarConfig:
    return ExemplarConfig(
        image_size=tower["image_size"],
        patch_size=tower["patch_size"],
        hidden_size=tower["hidden_size"],
        num_layers=tower["num_hidden_layers"],
        num_heads=tower["num_attention_heads"],
        mapper_layers=(tower["num_hidden_layers"] + 1) // 5,  # diffusers' own rule
    )


def diffusers_configs(config: PBEConfig) -> dict[str, dict[str, Any]]:
    """The JSON files of a diffusers folder, by their paths in it.

    Raises:
        ValueError: An architecture that diffusers' classes cannot represent.
    """
    unet, vae, tower = config.unet, config.vae, config.exemplar
    levels = range(len(unet.channel_mult))
    attends = [2**level in unet.attention_resolutions for level in levels]
    scheduler = _scheduler_entries(config.schedule)
    files: dict[str, dict[str, Any]] = {
        "model_index.json": {
            "_class_name": "PaintByExamplePipeline",
            "_diffusers_version": _DIFFUSERS,
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "image_encoder": ["paint_by_example", "PaintByExampleImageEncoder"],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", scheduler["_class_name"]],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        SCHEDULER: scheduler,
        "feature_extractor/preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": tower.image_size, "width": tower.image_size},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(CLIP_MEAN),
            "image_std": list(CLIP_STD),
            "resample": 3,  # bicubic
            "size": {"shortest_edge": tower.image_size},
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "_diffusers_version": _DIFFUSERS,
            "attention_head_dim": unet.num_heads,
            "block_out_channels": [unet.model_channels * m for m in unet.channel_mult],
            "cross_attention_dim": unet.context_dim,
            "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            "in_channels": unet.in_channels,
            "layers_per_block": unet.num_res_blocks,
            "norm_num_groups": unet.norm_groups,
            "out_channels": unet.out_channels,
            "sample_size": config.resolution // vae.downscale,
            "up_block_types": [
                "CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)
            ],
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": _DIFFUSERS,
            "block_out_channels": [vae.ch * m for m in vae.ch_mult],
            "down_block_types": ["DownEncoderBlock2D"] * len(vae.ch_mult),
            "latent_channels": vae.z_channels,
            "layers_per_block": vae.num_res_blocks,
            "sample_size": config.resolution,
            "scaling_factor": vae.scale_factor,
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.ch_mult),
        },
        "image_encoder/config.json": {
            # In full: diffusers' class takes it for a CLIPConfig, which has no defaults for these.
            "architectures": ["PaintByExampleImageEncoder"],
            "attention_dropout": 0.0,
            "dropout": 0.0,
            "hidden_act": "quick_gelu",
            "hidden_size": tower.hidden_size,
            "image_size": tower.image_size,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": 4 * tower.hidden_size,
            "layer_norm_eps": 1e-5,
            "model_type": "clip_vision_model",
            "num_attention_heads": tower.num_heads,
            "num_channels": 3,
            "num_hidden_layers": tower.num_layers,
            "patch_size": tower.patch_size,
            "projection_dim": unet.context_dim,
        },
    }
    # Not everything survives, such as the number of mapper layers: read it back and compare.
    written = {folder: files[f"{folder}/config.json"] for folder in FOLDERS}
    try:
        survives = diffusers_config({**written, SCHEDULER: scheduler}) == config
    except ValueError:  # a mapper without layers, where the tower has fewer than four
        survives = False
    if not survives:
        raise ValueError(
            "diffusers' classes cannot represent this architecture (they derive the number of "
            "mapper layers from the tower's, and know only one token and the official schedule); "
            "keep it as safetensors"
        )
    return files
