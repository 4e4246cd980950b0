"""Networks with random weights to measure, of the published size or tiny."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pbe_model import PaintByExample
from pbe_model.config import V1, ExemplarConfig, PBEConfig, UNetConfig, VAEConfig

SMALL = PBEConfig(
    unet=UNetConfig(
        model_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_resolutions=(1, 2),
        context_dim=16,
        norm_groups=8,
    ),
    vae=VAEConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1, scale_factor=0.5),
    exemplar=ExemplarConfig(
        image_size=16, patch_size=8, hidden_size=64, num_layers=1, num_heads=1, mapper_layers=1
    ),
    resolution=16,
)
HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def sizes(small: bool) -> PBEConfig:
    """The published sizes, or tiny ones."""
    return SMALL if small else V1


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Draw every parameter, also those that start at 0, so that each one matters.

    Signals keep their size from layer to layer, as trained networks' do.
    """
    parameters = list(module.parameters())
    generator = torch.Generator(parameters[0].device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        parameter.normal_(generator=generator)
        if parameter.ndim > 1:
            parameter.mul_(parameter[0].numel() ** -0.5)
        else:
            parameter.mul_(0.1).add_(name.endswith("weight"))


def random_model(config: PBEConfig, device: torch.device) -> PaintByExample:
    """A model with random float32 weights, ready for `edit`."""
    with torch.device(device):
        model = PaintByExample(config)
    randomise(model)
    return model.eval().requires_grad_(False)


def unet_arguments(
    config: PBEConfig,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    side: int | None = None,
    tokens: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the denoiser takes in a guided step: input of one picture, timestep, both contexts.

    Drawn on the CPU, so that every device gets the same.

    Args:
        config: Sizes.
        device: Where they go.
        dtype: Of what is not a timestep.
        side: Of the latent; by default that of the model's resolution.
        tokens: Of a context.
    """
    generator = torch.Generator().manual_seed(1)
    side = side or config.resolution // config.vae.downscale
    cpu = torch.device("cpu")
    x = torch.randn(1, config.unet.in_channels, side, side, generator=generator, device=cpu)
    context = torch.randn(2, tokens, config.unet.context_dim, generator=generator, device=cpu)
    timestep = torch.tensor([500.0], device=cpu)
    return x.to(device, dtype), timestep.to(device), context.to(device, dtype)


def relative_error(found: Tensor, reference: Tensor) -> float:
    """`||found - reference|| / ||reference||` in float64; NaN if anything is."""
    found, reference = found.double().cpu(), reference.double().cpu()
    assert found.shape == reference.shape, (found.shape, reference.shape)
    return ((found - reference).norm() / reference.norm()).item()
