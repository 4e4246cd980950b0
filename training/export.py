"""Turn a checkpoint of a run into a model file.

Only the run's folder and what it started from are needed, not the pictures: frozen weights come
from `init` again, trained ones from the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from pbe_model.checkpoints import load as checkpoint
from pbe_model.checkpoints import save as saving
from pbe_model.checkpoints.lora import save_lora
from pbe_model.config import CONFIGS
from pbe_model.model import PaintByExample
from pbe_model.sampling.samplers import SAMPLERS
from pbe_model.untrusted import first_line, read_bytes
from training import checkpoints as state
from training.config import MAX_CONFIG, RunConfig, one_sentence
from training.optim import ema
from training.stages import exemplar
from training.stages.diffusion import freeze, starting_model
from training.stages.lora import lora_state, merge_lora

Layout = Literal["safetensors", "official", "diffusers", "lora"]

_HELPERS = "thumbnail."  # trained along, no part of the model


def export(
    run: Path,
    out: Path,
    *,
    layout: Layout = "safetensors",
    dtype: torch.dtype = torch.float32,
    weights: str | None = None,
    ema_length: float | None = None,
    step: int | None = None,
    init: Path | None = None,
    init_tower: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the model of a run, finished or not.

    A first-stage run gives a file of the autoencoder alone, its scale factor such that latents
    have unit variance: what `init` of a diffusion run takes. A run of the exemplar stage gives that
    of its `init` with the exemplar encoder beside it. Adapters (LoRA) are merged into the
    weights unless the layout is their own.

    Args:
        run: Folder of the run.
        out: File, or for diffusers folder, to write, whole or not at all.
        layout: Ours, the official checkpoint's (a torch file), diffusers' folder, or the adapters
            of a LoRA run alone, as safetensors.
        dtype: Type of the weights.
        weights: `"raw"` as trained, `"ema"` their classic average, or a power-function average by
            its relative length in the configuration; `None` takes `"ema"` where the run keeps it.
        ema_length: In place of `weights`, a relative length to reconstruct the average of.
        step: Of the checkpoint, or with `ema_length` of the snapshot; `None` takes the newest.
        init: In place of the run's own, if that has moved.
        init_tower: In place of the run's own, if that has moved.
        defaults: Values of `pbe_model.config.EditDefaults` by name, for the file's metadata; those
            that are `None` stay as they were.

    Returns:
        The training record, which all layouts of safetensors keep in the metadata.

    Raises:
        ValueError: No run there, nothing saved yet, no such weights, what it started from is gone,
            or a layout that cannot hold the model.
    """
    config = _config(run, init, init_tower)
    adapters = config.lora.rank > 0
    if layout == "lora" and not adapters:
        raise ValueError(f"{run} trained no adapters (its lora.rank is 0); choose another layout")
    given = {name: value for name, value in (defaults or {}).items() if value is not None}
    if given and (layout != "safetensors" or config.stage != "diffusion"):
        raise ValueError(
            f"{', '.join(given)} would be lost: only a whole model in layout safetensors says what "
            "it paints with; leave that out"
        )
    if config.stage != "diffusion" and layout != "safetensors":
        what = "a first stage" if config.stage == "first_stage" else "an exemplar encoder"
        raise ValueError(f"{what} alone has no {layout} layout; use safetensors")
    if layout in ("safetensors", "lora") and out.suffix != ".safetensors":
        raise ValueError(f"{out} would not be found as safetensors; end it in .safetensors")
    # Snapshots of averages stay when checkpoints go, so their steps are others.
    path = _checkpoint(run, step if ema_length is None else None)
    saved = state.load(path, mmap=True)
    if ema_length is None:
        chosen, parameters = _parameters(run, saved, weights)
        steps, samples = saved["step"], saved["samples"]
    elif weights is None:
        chosen = f"average of relative length {ema_length:g}"
        parameters = ema.reconstruct(run, ema_length, step)
        steps = step or max(map(state.step_of, state.checkpoints(run / ema.SNAPSHOTS)))
        samples = steps * config.batch_size
    else:
        raise ValueError("weights and ema_length exclude each other; give one of them")
    parameters = {n: tensor for n, tensor in parameters.items() if not n.startswith(_HELPERS)}
    # Of the weights that were validated, and of no others.
    validated = "ema" if "classic" in saved["ema"] else "raw"
    record: dict[str, Any] = {
        "steps": steps,
        "samples": samples,
        "weights": chosen,
        "validation": saved["figures"] if chosen == validated else {},
        "run": _without_paths(config),
    }
    if config.stage == "first_stage":
        model = _first_stage(config, saved["figures"], path)
        state.load_trainable(model, parameters, path)
        saving.save_model(out, model, dtype=dtype, metadata={"training": record}, parts=["vae"])
        return record
    model = starting_model(config)
    if config.stage == "exemplar":
        exemplar.freeze(model)
        state.load_trainable(model, parameters, path)
        parts = ["vae", "encoder"]
        saving.save_model(out, model, dtype=dtype, metadata={"training": record}, parts=parts)
        return record
    usual = replace(model.config.defaults, **given)
    if usual.sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {usual.sampler!r}; choose from {', '.join(SAMPLERS)}")
    model.config = replace(model.config, defaults=usual)
    freeze(model, config)
    state.load_trainable(model, parameters, path)
    assert config.init is not None, "a diffusion run starts from something"
    before = checkpoint.read(config.init).metadata.get("training")
    metadata: dict[str, Any] = {"training": {**record, "init": json.loads(before or "null")}}
    if layout == "lora":
        metadata |= {
            "rank": config.lora.rank,
            "alpha": config.lora.alpha or config.lora.rank,
            "base": config.init.name,
        }
        save_lora(out, lora_state(model), model.config, dtype=dtype, metadata=metadata)
        return record
    if adapters:
        merge_lora(model)
    model.eval().requires_grad_(False)
    if layout == "official":
        saving.save_official(out, model, dtype=dtype)
    elif layout == "diffusers":
        saving.save_diffusers(out, model, dtype=dtype)
    else:
        saving.save_model(out, model, dtype=dtype, metadata=metadata)
    return record


