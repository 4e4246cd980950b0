"""Turn a run's newest checkpoint into a model file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from pbe_model import checkpoint, saving
from pbe_model.model import PaintByExample
from training import state
from training.config import RunConfig
from training.diffusion import Diffusion
from training.ema import EMA
from training.first_stage import FirstStage

Layout = Literal["safetensors", "official"]


def export(
    run: Path, out: Path, *, layout: Layout = "safetensors", dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """Write the model of a run; averaged weights where the run keeps an average.

    A first-stage run gives a file of the autoencoder alone, its scale factor measured so that
    latents have unit variance: what `init` of a diffusion run takes.

    Args:
        run: Folder of the run.
        out: File to write, whole or not at all.
        layout: Ours, or the official checkpoint's (a torch file, float32).
        dtype: Type of the weights in our layout.

    Returns:
        The training record that is stored in the metadata.

    Raises:
        ValueError: No run there, nothing saved yet, or a layout that the stage has not.
    """
    settings = run / "config.json"
    if not settings.is_file():
        raise ValueError(f"{run} is no training run: it has no config.json")
    config = RunConfig.model_validate_json(settings.read_text())
    saved = state.load_newest(run / "checkpoints")
    if saved is None:
        raise ValueError(f"{run} has no checkpoint yet; let it train to its first save")
    stage_class = FirstStage if config.stage == "first_stage" else Diffusion
    stage = stage_class(config, torch.device("cpu"))
    stage.module.load_state_dict(saved["module"])
    if config.ema:
        ema = EMA(stage.module, config.ema)
        ema.load_state_dict(saved["ema"])
        ema.swap(stage.module)
    stage.module.eval()
    record = {
        "steps": saved["step"],
        "samples": saved["step"] * config.batch_size,
        "validation": stage.validate(),
        "run": json.loads(
            config.model_dump_json(exclude={"out": True, "init": True, "data": {"root": True}})
        ),
    }
    if isinstance(stage, FirstStage):
        if layout != "safetensors":
            raise ValueError("a first stage alone has no official layout; use safetensors")
        deviation = record["validation"]["latent_std"]
        sizes = stage.model_config
        vae = replace(sizes.vae, scale_factor=round(1 / deviation, 6))
        model = PaintByExample(replace(sizes, vae=vae))
        model.vae.load_state_dict(stage.module.vae.state_dict())
        saving.save_model(out, model, dtype=dtype, metadata={"training": record}, parts=("vae",))
        return record
    if layout == "official":
        saving.save_official(out, stage.model)
    else:
        assert config.init is not None, "a diffusion run has a first stage"
        first_stage = json.loads(checkpoint.read(config.init).metadata.get("training", "null"))
        metadata = {"training": {**record, "first_stage": first_stage}}
        saving.save_model(out, stage.model, dtype=dtype, metadata=metadata)
    return record
