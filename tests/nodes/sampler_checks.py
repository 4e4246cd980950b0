"""Samplers and schedulers of the host, on our MODEL and on a UNet of the host's own.

Each sampler with the first scheduler and each scheduler with the first sampler; every pair where
the environment has EVERY_PAIR. Runs inside the host's interpreter, see `checks.py`. Its results:
for each "sampler scheduler" how our MODEL and the host's own fared: "ok", "not finite" or the
exception.
"""

import itertools
import os
from dataclasses import replace

from adapter_checks import adapter, ours  # starts the host's modules

# isort: split
import comfy.latent_formats
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch

SIDE, STEPS = 8, 2


def our_model():
    """Random weights, small; with what conditions it: tokens, photo and mask."""
    model = ours("pbe_model.config").TINY
    config = replace(model, unet=replace(model.unet, channel_mult=(1, 2)))
    torch.manual_seed(0)
    unet = ours("pbe_model.networks.unet").UNet(config.unet)
    patcher = adapter.load_model(config, unet.state_dict(), comfy.latent_formats.SD15())
    photo = {
        "concat_latent_image": torch.randn(1, 4, SIDE, SIDE),
        "concat_mask": torch.ones(1, 8 * SIDE, 8 * SIDE),
    }
    contexts = torch.randn(2, 1, config.unet.context_dim).split(1)
    return patcher, [
        [[tokens, tag | photo] for tokens, tag in conditioning]
        for conditioning in adapter.tagged(*contexts)
    ]


def host_model():
    """Stable Diffusion 1.5 of the host, at the same sizes."""
    sizes = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32,
        "num_res_blocks": [1, 1], "channel_mult": [1, 2], "num_heads": 8, "context_dim": 192,
        "transformer_depth": [0, 1], "transformer_depth_middle": 1,
        "transformer_depth_output": [0, 0, 1, 1], "use_spatial_transformer": True,
        "use_linear_in_transformer": False, "adm_in_channels": None, "legacy": False,
    }  # fmt: skip
    config = comfy.supported_models.SD15(sizes)
    config.set_inference_dtype(torch.float32, None)
    torch.manual_seed(0)
    model = config.get_model({}, device=torch.device("cpu"))
    for parameter in model.diffusion_model.parameters():  # the host's layers start empty
        torch.nn.init.normal_(parameter, std=0.02)
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=cpu, offload_device=cpu)
    return patcher, [[[torch.randn(1, 77, 192), {}]] for _ in range(2)]


def fares(model, conditions, sampler: str, scheduler: str) -> str:
    """What comes of a short run."""
    noise = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    try:
        latent = comfy.sample.sample(
            model, noise, STEPS, 3.0, sampler, scheduler, *conditions, torch.zeros_like(noise),
            disable_pbar=True, seed=0,
        )  # fmt: skip
    except Exception as error:  # whatever the host's samplers raise is the result
        return f"{type(error).__name__}: {error}"[:200]
    return "ok" if latent.isfinite().all() and latent.shape == noise.shape else "not finite"


def results() -> dict[str, list[str]]:
    found = {}
    with torch.inference_mode():
        models = our_model(), host_model()
        lists = comfy.samplers.KSampler.SAMPLERS, comfy.samplers.KSampler.SCHEDULERS
        for pair in itertools.product(*lists):
            if "EVERY_PAIR" in os.environ or pair[0] == lists[0][0] or pair[1] == lists[1][0]:
                found[" ".join(pair)] = [fares(*model, *pair) for model in models]
    return found