def _config(run: Path, init: Path | None, init_tower: Path | None) -> RunConfig:
    """The run's configuration, and what it started from seen to be there."""
    file = run / "config.json"
    if not file.is_file():
        raise ValueError(f"{run} is no training run: it has no config.json")
    try:
        config = RunConfig.model_validate_json(read_bytes(file, MAX_CONFIG))
    except (ValidationError, OSError, ValueError) as error:
        reason = first_line(error)
        if isinstance(error, ValidationError):
            reason = one_sentence(error)
        raise ValueError(
            f"{file} is no configuration of this version ({reason}); train and export with the "
            "same version"
        ) from error
    moved = {"init": init, "init_tower": init_tower}
    config = config.model_copy(update={name: path for name, path in moved.items() if path})
    if config.stage != "first_stage":
        for name in moved:
            path = getattr(config, name)
            if path is not None and not path.exists():
                raise ValueError(
                    f"the run's {name} is {path}, which is not there, and the frozen weights are; "
                    f"say where it is with --{name.replace('_', '-')} FILE"
                )
    return config


def _checkpoint(run: Path, step: int | None) -> Path:
    found = {state.step_of(path): path for path in state.checkpoints(run / "checkpoints")}
    if not found:
        raise ValueError(f"{run} has no checkpoint yet; let it train to its first save")
    if step is None:
        step = max(found)
    if step not in found:
        raise ValueError(
            f"{run} has no checkpoint of step {step}; it has {', '.join(map(str, found))}"
        )
    return found[step]


def _parameters(
    run: Path, saved: Mapping[str, Any], weights: str | None
) -> tuple[str, dict[str, Tensor]]:
    """What the chosen weights are called, and they themselves."""
    averages = {"ema" if name == "classic" else name: kept for name, kept in saved["ema"].items()}
    sets = {"raw": saved["module"], **averages}
    chosen = weights or ("ema" if "ema" in sets else "raw")
    if chosen not in sets:
        raise ValueError(f"{run} keeps no weights called {chosen!r}; it has {', '.join(sets)}")
    return chosen, sets[chosen]


def _first_stage(config: RunConfig, figures: Mapping[str, float], path: Path) -> PaintByExample:
    """A model whose first stage alone is trainable."""
    if "latent_std" not in figures:
        raise ValueError(
            f"{path} does not know its latents' deviation (latent_std), which the scale factor "
            "follows from; let the run go on to its next validation (log.sample_every)"
        )
    sizes = CONFIGS[config.model]
    vae = replace(sizes.vae, scale_factor=round(1 / figures["latent_std"], 6))
    model = PaintByExample(replace(sizes, vae=vae))
    model.unet.requires_grad_(False)
    model.encoder.requires_grad_(False)
    return model


def _without_paths(config: BaseModel) -> dict[str, Any]:
    """A configuration as JSON has it, without the places of files on the machine."""
    values = config.model_dump(mode="json")
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Path):
            del values[name]
        elif isinstance(value, BaseModel):
            values[name] = _without_paths(value)
    return values
