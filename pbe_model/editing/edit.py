"""The whole edit: photo, hole and exemplar in, finished photos out.

`PRESETS["official"]` paints as the paper's own script does (`scripts/inference.py` of
Fantasy-Studio/Paint-by-Example). Much of it holds for every edit, because the model was trained
so: the order of the channels, the grey hole, the mask binarised before it is resized without
antialias, the squashed exemplar, the guidance. The preset adds what an editor would rather have
otherwise: PLMS with its timesteps, the photo squashed to the model's square, its latent drawn from
the posterior, the model's whole picture as the result, and values cut down to 8 bits, not rounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model import PaintByExample
from ..networks.exemplar_encoder import normalise
from ..networks.inputs import latent_keep_mask, masked_image
from ..sampling.samplers import Callback, Denoise, guidance, sample
from ..untrusted import shown
from .crop_plan import CONTEXT, plan_regions
from .exemplar_image import Fit, preprocess
from .mask import resize_mask
from .region import Region, crop, match_colour, photo_blend_mask, stitch_all

MAX_STEPS = 10_000
MAX_IMAGES = 1_000

POSTERIORS = ("mode", "sample")

PRESETS: dict[str, dict[str, Any]] = {
    "official": {
        "steps": 50,
        "similarity": 5.0,
        "sampler": "plms",
        "region": "squash",
        "strength": 1.0,
        "fit": "squash",
        "posterior": "sample",
        "paste_back": False,
        "truncate": True,
    }
}
"""Keyword arguments of `edit` by the name of what they reproduce: `edit(..., **PRESETS[name])`.

