"""Paint by Example: first stage, exemplar encoder and denoiser together.

Tensors in, tensors out. There is no single forward pass: sampling calls the parts one by one. The
whole edit of a photo, with cropping and stitching, is `editing.edit`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .config import PBEConfig
from .networks.attention import Attention, sdpa_attention
from .networks.exemplar_encoder import ExemplarEncoder
from .networks.masked_inputs import unet_input
from .networks.unet import UNet
from .networks.vae import AutoencoderKL
from .sampling.schedule import NoiseSchedule


class PaintByExample(nn.Module):
    """The three networks and the noise schedule.

    Args:
        config: Architecture.
        attention: Backend of the denoiser's attention.
    """

    def __init__(self, config: PBEConfig, *, attention: Attention = sdpa_attention) -> None:
        super().__init__()
        self.config = config
        self.vae = AutoencoderKL(config.vae)
        self.encoder = ExemplarEncoder(config.exemplar, config.unet.context_dim, config.tokens)
        self.unet = UNet(config.unet, attention=attention)
        self.schedule = NoiseSchedule.linear(config.schedule)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path | None = None,
        *,
        config: PBEConfig | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = torch.float32,
        attention: str = "auto",
    ) -> PaintByExample:
        """Load a model, ready for `edit`.

        Args:
            path: A safetensors file, an official `.ckpt` or a diffusers folder; `None` loads the
                bundled model.
            config: Architecture; `None` reads it off the file.
            device: Device of the weights.
            dtype: Type of the weights; `None` keeps the file's.
            attention: `"auto"`, `"sdpa"` or `"xformers"`.

        Raises:
            ValueError: No such file, damaged, another architecture, or names missing or unexpected.
        """
        # Imported here, because the loader imports this module.
        from .checkpoints.load import load_model

        return load_model(path, config=config, device=device, dtype=dtype, attention=attention)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.encoder.learnable_vector.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.encoder.learnable_vector.dtype

    def encode(self, image: Tensor, noise: Tensor | None = None) -> Tensor:
        """Image to scaled latent.

        Args:
            image: `(B, 3, H, W)` in [-1, 1]; sides are multiples of `config.vae.downscale`.
            noise: Standard normal `(B, 4, h, w)` to sample the posterior with; `None` takes its
                mean.
        """
        posterior = self.vae.encode(image)
        latent = posterior.mean if noise is None else posterior.sample(noise)
        return self.config.vae.scale_factor * latent

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latent to `(B, 3, H, W)`, clamped to [-1, 1]."""
        return self.vae.decode(latent / self.config.vae.scale_factor).clamp(-1, 1)

    def predict_noise(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        masked_latent: Tensor,
        keep_mask: Tensor,
        context: Tensor,
    ) -> Tensor:
        """One evaluation of the denoiser: the noise, or v, by `config.schedule.prediction`.

        Args:
            noisy: `(B, 4, h, w)`.
            timesteps: `(B,)`.
            masked_latent: Scaled latent of the photo with the hole grey, `(B, 4, h, w)`.
            keep_mask: `(B, 1, h, w)`, 1 = keep.
            context: `(K * B, M, D)`; row `i` conditions input row `i % B`.

        Returns:
            `(K * B, 4, h, w)`.
        """
        return self.unet(unet_input(noisy, masked_latent, keep_mask), timesteps, context)
