"""The first stage as a native VAE, and the format of its latents."""

from __future__ import annotations

import comfy.latent_formats
import comfy.sd
import torch
from torch import Tensor

from ...pbe_model.config import VAEConfig
from ...pbe_model.networks.masked_inputs import masked_image


def load_vae(config: VAEConfig, state_dict: dict[str, Tensor]) -> comfy.sd.VAE:
    """A native VAE of any width; the host detects only the standard one by itself."""
    sizes = {
        "double_z": True,
        "z_channels": config.z_channels,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.ch,
        "ch_mult": list(config.ch_mult),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    params = {"embed_dim": config.z_channels, "ddconfig": sizes}
    vae = comfy.sd.VAE(sd=state_dict, config={"params": params})
    vae.downscale_ratio = vae.upscale_ratio = config.downscale
    vae.latent_channels = config.z_channels
    return vae


def encode_masked(vae: comfy.sd.VAE, image: Tensor, hole_mask: Tensor) -> Tensor:
    """Latent of a photo whose hole (mask > 0.5) is grey.

    Args:
        vae: Takes and gives what the host's VAEs do.
        image: (B, H, W, 3) in [0, 1].
        hole_mask: (B, H, W), 1 = repaint.

    Returns:
        Unscaled, (B, 4, h, w).
    """
    keep_mask = (hole_mask <= 0.5).to(image)[..., None]
    return vae.encode(masked_image(image * 2 - 1, keep_mask) / 2 + 0.5)


def latent_format(config: VAEConfig, vae: comfy.sd.VAE) -> comfy.latent_formats.LatentFormat:
    """Scale of the latents, and how the preview colours them."""
    if config == VAEConfig():
        return comfy.latent_formats.SD15(config.scale_factor)
    return NarrowLatent(config, *_preview_colours(config, vae))


class NarrowLatent(comfy.latent_formats.LatentFormat):
    """Latents of a first stage that is not Stable Diffusion's."""

    def __init__(self, config: VAEConfig, rgb_factors: Tensor, rgb_bias: Tensor) -> None:
        self.scale_factor = config.scale_factor
        self.latent_channels = config.z_channels
        self.spacial_downscale_ratio = config.downscale
        self.latent_rgb_factors = rgb_factors.tolist()
        self.latent_rgb_factors_bias = rgb_bias.tolist()


def _preview_colours(config: VAEConfig, vae: comfy.sd.VAE) -> tuple[Tensor, Tensor]:
    """The linear map from scaled latents to colours in [-1, 1] that fits plain patches best."""
    generator = torch.Generator().manual_seed(0)
    latents, colours = [], []
    for cells in (16, 4, 1):  # of the latent, each way, in a patch; a picture has 16
        patches = torch.rand(8, 16 // cells, 16 // cells, 3, generator=generator)
        colour = _enlarged(patches, cells) * 2 - 1
        latent = vae.encode(_enlarged(patches, cells * config.downscale)) * config.scale_factor
        for values, found in ((latent.float().cpu().movedim(1, -1), latents), (colour, colours)):
            found.append(values[:, 1:-1, 1:-1].flatten(0, 2))  # without the rim
    # A damaged VAE should fail where it is used, with a sentence, and not here.
    features = torch.cat(latents).nan_to_num()
    features = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    solution = torch.linalg.lstsq(features, torch.cat(colours)).solution
    return solution[:-1], solution[-1]


def _enlarged(pictures: Tensor, factor: int) -> Tensor:
    """`(B, h, w, C)`, every pixel as a square of `factor` pixels."""
    return pictures.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
