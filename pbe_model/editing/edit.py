"""The whole edit: photo, hole and exemplar in, finished photos out.

`PRESETS["official"]` paints as the paper's own script does (`scripts/inference.py` of
Fantasy-Studio/Paint-by-Example). Much of it holds for every edit, because the model was
trained that way: the order of the channels, the grey hole, the mask binarised before it is resized
without antialias, the squashed exemplar, the guidance. The preset adds what suits an editor less:
PLMS with its timesteps, the photo squashed to the model's square, its latent drawn from the
posterior, the model's whole picture as the result, and values rounded down to 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from ..model import PaintByExample
from ..sampling.samplers import Callback
from ..untrusted import shown
from .batch import BatchEditor, EditResult, check_exemplars
from .checks import check_number, check_picture, check_whole
from .crop_settings import DEFAULT_CROP, CropSettings
from .denoise import SEEDS, encode_crops, encode_exemplar, initial_noise, paint_crops
from .exemplar_image import Fit

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
and it draws the start on the GPU. It also computes in half precision, adds a watermark, and runs a
safety checker whose verdict it ignores.
"""


@torch.inference_mode()
def edit(
    model: PaintByExample,
    image: Tensor,
    hole_mask: Tensor,
    exemplar: Tensor | Sequence[Tensor],
    *,
    steps: int | None = None,
    similarity: float | None = None,
    seed: int = 0,
    sampler: str | None = None,
    num_images: int = 1,
    region: str = "auto",
    strength: float = 1.0,
    fit: Fit = "squash",
    exemplar_mask: Tensor | Sequence[Tensor | None] | None = None,
    crop: CropSettings = DEFAULT_CROP,
    colour_match: bool = False,
    posterior: str = "mode",
    paste_back: bool = True,
    truncate: bool = False,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
    callback: Callback | None = None,
) -> EditResult:
    """Paint the exemplar into the hole of a photo (arXiv 2211.13227).

    The photo is cropped around the hole to the model's resolution, painted and stitched back, so
    its own size does not matter. `**PRESETS["official"]` paints as the official script does.

    Args:
        model: From `PaintByExample.from_checkpoint`.
        image: Photo, `(H, W, 3)` in [0, 1].
        hole_mask: `(H, W)`, 1 = repaint, the hole is what lies above 0.5; a mask of another size
            is resized to the photo's. With several exemplars also `(K, H, W)`, a mask for each.
        exemplar: `(h, w, 3)` in [0, 1], any size from 8 pixels. With the region `"each"` also a
            list of them, one for each hole: holes count from left to right, row after row (see
            `hole_numbers.number_holes`), or as their masks do.
        steps: Sampling steps, up to `MAX_STEPS`; like similarity and sampler by default the model's
            own, `config.defaults`.
        similarity: Guidance scale, 0 to 100; 0 ignores the exemplar.
        seed: 0 to 2**64 - 1. Image `i` is drawn from `seed + i`, which goes on from there at 0, its
            crops one after another.
        sampler: One of `samplers.SAMPLERS`.
        num_images: Variations to paint, up to `MAX_IMAGES`: at once, or where memory runs out in as
            few parts as fit.
        region: `"auto"` crops around the hole, `"whole"` takes the whole photo, `"squash"` takes
            it as the model's square, whatever its aspect, `"each"` crops around each of several
            separate holes and paints the exemplar into every one, or each of several exemplars
            into its own; see `crop_plan.plan_regions`.
        strength: Share of the steps that are run; below 1 the hole keeps some of its content.
        fit: How the exemplar is brought to a square: `"squash"`, `"crop"` or `"pad"`.
        exemplar_mask: `(h, w)`, 1 = belongs to the object; with several exemplars a list.
        crop: How much the crop shows, its resolution, and how it is blended in.
        colour_match: Remove the colour cast that the first stage leaves on the crop's kept pixels;
            see `region.match_colour`.
        posterior: The latent of the photo with its hole grey: `"mode"`, the likeliest, or
            `"sample"`, drawn from the image's seed before the noise that the image starts from.
        paste_back: Stitch the result into the photo; otherwise it is the model's crops, holes and
            surroundings, at the model's size.
        truncate: Round what is painted down to the 256 levels of 8 bits. Otherwise it is left as it
            is, for `write_image` to round.
        guidance_interval: Part of the schedule in which similarity counts, from 0 (pure noise) to
            1; outside of it the model runs without guidance, in half the time.
        callback: Called after each step with its index, their number and the current guess; see
            `denoise.paint_crops`.

    Raises:
        ValueError: Bad sizes or ranges, an empty mask, unknown names, or a result that is not
            finite, with what to do about it.
        Exception: Memory ran out for a single image; of the type that its allocator raises.
    """
    usual = model.config.defaults
    steps = usual.steps if steps is None else steps
    similarity = usual.similarity if similarity is None else similarity
    sampler = usual.sampler if sampler is None else sampler
    check_options(steps=steps, similarity=similarity, seed=seed, num_images=num_images,
                  strength=strength, guidance_interval=guidance_interval)  # fmt: skip
    steps, num_images, seed = index(steps), index(num_images), index(seed)
    if posterior not in POSTERIORS:
        raise ValueError(f"unknown posterior {posterior!r}; choose one of {', '.join(POSTERIORS)}")
    exemplars, exemplar_masks = _each_exemplar(exemplar, exemplar_mask)
    config = model.config
    settings = crop.completed(config.resolution, config.size_multiple)
    numbered = len(exemplars) > 1
    editor = BatchEditor([image], [hole_mask], [settings], mode=region, numbered=numbered)
    check_exemplars(len(exemplars), editor)
    context = torch.cat(
        [
            encode_exemplar(model, one, fit=fit, exemplar_mask=mask)
            for one, mask in zip(exemplars, exemplar_masks, strict=True)
        ]
    )

    height, width = (side // config.vae.downscale for side in editor.crops.shape[1:3])
    shape = (config.vae.z_channels, height, width)
    # The official order: first what samples the posterior, then what the sampler starts from.
    draws = 2 if posterior == "sample" else 1
    noises = initial_noise(seed, shape, num_images, len(editor.crops) * draws)
    noises = noises.unflatten(0, (-1, draws))  # (num_images * crops, draws, 4, h, w)
    posterior_noise = noises[:, 0] if posterior == "sample" else None

    def paint(crops: Tensor, hole_masks: Tensor) -> Tensor:
        return paint_crops(
            model,
            encode_crops(model, crops, hole_masks, posterior_noise),
            context,
            noises[:, -1].contiguous(),
            similarity=float(similarity),
            steps=steps,
            sampler=sampler,
            strength=float(strength),
            guidance_interval=guidance_interval,
            callback=callback,
        )

    [result] = editor.edit(
        paint, colour_match=colour_match, truncate=truncate, paste_back=paste_back
    )
    return result


def _each_exemplar(
    exemplar: Tensor | Sequence[Tensor], exemplar_mask: Tensor | Sequence[Tensor | None] | None
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Exemplars and their masks as lists of the same length."""
    exemplars = [exemplar] if isinstance(exemplar, Tensor) else list(exemplar)
    if not exemplars:
        raise ValueError("the list of exemplars is empty; give at least one picture")
    for one in exemplars:
        check_picture("exemplar", one)
    if exemplar_mask is None or isinstance(exemplar_mask, Tensor):
        masks = [exemplar_mask] * len(exemplars)
    else:
        masks = list(exemplar_mask)
    if len(masks) != len(exemplars):
        raise ValueError(
            f"{len(masks)} exemplar masks and {len(exemplars)} exemplars do not match; give one "
            "for each, or None for an exemplar without"
        )
    return exemplars, masks


def check_options(
    *,
    steps: int | None = None,
    similarity: float | None = None,
    seed: int = 0,
    num_images: int = 1,
    strength: float = 1.0,
    guidance_interval: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Raise `ValueError` unless `edit` takes these numbers with any model."""
    if steps is not None:
        check_whole("steps", steps, 1, MAX_STEPS, " (20 is usual)")
    if similarity is not None:
        check_number("similarity", similarity, 0, 100, " (5 is usual)")
    check_whole("seed", seed, 0, SEEDS - 1)
    check_whole("num_images", num_images, 1, MAX_IMAGES)
    if check_number("strength", strength, 0, 1) == 0:
        raise ValueError("strength is 0, which keeps the picture; give a number up to 1")
    check_guidance_interval(*guidance_interval)


def check_guidance_interval(start: float, end: float) -> None:
    """Raise `ValueError` unless this is a part of the schedule."""
    if not 0 <= start <= end <= 1:
        raise ValueError(
            f"the guidance interval is {shown(start)} to {shown(end)}; give two numbers from 0 to "
            "1, the smaller first"
        )
