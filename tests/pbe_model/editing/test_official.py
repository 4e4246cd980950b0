"""`PRESETS["official"]` against the paper's formulas, and against diffusers' pipeline.

The reference below is written from the formulas of the paper and of the samplers it names; of the
package it uses the three networks, nothing else. diffusers' pipeline follows the official code but
for the differences that have a test each: it shows the difference, and that it is gone when that
one piece is replaced.
"""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import PaintByExamplePipeline, PNDMScheduler, pipelines
from diffusers.pipelines.deprecated import paint_by_example
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig

from pbe_model import PaintByExample, edit
from pbe_model.checkpoints.save import save_diffusers
from pbe_model.editing.edit import PRESETS
from pbe_model.image_io import write_image

from ..small import SMALL, relative_error, small_model

# Four pixels a latent cell: the mean of the middle ones is not the mean of all.
CELL, SIDE, TOWER = 4, 32, SMALL.exemplar.image_size
LATENT = (1, 4, SIDE // CELL, SIDE // CELL)
CONFIG = replace(SMALL, vae=replace(SMALL.vae, ch_mult=(1, 2, 2)))
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SEED = 3
OFFICIAL = PRESETS["official"]

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
WIDE = RNG.integers(0, 256, (27, 50, 3), dtype=np.uint8)  # neither square nor of the model's size
EXEMPLAR = RNG.integers(0, 256, (20, 20, 3), dtype=np.uint8)
TALL = RNG.integers(0, 256, (24, 12, 3), dtype=np.uint8)


def hole_of(size: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    hole = np.zeros(size, np.uint8)
    hole[rows, columns] = 255
    return hole


ALIGNED = hole_of((SIDE, SIDE), np.s_[8:24], np.s_[12:24])  # covers whole latent cells
UNALIGNED = hole_of((SIDE, SIDE), np.s_[9:23], np.s_[11:22])
UNALIGNED[15, 0] = 128  # just above one half
UNALIGNED[15, 31] = 127  # just below


@pytest.fixture(scope="module")
def model() -> PaintByExample:
    return small_model(CONFIG)


def tensors(*pictures: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(picture).float() / 255 for picture in pictures]


def official(model, photo, hole, exemplar, **options) -> torch.Tensor:
    """Our picture `(h, w, 3)` in [0, 1], not yet brought to 8 bits."""
    settings = OFFICIAL | {"truncate": False} | options
    return edit(model, *tensors(photo, hole, exemplar), **settings).images[0]


# ---- the reference ------------------------------------------------------------------------------


def squashed(photo: np.ndarray, hole: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Photo `(h, w, 3)` in [0, 1] and hole `(h, w)`, 0 or 1, at the model's size.

    Pillow's bicubic resize, unrounded; a pixel is hole where any that it covers is.
    """
    channels = [Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(photo / 255, 2, 0)]
    resized = [np.array(c.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for c in channels]
    edges = [[(i * n // SIDE, -(-(i + 1) * n // SIDE)) for i in range(SIDE)] for n in hole.shape]
    binary = [[(hole[t:b, l:r] / 255 > 0.5).any() for l, r in edges[1]] for t, b in edges[0]]  # noqa: E741
    return np.clip(np.stack(resized, 2), 0, 1), np.array(binary, float)


def cells(keep: np.ndarray) -> np.ndarray:
    """Bilinear without antialias: a cell's centre lies between its four middle pixels."""
    a, b = CELL // 2 - 1, CELL // 2
    return (keep[a::CELL, a::CELL] + keep[a::CELL, b::CELL]
            + keep[b::CELL, a::CELL] + keep[b::CELL, b::CELL]) / 4  # fmt: skip


def tower_pixels(exemplar: np.ndarray) -> torch.Tensor:
    """`(1, 3, S, S)` for the image tower: squashed, whatever the aspect."""
    small = np.array(Image.fromarray(exemplar).resize((TOWER, TOWER))) / 255
    return torch.from_numpy((small - CLIP_MEAN) / CLIP_STD).float().permute(2, 0, 1)[None]


def plms(model, x, steps: int):
    """Liu et al., arXiv 2202.09778, with Adams-Bashforth's weights written out; `model(x, t)`.

    `x_prev = sqrt(a_prev) * x_0 + sqrt(1 - a_prev) * e`, with x_0 the guess that e points at.
    """
    signal = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    times = [t + 1 for t in range(0, 1000, 1000 // steps)]
    signal_prev = [signal[0], *signal[times[:-1]]]

    def along(x, e, i):
        a, a_prev = signal[times[i]], signal_prev[i]
        x_0 = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
        return math.sqrt(a_prev) * x_0 + math.sqrt(1 - a_prev) * e

    old = []
    for i in reversed(range(len(times))):
        e = model(x, times[i])
        if len(old) == 0:
            slope = (e + model(along(x, e, i), times[max(i - 1, 0)])) / 2
        elif len(old) == 1:
            slope = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            slope = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            slope = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        old.append(e)
        x = along(x, slope, i)
    return x


@torch.no_grad()
def reference(
    model, photo, hole, exemplar, *, seed=0, steps=50, similarity=5.0, posterior="sample"
):
    """Final latent, unscaled, and picture `(h, w, 3)` in [0, 1]."""
    vae, encoder, unet = model.vae, model.encoder, model.unet
    generator = torch.Generator().manual_seed(seed)
    c, v = encoder(tower_pixels(exemplar)), encoder.learnable_vector

    pixels, binary = squashed(photo, hole)
    keep = 1 - binary
    greyed = torch.from_numpy((pixels * 2 - 1) * keep[..., None]).float()
    y = vae.encode(greyed.permute(2, 0, 1)[None])
    z = y.mean
    if posterior == "sample":
        z = z + (y.logvar / 2).exp() * torch.randn(LATENT, generator=generator)
    told = torch.cat([0.18215 * z, torch.from_numpy(cells(keep)).float()[None, None]], 1)

    def guided(x, t):
        t = torch.tensor([float(t)])
        e_c, e_v = (unet(torch.cat([x, told], 1), t, token) for token in (c, v))
        return e_v + similarity * (e_c - e_v)

    x = plms(guided, torch.randn(LATENT, generator=generator), steps)
    picture = ((vae.decode(x / 0.18215) + 1) / 2).clamp(0, 1)[0].permute(1, 2, 0)
    return x / 0.18215, picture


CASES = {
    "the preset itself": (PHOTO, ALIGNED, EXEMPLAR, {}),
    "soft latent mask": (PHOTO, UNALIGNED, EXEMPLAR, {"steps": 5}),
    "squashed": (WIDE, hole_of((27, 50), np.s_[5:16], np.s_[20:37]), TALL, {"steps": 5}),
    "12 steps are 13": (PHOTO, ALIGNED, EXEMPLAR, {"steps": 12}),
    "one step": (PHOTO, ALIGNED, EXEMPLAR, {"steps": 1}),
    "guided below 1": (PHOTO, UNALIGNED, TALL, {"steps": 5, "similarity": 0.5}),
    "unguided": (PHOTO, UNALIGNED, TALL, {"steps": 5, "similarity": 1.0}),
    "mode of the posterior": (PHOTO, UNALIGNED, TALL, {"steps": 5, "posterior": "mode"}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_preset_is_what_the_formulas_say(model, case):
    photo, hole, exemplar, options = CASES[case]
    latents = []
    handle = model.vae.post_quant_conv.register_forward_pre_hook(
        lambda module, inputs: latents.append(inputs[0])
    )
    ours = official(model, photo, hole, exemplar, seed=3, **options)
    handle.remove()
    latent, picture = reference(model, photo, hole, exemplar, seed=3, **options)
    assert relative_error(latents[0], latent) < 2e-5
    assert relative_error(ours, picture) < 2e-5


def test_the_file_is_the_picture_cut_to_8_bits(model, tmp_path):
    hole, options = hole_of((27, 50), np.s_[5:16], np.s_[20:37]), {"seed": 3, "steps": 5}
    [image] = edit(model, *tensors(WIDE, hole, TALL), **OFFICIAL | options).images
    write_image(tmp_path / "out.png", image)
    written = np.array(Image.open(tmp_path / "out.png"))
    ours = official(model, WIDE, hole, TALL, **options)
    _, picture = reference(model, WIDE, hole, TALL, **options)
    assert (written == (ours.numpy() * 255).astype(np.uint8)).all()
    theirs = (picture.numpy() * 255).astype(np.uint8)  # as numpy converts: it truncates
    assert (written != theirs).mean() < 0.01  # where a value lies on a level but for rounding
    assert abs(written.astype(int) - theirs).max() <= 1


# ---- diffusers ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(model, tmp_path_factory) -> PaintByExamplePipeline:
    """The stock pipeline, from what `save_diffusers` writes of our model."""
    folder = tmp_path_factory.mktemp("diffusers") / "small"
    save_diffusers(folder, model)
    with pytest.MonkeyPatch.context() as patch:
        # Where its pipeline was before it became deprecated; folders still name that place.
        patch.setattr(pipelines, "paint_by_example", paint_by_example, raising=False)
        pipe = PaintByExamplePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def stock(pipe):
    """Paints with it, given the official exemplar pixels and the official order of draws."""

    def paint(photo, hole, exemplar, *, steps=5, similarity=5.0, **options):
        generator = torch.Generator().manual_seed(SEED)
        _, start = (torch.randn(LATENT, generator=generator) for _ in range(2))
        given = {
            "image": Image.fromarray(photo),
            "mask_image": Image.fromarray(hole),
            "example_image": tower_pixels(exemplar),
            "latents": start,
            "generator": torch.Generator().manual_seed(SEED),  # its first draw: the posterior's
            "output_type": "np",
        } | options
        [image] = pipe(num_inference_steps=steps, guidance_scale=similarity, **given).images
        return torch.from_numpy(np.array(image))

    return paint


@pytest.fixture
def ours(model):
    return partial(official, model, seed=SEED, steps=5)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether pictures agree up to rounding; a difference has to be above a grey level."""
    error = relative_error(a, b)
    assert error < 2e-5 or error > 1 / 255, error
    return error < 2e-5


@pytest.mark.parametrize("options", [{}, {"steps": 50}, {"similarity": 1.0}], ids=str)
def test_diffusers_paints_the_same_picture_from_our_folder(stock, ours, options):
    """Where it follows the official code: the mask covers whole cells, 1000 steps divide."""
    given = (PHOTO, ALIGNED, TALL)
    assert same(stock(*given, **options), ours(*given, **options))


def test_diffusers_takes_the_nearest_pixel_of_the_mask(stock, ours, monkeypatch):
    given = (PHOTO, UNALIGNED, EXEMPLAR)
    theirs = stock(*given)
    assert not same(theirs, ours(*given))
    nearest = lambda hole_mask, size: 1 - hole_mask[..., ::CELL, ::CELL]  # noqa: E731
    monkeypatch.setattr("pbe_model.editing.denoise.latent_keep_mask", nearest)
    assert same(theirs, ours(*given))


def test_diffusers_crops_the_exemplar(stock, ours):
    theirs = stock(PHOTO, ALIGNED, TALL, example_image=Image.fromarray(TALL))
    assert not same(theirs, ours(PHOTO, ALIGNED, TALL))
    # Its processor makes the short side 16 pixels long, then cuts out the middle.
    enlarged = Image.fromarray(TALL).resize((TOWER, 2 * TOWER), Image.Resampling.BICUBIC)
    middle = np.array(enlarged)[TOWER // 2 : TOWER // 2 + TOWER]
    assert relative_error(theirs, ours(PHOTO, ALIGNED, middle)) < 1 / 255  # see the next test
    assert same(stock(PHOTO, ALIGNED, TALL), ours(PHOTO, ALIGNED, TALL))


def test_diffusers_resizes_the_exemplar_with_torch(pipe, stock, ours):
    """By way of transformers; it rounds some values to the next of Pillow's 8-bit levels."""
    given, picture = (PHOTO, ALIGNED, EXEMPLAR), Image.fromarray(EXEMPLAR)
    pixels = pipe.feature_extractor(images=picture, return_tensors="pt").pixel_values
    levels = (pixels - tower_pixels(EXEMPLAR)) * torch.tensor(CLIP_STD)[:, None, None] * 255
    assert levels.abs().max().item() == pytest.approx(1, abs=1e-3)
    assert 2e-5 < relative_error(stock(*given, example_image=picture), ours(*given)) < 1 / 255
    assert same(stock(*given), ours(*given))


def test_diffusers_draws_the_start_before_the_posterior(stock, ours):
    given = (PHOTO, ALIGNED, EXEMPLAR)
    theirs = stock(*given, latents=None)
    assert not same(theirs, ours(*given))
    generator = torch.Generator().manual_seed(SEED)
    first = torch.randn(LATENT, generator=generator)
    assert same(stock(*given, latents=first, generator=generator), theirs)
    assert same(stock(*given), ours(*given))  # given the second draw as `latents`


def test_diffusers_rounds_to_8_bits(stock, ours):
    given = (PHOTO, ALIGNED, EXEMPLAR)
    theirs = stock(*given, output_type="pil")
    cut, rounded = ours(*given, truncate=True), (ours(*given) * 255).round()
    assert (theirs != cut * 255).float().mean() > 0.3
    assert (theirs != rounded).float().mean() < 0.01
    assert (theirs - rounded).abs().max() <= 1


@pytest.mark.parametrize("similarity", [0.0, 0.5])
def test_diffusers_guides_only_above_1(stock, ours, similarity):
    given = (PHOTO, ALIGNED, EXEMPLAR)
    theirs = stock(*given, similarity=similarity)
    assert not same(theirs, ours(*given, similarity=similarity))
    assert same(theirs, ours(*given, similarity=1.0))


def test_diffusers_makes_as_many_steps_as_asked(pipe, stock, ours, monkeypatch):
    """Where they do not divide 1000, the official rule makes one more and starts higher."""
    given = (PHOTO, ALIGNED, EXEMPLAR)
    assert not same(stock(*given, steps=12), ours(*given, steps=12))

    def by_the_rule(steps, device=None):
        PNDMScheduler.set_timesteps(pipe.scheduler, steps, device)
        times = list(range(1, 1001, 1000 // steps))[::-1]
        pipe.scheduler.timesteps = torch.tensor([*times[:2], *times[1:]])

    monkeypatch.setattr(pipe.scheduler, "set_timesteps", by_the_rule)
    assert same(stock(*given, steps=12), ours(*given, steps=12))


def test_diffusers_does_not_look_ahead_in_a_single_step(stock, ours):
    given = (PHOTO, ALIGNED, EXEMPLAR)
    theirs = stock(*given, steps=1)
    assert relative_error(theirs, ours(*given, steps=1)) > 1e-4
    assert same(theirs, ours(*given, steps=1, sampler="ddim"))


def test_diffusers_paints_other_sizes_as_they_are(stock, ours):
    photo, hole = np.concatenate([PHOTO, PHOTO], axis=1), ALIGNED.repeat(2, axis=1)
    latents = torch.randn(1, 4, SIDE // CELL, 2 * SIDE // CELL)
    assert stock(photo, hole, EXEMPLAR, latents=latents).shape == (SIDE, 2 * SIDE, 3)
    pixels, binary = squashed(photo, hole)
    image = torch.from_numpy(pixels * 2 - 1).float().permute(2, 0, 1)[None]
    mask = torch.from_numpy(binary).float()[None, None]
    theirs = stock(photo, hole, EXEMPLAR, image=image, mask_image=mask)
    assert same(theirs, ours(photo, hole, EXEMPLAR))


def test_diffusers_blackens_what_its_safety_checker_flags(pipe, stock, ours, monkeypatch):
    """The official script asks one too, and then goes on with the picture that it had."""
    given = (PHOTO, ALIGNED, EXEMPLAR)
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 1, "image_size": TOWER, "patch_size": 8}  # fmt: skip
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=tower, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(-2)  # below every cosine: all is flagged
    monkeypatch.setattr(pipe, "safety_checker", checker)
    assert (stock(*given) == 0).all()
    monkeypatch.undo()
    assert same(stock(*given), ours(*given))
