"""The smallest models that still have every kind of layer, with no weight left at 0 or 1."""

from dataclasses import replace

import torch
from torch import nn

from pbe_model import PaintByExample, PBEConfig
from pbe_model.config import ExemplarConfig, ScheduleConfig, UNetConfig, VAEConfig

torch.set_num_threads(1)

SMALL = PBEConfig(
    unet=UNetConfig(
        model_channels=32,
        num_res_blocks=2,
        channel_mult=(1, 2),
        attention_resolutions=(1,),  # one level with transformers, one without
        context_dim=24,
    ),
    vae=VAEConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1),
    exemplar=ExemplarConfig(
        image_size=16, patch_size=8, hidden_size=64, num_layers=9, num_heads=1, mapper_layers=2
    ),
    resolution=32,
)
SMALL_ALL = replace(SMALL, tokens="all")
SMALL_V = replace(SMALL, schedule=ScheduleConfig(prediction="v", zero_terminal_snr=True))


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Draw every parameter, those included that start at 0 or 1, so that each one matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.normal_(generator=generator)
            if parameter.ndim > 1:
                parameter.mul_(parameter[0].numel() ** -0.5)
            elif name.endswith("weight"):
                parameter.mul_(0.2).add_(1)
            else:
                parameter.mul_(0.2)


def small_model(config: PBEConfig = SMALL, seed: int = 0) -> PaintByExample:
    """A model with random weights, as `from_checkpoint` returns one."""
    model = PaintByExample(config)
    randomise(model, seed)
    return model.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers, the same at every call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers in [0, 1), the same at every call."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over the largest value."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
