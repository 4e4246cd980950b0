"""Memory of the card that our MODEL takes in ComfyUI, beside its own Stable Diffusion 1.5.

Both have the published sizes and random weights in fp16, and run in the same graph. It keeps
encoder and VAE out of the measurement: the exemplar comes from a file, and the photo is tiny, whose
latent our MODEL enlarges.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.gpu.comfyui import ComfyUI, Prompt
from benchmarks.gpu.networks import random_model, randomise
from pbe_model.checkpoints.exemplar_file import EncodedExemplar, save_exemplar
from pbe_model.checkpoints.save import save_model
from pbe_model.config import V1
from pbe_model.networks.unet import UNet

STEPS, SIDE = 4, 512
LEFT = 0.8
"""GB of weights that have place where the card is made small; those of the denoiser take 1.7."""
FLAGS = {
    "--novram": ("--novram",),
    "--lowvram": ("--lowvram", "--disable-dynamic-vram"),
    "dynamic memory": (),
}
"""What the server is started with."""
_NEEDED = 0.8
"""GB that the host keeps free for a step."""
_SETTLING = 5.0  # seconds


def reserved_for_others(free: int) -> tuple[str, ...]:
    """Arguments with which the host leaves place for half of the weights on a card of any size."""
    return ("--reserve-vram", f"{free / 2**30 - LEFT - _NEEDED:.2f}")


@torch.no_grad()
def write_models(folder: Path, device: torch.device) -> None:
    """Files of both models and an exemplar, in the folders where the host looks for models."""
    for name in ("paint_by_example", "diffusion_models", "pbe_exemplars"):
        (folder / name).mkdir(parents=True)
    model = random_model(V1, device).half().cpu()
    save_model(folder / "paint_by_example/ours.safetensors", model, dtype=torch.float16)
    del model
    with device:
        unet = UNet(V1.unet)
    randomise(unet)
    weights = {name: tensor.half().cpu() for name, tensor in unet.state_dict().items()}
    first = "input_blocks.0.0.weight"
    weights[first] = weights[first][:, :4].contiguous()
    save_file(weights, folder / "diffusion_models/theirs.safetensors")
    token = torch.randn(1, 1, V1.unet.context_dim)
    exemplar = EncodedExemplar(token, -token)
    save_exemplar(folder / "pbe_exemplars/any.safetensors", exemplar)


def graph(ours: bool, *, steps: int = STEPS, side: int = SIDE) -> Prompt:
    """A run of one of the two models from noise."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    theirs = node("UNETLoader", unet_name="theirs.safetensors", weight_dtype="default")
    return {
        "1": node("PBELoader", checkpoint="paint_by_example/ours.safetensors",
                  weight_dtype="default", attention="auto"),
        "2": theirs,
        "3": node("PBELoadExemplar", exemplar="any.safetensors"),
        "4": node("EmptyImage", width=64, height=64, batch_size=1, color=0),
        "5": node("SolidMask", value=1.0, width=64, height=64),
        "6": node("InpaintModelConditioning", positive=["3", 0], negative=["3", 1], vae=["1", 2],
                  pixels=["4", 0], mask=["5", 0], noise_mask=False),
        "7": node("EmptyLatentImage", width=side, height=side, batch_size=1),
        "8": node("KSampler", model=["1" if ours else "2", 0], positive=["6", 0],
                  negative=["6", 1], latent_image=["7", 0], seed=1, steps=steps, cfg=5.0,
                  sampler_name="euler", scheduler="normal", denoise=1.0),
        "9": node("SaveLatent", samples=["8", 0], filename_prefix="latents"),
    }  # fmt: skip


def peaks(host: ComfyUI, **size: int) -> tuple[float, float]:
    """The most that sampling takes, above what the server holds before, in MiB: ours, SD 1.5."""
    found = []
    for ours in (True, False):
        host.free()
        before, until = host.held(), time.monotonic() + _SETTLING
        while time.monotonic() < until:
            time.sleep(0.5)
            before = min(before, host.held())
        found.append((host.run(graph(ours, **size), watch=True).held - before) / 2**20)
    return found[0], found[1]
