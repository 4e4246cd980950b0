"""What a MODEL and a VAE of the host hold, for saving."""

from __future__ import annotations

from functools import partial

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ...pbe_model.checkpoints.safetensors_io import Deferred
from .patches import WRAPPER, owner_of, patches_in

_PREFIX = "diffusion_model."


def denoiser_weights(model: comfy.model_patcher.ModelPatcher) -> dict[str, Deferred]:
    """The denoiser's weights with all patches applied, names without prefix, in float32.

    They are computed from the weights as they were loaded, one by one when they are asked for,
    wherever the host keeps them. The cancel button works between two.

    Raises:
        ValueError: Something works beside the weights and would be lost.
    """
    if model.injections:
        raise ValueError(
            f"this MODEL is changed by {', '.join(sorted(model.injections))}, which works beside "
            "the weights and cannot be saved with them; apply the LoRA with LoraLoaderModelOnly"
        )
    # As the host itself asks for them when it merges: the weight, then its patches.
    patched = model.get_key_patches(_PREFIX)
    progress = comfy.utils.ProgressBar(len(patched))

    def compute(key: str) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        progress.update(1)
        (weight, convert), *patches = patched[key]
        plain = convert(weight, inplace=False)  # a quantised weight as what it is computed in
        if not patches:
            return plain.to(torch.float32)
        result = comfy.lora.calculate_weight(
            patches, plain.to(device=model.load_device, dtype=torch.float32, copy=True), key
        )
        if result.shape != weight.shape:
            raise ValueError(
                f"a patch makes {key.removeprefix(_PREFIX)} {tuple(result.shape)} instead of "
                f"{tuple(weight.shape)}, which is another architecture; remove that LoRA or merge"
            )
        return result

    return {
        key.removeprefix(_PREFIX): Deferred(weight.shape, torch.float32, partial(compute, key))
        for key, ((weight, _), *_) in patched.items()
    }


def held_as(model: comfy.model_patcher.ModelPatcher, vae: comfy.sd.VAE) -> dict[str, torch.dtype]:
    """The type in which most weights of denoiser and VAE are kept."""
    weights = {"denoiser": model.model.diffusion_model.state_dict(), "VAE": vae.get_sd()}
    types = {part: [t.dtype for t in held.values()] for part, held in weights.items()}
    return {part: max(set(found), key=found.count) for part, found in types.items()}


def not_weights(model: comfy.model_patcher.ModelPatcher) -> list[str]:
    """Names of changes to a MODEL that are settings of a run, and so in no file."""
    options = model.model_options
    changes = [patch for *_, patch in patches_in(options["transformer_options"])]
    for value in options.values():
        changes += filter(callable, value if isinstance(value, list) else [value])
    keys = {key for kind in model.wrappers.values() for key, some in kind.items() if key and some}
    names = {owner_of(change) for change in changes} | keys | set(model.object_patches)
    return sorted(names - {WRAPPER})
