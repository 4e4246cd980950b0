"""The denoiser's inputs, all in one place, because a mistake in them raises no error.

The order of the channels, the polarity and resize of the mask, and the grey of the hole are the
official ones (arXiv 2211.13227, section 3.2, and the official code); models of the same shapes with
other conventions exist.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def photo_channels(masked_latent: Tensor, keep_mask: Tensor) -> Tensor:
    """What the denoiser sees of the photo, in the channels after the noisy latent.

    Stable Diffusion's inpainting model has the mask before the masked photo.

    Args:
        masked_latent: Scaled latent of the photo with the hole grey, `(B, z, h, w)`.
        keep_mask: `(B, 1, h, w)`, 1 = keep.

    Returns:
        `(B, z + 1, h, w)`.
    """
    return torch.cat([masked_latent, keep_mask], dim=1)


def unet_input(noisy: Tensor, masked_latent: Tensor, keep_mask: Tensor) -> Tensor:
    """All channels of the denoiser: the noisy latent, `(B, z, h, w)`, then `photo_channels`.

    Returns:
        `(B, 2 z + 1, h, w)`.
    """
    return torch.cat([noisy, photo_channels(masked_latent, keep_mask)], dim=1)


def latent_keep_mask(
    hole_mask: Tensor, latent_size: tuple[int, int], binarize: bool = True
) -> Tensor:
    """The UNet's ninth channel: 1 = keep.

    The official resize is bilinear without antialias, and its result is not rounded: with eight
    pixels a cell it is the mean of the cell's four middle pixels, so cells on the edge hold
    fractions. diffusers takes the nearest pixel; newer torchvision antialiases.

    Args:
        hole_mask: (B, 1, H, W) float, 1 = repaint, at the picture's size.
        latent_size: (h, w) of the latent.
        binarize: True for inference: the hole is where the mask is strictly above 0.5, decided
            before the resize. False for training: the soft mask as it is.

    Returns:
        (B, 1, h, w), in [0, 1].
    """
    hole = (hole_mask > 0.5).to(hole_mask) if binarize else hole_mask
    return 1 - F.interpolate(hole, size=latent_size, mode="bilinear", antialias=False)


def masked_image(image: Tensor, keep_mask: Tensor) -> Tensor:
    """The photo with its hole greyed out, as the VAE encodes it.

    Args:
        image: (B, 3, H, W) in [-1, 1].
        keep_mask: (B, 1, H, W), 1 = keep; soft masks fade to grey.

    Returns:
        (B, 3, H, W) in [-1, 1]; 0, that is grey, in the hole.
    """
    return image * keep_mask
