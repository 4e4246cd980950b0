"""How the package's own model paints a batch of crops: encode, sample with guidance, decode."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..memory import in_parts
from ..model import PaintByExample
from ..networks.exemplar_encoder import normalise
from ..networks.masked_inputs import latent_keep_mask, masked_image
from ..sampling.samplers import Callback, Denoise, guidance, sample
from .batch import repeat_rows
from .exemplar_image import Fit, preprocess

SEEDS = 2**64
"""Seeds are 0 to one less than this, and go on from there at 0."""


@dataclass(frozen=True)
class InpaintInputs:
    """What the denoiser sees of the crops, on the model's device.

    Attributes:
        latent: Scaled latent of the whole crops, `(B, 4, h, w)`.
        masked_latent: Scaled latent of the crops with their holes grey, `(B, 4, h, w)`, or
            `(N * B, 4, h, w)` where each of N variations has its own sample of it.
        keep_mask: `(B, 1, h, w)`, 1 = keep.
    """

    latent: Tensor
    masked_latent: Tensor
    keep_mask: Tensor


def initial_noise(
    seed: int, shape: tuple[int, int, int], num_images: int = 1, num_crops: int = 1
) -> Tensor:
    """The noise of a batch; image `i` comes from `seed + i`, so it can be reproduced alone.

    Args:
        seed: Non-negative; counted modulo `SEEDS`, as is `seed + i`.
        shape: One latent's, `(4, h, w)`.
        num_images: Images in the batch.
        num_crops: Crops of each image, drawn from its seed one after another: the first does not
            depend on how many follow.

    Returns:
        float32 `(num_images * num_crops, 4, h, w)` on the CPU, the same on every machine; the
        crops of one image side by side.
    """
    seeds = [(seed + i) % SEEDS for i in range(num_images)]
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    # One crop at a time: torch draws other numbers for one large tensor than for small ones.
    return torch.stack(
        [torch.randn(shape, generator=g) for g in generators for _ in range(num_crops)]
    )


def encode_exemplar(
    model: PaintByExample,
    exemplar: Tensor,
    *,
    fit: Fit = "squash",
    exemplar_mask: Tensor | None = None,
) -> Tensor:
    """Exemplar `(H, W, 3)` in [0, 1] to context `(1, M, D)`; see `exemplar_image.preprocess`."""
    size = model.config.exemplar.image_size
    pixels = preprocess(exemplar, size, fit=fit, exemplar_mask=exemplar_mask)
    return model.encoder(normalise(pixels[None]).to(model.device, model.dtype))


def encode_crops(
    model: PaintByExample,
    crops: Tensor,
    hole_masks: Tensor,
    posterior_noise: Tensor | None = None,
) -> InpaintInputs:
    """Encode crops and their holes by the official rule (hole = mask > 0.5, filled with grey).

    All crops go at once where they fit in memory, else in as few parts as do.

    Args:
        model: Its first stage is used.
        crops: `(B, h, w, 3)` in [0, 1].
        hole_masks: `(B, h, w)`, 1 = repaint.
        posterior_noise: Standard normal `(N * B, 4, h', w')`, to sample the posterior of the masked
            latents N times; `None` takes its mode.
    """
    pixels = (crops.movedim(-1, 1) * 2 - 1).to(model.device, model.dtype)
    hole = (hole_masks[:, None] > 0.5).to(pixels)
    factor = model.config.vae.downscale
    size = (pixels.shape[-2] // factor, pixels.shape[-1] // factor)
    if posterior_noise is not None:
        # (N, B, ...) broadcasts against the posterior's (B, ...): the encoder runs once, not N
        # times.
        posterior_noise = posterior_noise.to(pixels).unflatten(0, (-1, len(pixels)))

    def encode_masked(first: int, last: int) -> Tensor:
        some = slice(first, last)
        noise = None if posterior_noise is None else posterior_noise[:, some]
        return model.encode(masked_image(pixels[some], 1 - hole[some]), noise)

    count, device = len(pixels), pixels.device
    masked_latent = in_parts(encode_masked, count, device=device, dim=-4)
    latent = in_parts(lambda first, last: model.encode(pixels[first:last]), count, device=device)
    return InpaintInputs(
        latent=latent,
        masked_latent=masked_latent.flatten(0, -4),  # (N, B, ...) or (B, ...) to (N * B, ...)
        keep_mask=latent_keep_mask(hole, size),
    )


def guided(
    model: PaintByExample,
    inputs: InpaintInputs,
    context: Tensor,
    similarity: float,
    interval: tuple[float, float] = (0, 1),
) -> Denoise:
    """The denoiser with classifier-free guidance, as samplers take it; predicts noise or v.

    Args:
        model: Its denoiser and its learnable vector are used.
        inputs: B crops; a batch to denoise holds them all, once or several times.
        context: Exemplar tokens, `(1, M, D)` for all crops or `(B, M, D)`.
        similarity: Guidance scale: 0 ignores the exemplar, 1 is the model without guidance, more
            follows the exemplar more closely.
        interval: The part of the schedule in which there is guidance, from 0, pure noise, to 1;
            outside of it similarity is 1 and a step costs half. Guidance limited to the middle is
            from Kynkäänniemi et al., arXiv 2404.07724.
    """
    last = len(model.schedule.betas) - 1
    latest, earliest = ((1 - share) * last for share in interval)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        batch = len(x)
        positive, negative = repeat_rows(context, batch), model.encoder.unconditional(batch)
        # At 0 and 1 one branch has no weight, so it is not computed.
        inside = interval == (0, 1) or earliest <= float(t[0]) <= latest
        branches = {0.0: negative, 1.0: positive}.get(similarity if inside else 1.0)
        if branches is None:
            # Two contexts for each row of `x`, which is passed once: until the first
            # cross-attention the two branches are the same computation (`networks.layers`).
            branches = torch.cat([negative, positive])
        output = model.predict_noise(
            x.to(model.dtype),
            t.round(),  # the model was trained on whole timesteps
            repeat_rows(inputs.masked_latent, batch),
            repeat_rows(inputs.keep_mask, batch),
            branches,
        ).to(x.dtype)
        if len(output) == batch:
            return output
        output_uncond, output_cond = output.chunk(2)
        return guidance(output_uncond, output_cond, similarity)

    return denoise


@torch.inference_mode()
def paint_crops(
    model: PaintByExample,
    inputs: InpaintInputs,
    context: Tensor,
    noise: Tensor,
    *,
    similarity: float,
    steps: int,
    sampler: str,
    strength: float = 1.0,
    guidance_interval: tuple[float, float] = (0, 1),
    callback: Callback | None = None,
) -> Tensor:
    """Paint exemplars into the holes of crops.

    All go at once where they fit in memory, else in as few parts as do: the pictures are the same
    up to rounding, which depends on the size of a batch.

    Args:
        model: Any Paint by Example model.
        inputs: B crops, from `encode_crops`.
        context: Exemplar tokens, `(1, M, D)` for all crops or `(B, M, D)`.
        noise: Standard normal `(N * B, 4, h, w)`, for N variations.
        similarity: Guidance scale; 0 ignores the exemplar.
        steps: Sampling steps.
        sampler: One of `samplers.SAMPLERS`.
        strength: Share of the steps that are run; below 1 the hole keeps some of its content.
        guidance_interval: The part of the schedule that has guidance; see `guided`.
        callback: Called after each step with its index, their number and the current guess. Of
            several parts each has its steps, counted on, and its own rows in the guess.

    Returns:
        `(N * B, h, w, 3)` in [0, 1], float32 on the model's device.

    Raises:
        ValueError: Unknown sampler, bad steps or strength, or a result that is not finite.
    """
    count, steps_before = len(noise), 0

    def draw(first: int, last: int) -> Tensor:
        nonlocal steps_before
        parts_left, made = math.ceil((count - first) / (last - first)), 0

        def step(index: int, total: int, x0: Tensor) -> None:
            nonlocal made
            made = index + 1
            if callback is not None:
                callback(steps_before + index, steps_before + total * parts_left, x0)

        def of(rows: Tensor) -> Tensor:
            return repeat_rows(rows, count)[first:last]

        some = InpaintInputs(of(inputs.latent), of(inputs.masked_latent), of(inputs.keep_mask))
        drawn = sample(
            sampler,
            guided(model, some, of(context), similarity, guidance_interval),
            noise[first:last].to(model.device),
            model.schedule,
            steps,
            init_latent=some.latent.float(),
            strength=strength,
            callback=step,
        )
        steps_before += made  # only of what did not fail
        return drawn

    latent = in_parts(draw, count, device=model.device)

    def decode(first: int, last: int) -> Tensor:
        pixels = model.decode(latent[first:last].to(model.dtype))
        return (pixels.float().movedim(1, -1) + 1) / 2

    painted = in_parts(decode, count, device=model.device)
    if not torch.isfinite(painted).all():
        remedy = "load it as float32"
        if model.dtype == torch.float32:
            remedy = "lower the similarity, or check how the model was trained"
        raise ValueError(f"the result is not finite with the model in {model.dtype}; {remedy}")
    return painted