"official" draws random numbers in the official order, but they are not the official ones: that
script seeds before it builds the network, whose initial weights take numbers from the same stream,
and it draws the start on the GPU. It also computes in half precision and adds a watermark; of its
safety checker it ignores the verdict.
"""


@dataclass(frozen=True)
class EditResult:
    """What `edit` returns.

    Attributes:
        images: `(N, H, W, 3)` in [0, 1]; outside the blend zone bit-identical to the photo.
            Without `paste_back` the crops.
        crops: `(N * K, h, w, 3)` in [0, 1], what the model painted, before stitching: the K crops
            of one image side by side.
        regions: Where the K crops lie and how they were blended; `region.stitch_all` takes crops,
            retouched or upscaled, and regions again. K is 1 but for the region mode `"each"`.
    """

    images: Tensor
    crops: Tensor
    regions: list[Region]

    @property
    def region(self) -> Region:
        """The region, or the first of several."""
        return self.regions[0]

    @property
    def blend_mask(self) -> Tensor:
        """Share of what was painted in each pixel of the photo, `(H, W)`; 0 is untouched."""
        return photo_blend_mask(self.regions)


@dataclass(frozen=True)
class Condition:
    """What the denoiser is told of a crop: all on the model's device.

    Attributes:
        latent: Scaled latent of the crop as it is, `(B, 4, h, w)`.
        masked_latent: Scaled latent of the crop with its hole grey, `(B, 4, h, w)`, or
            `(N * B, 4, h, w)` where each of N variations has its own sample of it.
        keep_mask: `(B, 1, h, w)`, 1 = keep.
    """

    latent: Tensor
    masked_latent: Tensor
    keep_mask: Tensor


def initial_noise(
    seed: int, shape: tuple[int, int, int], num_images: int = 1, num_crops: int = 1
) -> Tensor:
    """Noise of a batch: image `i` is drawn from seed `seed + i`, so that it can be drawn alone.

    Args:
        seed: Non-negative.
        shape: Of one latent, `(4, h, w)`.
        num_images: Images in the batch.
        num_crops: Crops of each image. They are drawn from its seed one after another, so the
            first does not depend on how many follow.

    Returns:
        float32 `(num_images * num_crops, 4, h, w)` on the CPU, the same on every machine; the
        crops of one image side by side.
    """
    generators = [torch.Generator().manual_seed(seed + i) for i in range(num_images)]
    # One crop at a time: numbers that are drawn together are others.
    return torch.stack(
        [torch.randn(shape, generator=g) for g in generators for _ in range(num_crops)]
    )


def _tiled(rows: Tensor, count: int) -> Tensor:
    """Rows repeated as a whole until there are `count` of them; a single one is not copied."""
    if len(rows) == 1:
        return rows.expand(count, *rows.shape[1:])
    return rows.repeat(count // len(rows), *[1] * (rows.ndim - 1))


def encode_exemplar(
    model: PaintByExample,
    exemplar: Tensor,
    *,
    fit: Fit = "squash",
    exemplar_mask: Tensor | None = None,
) -> Tensor:
    """Exemplar `(H, W, 3)` in [0, 1] to context `(1, M, D)`; see `exemplar.preprocess`."""
    size = model.config.exemplar.image_size
    pixels = preprocess(exemplar, size, fit=fit, exemplar_mask=exemplar_mask)
    return model.encoder(normalise(pixels[None]).to(model.device, model.dtype))


def encode_condition(
    model: PaintByExample,
    image: Tensor,
    hole_mask: Tensor,
    posterior_noise: Tensor | None = None,
) -> Condition:
    """Encode a crop and its hole by the official rule (hole = mask > 0.5, filled with grey).

    Args:
        model: Supplies the first stage.
        image: `(B, h, w, 3)` in [0, 1].
        hole_mask: `(B, h, w)`, 1 = repaint.
        posterior_noise: Standard normal `(N * B, 4, h', w')`: N samples of the posterior of the
            masked latents. `None` takes its mode.
    """
    pixels = (image.movedim(-1, 1) * 2 - 1).to(model.device, model.dtype)
    hole = (hole_mask[:, None] > 0.5).to(pixels)
    factor = model.config.vae.downscale
    size = (pixels.shape[-2] // factor, pixels.shape[-1] // factor)
    if posterior_noise is not None:
        posterior_noise = posterior_noise.to(pixels).unflatten(0, (-1, len(pixels)))
    masked_latent = model.encode(masked_image(pixels, 1 - hole), posterior_noise)
    return Condition(
        latent=model.encode(pixels),
        masked_latent=masked_latent.flatten(0, -4),
        keep_mask=latent_keep_mask(hole, size),
    )


def guided(
    model: PaintByExample, condition: Condition, context: Tensor, similarity: float
) -> Denoise:
    """The denoiser with classifier-free guidance, as samplers take it: noise or v, as it says.

    Args:
        model: To evaluate.
        condition: Of one crop or several; a batch to denoise may repeat them as a whole.
        context: Exemplar tokens, `(1, M, D)`.
        similarity: Guidance scale: 0 ignores the exemplar, 1 is the model as it is, more follows
            the exemplar more closely.
    """

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        batch = len(x)
        positive, negative = context.expand(batch, -1, -1), model.encoder.unconditional(batch)
        # At 0 and 1 one branch has no weight, so it need not be computed.
        branches = {0.0: negative, 1.0: positive}.get(similarity)
        if branches is None:
            branches = torch.cat([negative, positive])
        said = model.predict_noise(
            x.to(model.dtype),
            t.round(),  # it was trained on whole timesteps
            _tiled(condition.masked_latent, batch),
            _tiled(condition.keep_mask, batch),
            branches,
        ).to(x.dtype)
        if len(said) == batch:
            return said
        negative_said, positive_said = said.chunk(2)
        return guidance(negative_said, positive_said, similarity)

    return denoise


@torch.inference_mode()
def edit(
    model: PaintByExample,
    image: Tensor,
    hole_mask: Tensor,
    exemplar: Tensor,
    *,
    steps: int = 20,
    similarity: float = 5.0,
    seed: int = 0,
    sampler: str = "dpmpp_2m",
    num_images: int = 1,
    region: str = "auto",
    strength: float = 1.0,
    fit: Fit = "squash",
    exemplar_mask: Tensor | None = None,
    context: float = CONTEXT,
    blend: float | None = None,
    resolution: int | None = None,
    context_mask: Tensor | None = None,
    blend_mask: Tensor | None = None,
    colour_match: bool = False,
    posterior: str = "mode",
    paste_back: bool = True,
    truncate: bool = False,
    callback: Callback | None = None,
) -> EditResult:
    """Paint the exemplar into the hole of a photo (arXiv 2211.13227).

    The photo is cropped around the hole to the model's resolution, painted and stitched back, so
    its own size does not matter. `**PRESETS["official"]` paints as the official script does.

    Args:
        model: From `PaintByExample.from_checkpoint`.
        image: Photo, `(H, W, 3)` in [0, 1].
        hole_mask: `(H, W)`, 1 = repaint, the hole is what lies above 0.5; a mask of another size
            is resized to the photo's.
        exemplar: `(h, w, 3)` in [0, 1], any size from 8 pixels.
        steps: Sampling steps.
        similarity: Guidance scale; 0 ignores the exemplar.
        seed: Of the first image; image `i` has `seed + i`, also for all its crops: they draw
            their noise one after another.
        sampler: One of `samplers.SAMPLERS`.
        num_images: Variations to paint.
        region: `"auto"` crops around the hole, `"whole"` takes the whole photo, `"squash"` takes
            it as the model's square, whatever its aspect, `"each"` crops around each of several
            separate holes and paints the exemplar into every one; see `plan.plan_regions`.
        strength: Share of the steps that are run; below 1 the hole keeps some of its content.
        fit: How the exemplar is brought to a square: `"squash"`, `"crop"` or `"pad"`.
        exemplar_mask: `(h, w)`, 1 = belongs to the object.
        context: Side of a crop over the longer side of its hole, from 1.
        blend: Pixels of the photo over which the result fades out around the hole; 0 cuts at its
            edge, `None` chooses by the size of the crop.
        resolution: Side in pixels at which the model works; `None` is what it was trained at.
        context_mask: `(H, W)`; the crop also holds what lies above 0.5 in it.
        blend_mask: `(H, W)`, the share of the result in each pixel, in place of `blend`. It does
            not change what is repainted. Both masks are resized as `hole_mask` is.
        colour_match: Take off the colour cast that the first stage leaves on the crop's kept
            pixels; see `region.match_colour`.
        posterior: The latent of the photo with its hole grey: `"mode"`, the likeliest, or
            `"sample"`, drawn from the image's seed before the noise that the image starts from.
        paste_back: Stitch the result into the photo; else it is the model's crops, holes and
            surroundings, at the model's size.
        truncate: Cut what is painted down to the next of the 256 levels of 8 bits. Else it is
            left as it is, for `write_image` to round.
        callback: Called after each step with its index, their number and the current latent.

    Raises:
        ValueError: Bad sizes or ranges, an empty mask, unknown names, or a result that is not
            finite, with what to do about it.
    """
    given = {"hole_mask": hole_mask, "context_mask": context_mask, "blend_mask": blend_mask}
    given = {name: mask for name, mask in given.items() if mask is not None}
    _check(image, given, exemplar, steps, num_images, similarity, seed)
    if posterior not in POSTERIORS:
        raise ValueError(f"unknown posterior {posterior!r}; choose one of {', '.join(POSTERIORS)}")
    size = (image.shape[0], image.shape[1])
    sized = {name: resize_mask(mask, size) for name, mask in given.items()}
    regions = plan_regions(
        **sized,
        mode=region,
        resolution=model.config.resolution if resolution is None else resolution,
        size_multiple=model.config.size_multiple,
        context=context,
        blend=blend,
    )
    pairs = [crop(image[None], sized["hole_mask"][None], part) for part in regions]
    cropped, cropped_masks = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    tokens = encode_exemplar(model, exemplar, fit=fit, exemplar_mask=exemplar_mask)
    height, width = (side // model.config.vae.downscale for side in regions[0].size)
    shape = (model.config.vae.z_channels, height, width)
    # The official order: first what samples the posterior, then what the sampler starts from.
    draws = 2 if posterior == "sample" else 1
    noises = initial_noise(seed, shape, num_images, len(regions) * draws).unflatten(0, (-1, draws))
    noise = noises[:, -1].contiguous().to(model.device)
    posterior_noise = noises[:, 0] if posterior == "sample" else None
    condition = encode_condition(model, cropped, cropped_masks, posterior_noise)
    latent = sample(
        sampler,
        guided(model, condition, tokens, float(similarity)),
        noise,
        model.schedule,
        steps,
        init_latent=_tiled(condition.latent.float(), len(noise)),
        strength=strength,
        callback=callback,
    )
    crops = (model.decode(latent.to(model.dtype)).float().movedim(1, -1) + 1) / 2  # (N K, h, w, 3)
    if not torch.isfinite(crops).all():
        remedy = "load it as float32" if model.dtype != torch.float32 else "lower the similarity"
        raise ValueError(f"the result is not finite with the model in {model.dtype}; {remedy}")
    if colour_match:
        originals, holes = (_tiled(rows, len(crops)).to(crops) for rows in (cropped, cropped_masks))
        crops = match_colour(crops, originals, holes)
    if truncate:
        crops = (crops * 255).floor() / 255
    crops = crops.to(image)
    images = stitch_all(image[None], crops, regions) if paste_back else crops
    return EditResult(images=images, crops=crops, regions=regions)


def check_num_images(count: int) -> None:
    """Raise `ValueError` unless so many variations may be painted at once."""
    if not 1 <= count <= MAX_IMAGES:
        raise ValueError(f"num_images is {shown(count)}; give a number from 1 to {MAX_IMAGES:,}")


def _check(
    image: Tensor,
    given_masks: dict[str, Tensor],
    exemplar: Tensor,
    steps: int,
    num_images: int,
    similarity: float,
    seed: int,
) -> None:
    for name, tensor in (("image", image), ("exemplar", exemplar)):
        if tensor.ndim != 3 or tensor.shape[-1] != 3:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be (H, W, 3)")
    for name, mask in given_masks.items():
        if mask.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(mask.shape)}; it must be (H, W)")
    for name, tensor in {"image": image, "exemplar": exemplar, **given_masks}.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is of type {tensor.dtype}; give floats from 0 to 1")
    check_num_images(num_images)
    if steps > MAX_STEPS:
        raise ValueError(f"steps is {shown(steps)}; give at most {MAX_STEPS:,}, 20 are usual")
    if not 0 <= similarity <= 100:
        raise ValueError(f"similarity is {similarity}; give a number from 0 to 100, 5 is usual")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; give a number from 0 to 2**63 - 1")
