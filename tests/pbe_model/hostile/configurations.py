"""A whole small model whose configuration, in the metadata, fits no model or is none."""

from __future__ import annotations

import json
from typing import Any

from pbe_model.checkpoints.infer_config import METADATA_KEY

from ..small import SMALL
from .case import HUGE, TERMINAL, Case, Table
from .headers import changed_model

_DAMAGED = "configuration in the file's metadata is damaged"


def _stating(text: str) -> Case:
    """The text in the place of the configuration."""
    return Case(changed_model(metadata={METADATA_KEY: text}), _DAMAGED)


def _with(says: str = "", **entries: Any) -> Case:
    """The right configuration with other entries, by names such as `unet__num_heads`."""
    values = json.loads(json.dumps(SMALL.to_dict()))
    for name, value in entries.items():
        part, _, entry = name.rpartition("__")
        (values[part] if part else values)[entry] = value
    text = json.dumps(values)
    return Case(changed_model(metadata={METADATA_KEY: text}), says or _DAMAGED)


def _nested(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


FILES: Table = {
    # ---- no configuration
    "page.safetensors": _stating("<html>"),
    "null.safetensors": _stating("null"),
    "list.safetensors": _stating("[]"),
    "deep.safetensors": _stating("[" * 100_000),
    "deep_objects.safetensors": _stating('{"a":' * 100_000),
    "digits.safetensors": _stating("1" * 5_000),
    "long.safetensors": _stating('"' + "a" * 4_000_000 + '"'),
    "unknown.safetensors": _stating('{"\\u001b[31m":1}'),
    "long_name.safetensors": _stating('{"' + "a" * 100_000 + '":1}'),
    # ---- numbers that do not go together
    "heads.safetensors": _with("is not divisible by num_heads", unet__num_heads=5),
    "tower_heads.safetensors": _with(exemplar__num_heads=7),
    "mapper_heads.safetensors": _with(exemplar__mapper_heads=3),
    "groups.safetensors": _with(unet__norm_groups=5),
    "odd_width.safetensors": _with(unet__model_channels=33, unet__norm_groups=1),
    "patches.safetensors": _with(exemplar__patch_size=7),
    "resolution_65536.safetensors": _with("resolution is 65536", resolution=65536),
    "resolution_33.safetensors": _with("33 is not divisible", resolution=33),
    "channels.safetensors": _with(unet__in_channels=4),
    "latents.safetensors": _with(vae__z_channels=16),
    "falling.safetensors": _with(schedule__linear_start=0.5, schedule__linear_end=0.1),
    "noise_beyond.safetensors": _with(schedule__linear_end=1e300),
    "terminal_snr.safetensors": _with(schedule__zero_terminal_snr=True),
    "levels.safetensors": _with(unet__channel_mult=[1] * 9),
    "no_levels.safetensors": _with(unet__channel_mult=[]),
    "many_levels.safetensors": _with(vae__ch_mult=[1] * 100_000),
    "blocks.safetensors": _with(unet__num_res_blocks=10**9),
    # ---- of another kind
    **{
        f"{name}_{kind}.safetensors": _with(**{name: value})
        for name in (
            "unet__model_channels",
            "vae__scale_factor",
            "exemplar__num_layers",
            "resolution",
        )
        for kind, value in {
            "zero": 0,
            "minus": -8,
            "text": TERMINAL,
            "none": None,
            "true": True,
            "list": [8],
            "empty": [],
            "nested": _nested(500),
            "table": {"a": 1},
            "huge": HUGE,
            "minus_huge": -HUGE,
            "infinite": float("inf"),
            "not_a_number": float("nan"),
        }.items()
    },
    "fraction.safetensors": _with(unet__model_channels=32.0),
    "number_for_levels.safetensors": _with(unet__channel_mult=2),
    "number_for_attention.safetensors": _with(unet__attention_resolutions=1),
    "text_for_levels.safetensors": _with(vae__ch_mult="12"),
    "lists_for_levels.safetensors": _with(vae__ch_mult=[[1], [2]]),
    "steps.safetensors": _with(schedule__num_timesteps=[5]),
    "context.safetensors": _with(unet__context_dim=[5]),
    "tokens.safetensors": _with(tokens=TERMINAL * 1_000),
    "tokens_list.safetensors": _with(tokens=_nested(500)),
    "prediction.safetensors": _with(schedule__prediction={"a": TERMINAL}),
    "snr_text.safetensors": _with(schedule__zero_terminal_snr=TERMINAL * 1_000),
    "part_text.safetensors": _with(unet=TERMINAL),
    "part_list.safetensors": _with(unet=[[1]]),
    "unknown_in_part.safetensors": _with(unet__none=1, **{f"vae__{TERMINAL}": 1}),
    "part_none.safetensors": _with(exemplar=None),
}
