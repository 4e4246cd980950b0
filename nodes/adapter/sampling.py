"""One run of the host's sampler on our model, with its previews, progress and cancel button."""

from __future__ import annotations

import comfy.model_patcher
import comfy.sample
import comfy.sd
import comfy.utils
import latent_preview
import node_helpers
import torch
from torch import Tensor

from ...pbe_model.config import PBEConfig
from .conditioning import Conditioning, check_order, check_tokens


def check_parts(
    config: PBEConfig, vae: comfy.sd.VAE, positive: Conditioning, negative: Conditioning
) -> None:
    """Refuse parts of different checkpoints before they fail in the middle of a run.

    Raises:
        ValueError: VAE or conditioning do not fit the model.
    """
    if vae.spacial_compression_encode() != config.vae.downscale:
        raise ValueError(
            f"this VAE makes latents of 1/{vae.spacial_compression_encode()} of the picture's "
            f"size, but the model was trained on 1/{config.vae.downscale}; connect the VAE of "
            "Load Paint by Example"
        )
    for name, conditioning in (("positive", positive), ("negative", negative)):
        for tokens, entries in conditioning or [(None, {})]:
            check_tokens(config, name, tokens, entries)
    check_order([entries for _, entries in positive], [entries for _, entries in negative])


def sample(
    model: comfy.model_patcher.ModelPatcher,
    positive: Conditioning,
    negative: Conditioning,
    *,
    masked_latent: Tensor,
    hole_mask: Tensor,
    init_latent: Tensor | None,
    noise: Tensor,
    seed: int,
    steps: int,
    similarity: float,
    sampler: str,
    scheduler: str,
    denoise: float,
    sigmas: Tensor | None = None,
) -> Tensor:
    """Run the host's sampler, with its previews, progress bar and cancel button.

    Args:
        model: From `denoiser.load_model`.
        positive: The exemplar's context.
        negative: The learnable vector.
        masked_latent: Unscaled latent of the photo with the hole grey, (B, 4, h, w).
        hole_mask: At pixel size, (B, H, W), 1 = repaint.
        init_latent: Unscaled latent of the photo to start from; None starts from noise alone.
        noise: Standard normal, (B, 4, h, w).
        seed: For samplers that draw more noise on their way.
        steps: Steps of the sampler.
        similarity: Guidance scale.
        sampler: One of the host's samplers.
        scheduler: One of the host's schedulers.
        denoise: Share of the schedule that is run, as in KSampler.
        sigmas: Noise levels of a scheduler node, in place of steps, scheduler and denoise. From
            the model's highest on, or above, `init_latent` is left out.

    Returns:
        Unscaled latent, (B, 4, h, w).
    """
    if sigmas is not None:
        if len(sigmas) < 2:
            raise ValueError(
                f"sigmas holds {len(sigmas)} noise levels; connect a scheduler node with 1 step or "
                "more and a denoise above 0"
            )
        steps, denoise = len(sigmas) - 1, 1.0
        if float(sigmas[0]) >= float(model.get_model_object("model_sampling").sigma_max) * 0.9999:
            init_latent = None
    photo = {"concat_latent_image": masked_latent, "concat_mask": hole_mask}
    # The host adds the latent to the noise even at the highest noise level; zeros add nothing.
    start = torch.zeros_like(masked_latent) if init_latent is None else init_latent
    return comfy.sample.sample(
        model,
        noise,
        steps,
        similarity,
        sampler,
        scheduler,
        node_helpers.conditioning_set_values(positive, photo),
        node_helpers.conditioning_set_values(negative, photo),
        start,
        denoise=denoise,
        sigmas=sigmas,
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
