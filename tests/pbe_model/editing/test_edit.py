"""The whole edit: what the denoiser is told, guidance, seeds, and what stays of the photo."""

import math
from dataclasses import replace
from functools import partial
from inspect import signature

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pbe_model import PaintByExample, edit
from pbe_model.config import EditDefaults
from pbe_model.editing.crop_plan import MODES
from pbe_model.editing.crop_settings import CropSettings
from pbe_model.editing.denoise import (
    InpaintInputs,
    encode_crops,
    encode_exemplar,
    guided,
    initial_noise,
)
from pbe_model.editing.edit import PRESETS
from pbe_model.editing.exemplar_image import preprocess
from pbe_model.editing.region import crop, match_colour
from pbe_model.image_io import read_image, write_image
from pbe_model.networks.exemplar_encoder import normalise
from pbe_model.sampling.samplers import SAMPLERS

from ..small import SMALL_ALL, SMALL_V, noise, relative_error, small_model, uniform

PHOTO = uniform(40, 52, 3)
EXEMPLAR = uniform(20, 12, 3, seed=1)
HOLE = torch.zeros(40, 52)
HOLE[12:22, 18:30] = 1


@pytest.fixture(scope="module")
def model() -> PaintByExample:
    return small_model()


@pytest.fixture(scope="module", params=["class", "all"])
def either(request, model) -> PaintByExample:
    """Models of both kinds of context."""
    return model if request.param == "class" else small_model(SMALL_ALL)


@pytest.fixture(scope="module")
def paint(model):
    """An edit of the pictures above in few steps."""
    return partial(edit, model, PHOTO, HOLE, EXEMPLAR, steps=3)


# ---- what the denoiser is told -----------------------------------------------------------------


def test_noise_of_an_image_can_be_drawn_alone():
    batch = initial_noise(7, (4, 3, 5), 3)
    assert batch.shape == (3, 4, 3, 5)
    for i in range(3):
        alone = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(7 + i))
        assert torch.equal(batch[i : i + 1], alone)


def test_the_hole_is_grey_and_the_mask_says_keep(model):
    image, hole = uniform(1, 16, 16, 3), torch.zeros(1, 16, 16)
    hole[:, 4:12, 6:10] = 0.51
    hole[:, 0, 0] = 0.5  # not above one half, so kept
    inputs = encode_crops(model, image, hole)

    greyed = image.clone()
    greyed[:, 4:12, 6:10] = 0.5
    as_network = lambda pixels: pixels.permute(0, 3, 1, 2) * 2 - 1  # noqa: E731
    torch.testing.assert_close(inputs.latent, model.encode(as_network(image)))
    torch.testing.assert_close(inputs.masked_latent, model.encode(as_network(greyed)))
    keep = torch.ones(1, 1, 8, 8)
    keep[:, :, 2:6, 3:5] = 0
    assert torch.equal(inputs.keep_mask, keep)


def test_latent_mask_is_soft_at_the_edge_and_not_antialiased(model):
    """Hole by pixel first, then bilinear without antialias, then no rounding."""
    hole = torch.zeros(1, 16, 16)
    hole[:, 5:, 5:] = 1
    keep = encode_crops(model, uniform(1, 16, 16, 3), hole).keep_mask
    assert keep[0, 0, 2, 2] == 0.75  # one of its four pixels is hole
    assert keep[0, 0, 2, 5] == 0.5
    expected = 1 - F.interpolate(hole[:, None], size=(8, 8), mode="bilinear", antialias=False)
    assert torch.equal(keep, expected)


def test_exemplar_goes_through_preprocessing(either):
    mask = torch.zeros(20, 12)
    mask[2:14, 1:11] = 1
    pixels = preprocess(EXEMPLAR, 16, fit="pad", exemplar_mask=mask)
    context = encode_exemplar(either, EXEMPLAR, fit="pad", exemplar_mask=mask)
    assert torch.equal(context, either.encoder(normalise(pixels[None])))
    assert context.shape == (1, either.encoder.num_tokens, 24)
    assert not torch.equal(context, encode_exemplar(either, EXEMPLAR))


def test_seeds_go_round_at_the_end():
    last = initial_noise(2**64 - 1, (4, 3, 5), 2)
    generator = torch.Generator().manual_seed(2**64 - 1)
    assert torch.equal(last[0], torch.randn(4, 3, 5, generator=generator))
    assert torch.equal(last[1:], initial_noise(0, (4, 3, 5)))
    middle = initial_noise(2**63 - 1, (4, 3, 5), 2)
    assert torch.equal(middle[1:], initial_noise(2**63, (4, 3, 5)))


def test_an_edit_takes_the_largest_seed_and_numbers_of_other_libraries(paint):
    images = paint(seed=np.uint64(2**64 - 1), num_images=2, steps=torch.tensor(1)).images
    assert torch.allclose(images[1], paint(seed=0, steps=1).images[0], atol=1e-4)
    assert not torch.allclose(images[0], images[1], atol=1e-2)


# ---- guidance ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(model: PaintByExample) -> InpaintInputs:
    hole = torch.zeros(1, 16, 16)
    hole[:, 4:12, 4:12] = 1
    return encode_crops(model, uniform(1, 16, 16, 3), hole)


def branch(model: PaintByExample, inputs: InpaintInputs, x: Tensor, t: Tensor, context: Tensor):
    """One image at a time, one context, one evaluation each."""
    return torch.cat(
        [
            model.predict_noise(x[i, None], t[i, None], inputs.masked_latent,
                                inputs.keep_mask, context)
            for i in range(len(x))
        ]
    )  # fmt: skip


@pytest.mark.parametrize("similarity", [0.0, 0.5, 1.0, 5.0])
def test_guidance_is_the_explicit_formula(either, inputs, similarity):
    x, t = noise(3, 4, 8, 8), torch.tensor([700.0, 700.0, 700.0])
    context = noise(1, either.encoder.num_tokens, 24, seed=1)
    vector = either.encoder.learnable_vector.repeat(1, either.encoder.num_tokens, 1)
    eps_v = branch(either, inputs, x, t, vector)
    eps_c = branch(either, inputs, x, t, context)
    assert relative_error(eps_c, eps_v) > 1e-2
    eps = guided(either, inputs, context, similarity)(x, t)
    assert relative_error(eps, eps_v + similarity * (eps_c - eps_v)) < 1e-4


@pytest.mark.parametrize(
    ("similarity", "rows"), [(0.0, ["v"]), (1.0, ["c"]), (0.5, ["v", "c"]), (5.0, ["v", "c"])]
)
def test_branches_without_weight_are_not_computed(model, inputs, similarity, rows):
    """And the learnable vector is repeated over the batch, its rows before the exemplar's."""
    seen = []
    handle = model.unet.register_forward_pre_hook(lambda module, given: seen.append(given))
    context = noise(1, 1, 24)
    guided(model, inputs, context, similarity)(noise(3, 4, 8, 8), torch.full((3,), 5.0))
    handle.remove()
    [(x, t, contexts)] = seen
    assert x.shape == (3, 9, 8, 8)  # once, whatever the number of branches
    assert t.tolist() == [5.0] * 3
    tokens = {"v": model.encoder.learnable_vector, "c": context}
    assert torch.equal(contexts, torch.cat([tokens[row].repeat(3, 1, 1) for row in rows]))


@pytest.mark.parametrize(("t", "whole"), [(4.4, 4), (4.6, 5), (998.7, 999), (0.2, 0)])
def test_the_network_sees_whole_timesteps(model, inputs, t, whole):
    denoise = guided(model, inputs, noise(1, 1, 24), 5.0)
    x = noise(1, 4, 8, 8)
    assert torch.equal(denoise(x, torch.tensor([t])), denoise(x, torch.tensor([float(whole)])))


def test_noise_keeps_its_type_in_half_precision(inputs):
    half = small_model().bfloat16()
    halved = InpaintInputs(*(x.bfloat16() for x in vars(inputs).values()))
    eps = guided(half, halved, noise(1, 1, 24).bfloat16(), 3.0)(
        noise(1, 4, 8, 8), torch.tensor([5.0])
    )
    assert eps.dtype == torch.float32


@pytest.mark.parametrize(
    ("t", "guided_there"),
    [(999.0, False), (800.0, False), (700.0, True), (300.0, True), (99.0, False)],
)
def test_outside_the_interval_there_is_no_guidance(model, inputs, t, guided_there):
    context, x, times = noise(1, 1, 24), noise(2, 4, 8, 8), torch.full((2,), t)
    within = guided(model, inputs, context, 5.0, (0.25, 0.75))(x, times)
    expected = guided(model, inputs, context, 5.0 if guided_there else 1.0)(x, times)
    assert torch.equal(within, expected)


# ---- the edit ----------------------------------------------------------------------------------


@pytest.mark.parametrize("region", MODES)
def test_outside_the_blend_zone_the_photo_is_bit_identical(paint, region):
    result = paint(num_images=2, region=region)
    assert result.images.shape == (2, 40, 52, 3)
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    zone = result.region.photo_blend_mask > 0
    assert 0 < zone.float().mean() < 0.5
    assert torch.equal(result.images[:, ~zone], PHOTO[None, ~zone].expand(2, -1, -1))
    assert (result.images[:, HOLE > 0.5] != PHOTO[HOLE > 0.5]).float().mean() > 0.9


def test_it_depends_on_nothing_but_its_arguments(paint):
    state = torch.get_rng_state()
    first = paint(seed=3)
    assert torch.equal(torch.get_rng_state(), state)  # nor does it touch torch's global stream
    torch.randn(7)
    second = paint(seed=3)
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, paint(seed=4).images)


def test_what_is_not_said_the_model_says():
    usual, own = small_model(), small_model()
    own.config = replace(
        own.config, defaults=EditDefaults(steps=3, similarity=2.0, sampler="euler")
    )
    said = edit(usual, PHOTO, HOLE, EXEMPLAR, steps=3, similarity=2.0, sampler="euler").images
    assert torch.equal(edit(own, PHOTO, HOLE, EXEMPLAR).images, said)
    for other in ({"steps": 4}, {"similarity": 5.0}, {"sampler": "ddim"}):
        assert not torch.equal(edit(own, PHOTO, HOLE, EXEMPLAR, **other).images, said), other


def test_arguments_are_left_alone(model):
    given = [PHOTO.clone(), HOLE.clone(), EXEMPLAR.clone()]
    edit(model, *given, steps=1)
    assert all(torch.equal(a, b) for a, b in zip(given, (PHOTO, HOLE, EXEMPLAR), strict=True))


@pytest.mark.parametrize("similarity", [1.0, 3.0])
def test_image_i_of_a_batch_is_that_of_seed_plus_i(paint, similarity):
    batch = paint(num_images=3, seed=5, similarity=similarity).images
    for i in range(3):
        alone = paint(seed=5 + i, similarity=similarity).images[0]
        torch.testing.assert_close(batch[i], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(batch[0], batch[1], atol=1e-2)


def test_similarity_zero_ignores_the_exemplar(model):
    paint = partial(edit, model, PHOTO, HOLE, steps=2)
    other = EXEMPLAR.flip(0) ** 2
    assert torch.equal(paint(EXEMPLAR, similarity=0).images, paint(other, similarity=0).images)
    assert not torch.equal(paint(EXEMPLAR, similarity=1).images, paint(other, similarity=1).images)


def test_what_was_in_the_hole_does_not_matter(model):
    """At full strength, because the network sees grey there."""
    # Of a size that the model takes as it is: no resize mixes the hole with what is around it.
    photo, hole = PHOTO[4:36, 10:42], HOLE[4:36, 10:42]
    changed = torch.where(hole[..., None] > 0.5, 1 - photo, photo)
    crops = [
        edit(model, image, hole, EXEMPLAR, steps=2, region="whole").crops
        for image in (photo, changed)
    ]
    torch.testing.assert_close(crops[0], crops[1], rtol=0, atol=1e-5)


def test_low_strength_runs_the_last_steps_from_the_photo(model):
    """At the clean end little noise is added, so the painted crop stays near the photo's."""
    seen, calls = [], []
    paint = partial(edit, model, PHOTO, HOLE, EXEMPLAR, steps=8, region="whole")
    handle = model.unet.register_forward_pre_hook(lambda module, given: seen.append(given))
    paint(strength=0.25, callback=lambda i, total, x0: calls.append((i, total)))
    handle.remove()
    assert calls == [(0, 2), (1, 2)]

    x, t, _ = seen[0]
    latent = encode_crops(model, *crop(PHOTO[None], HOLE[None], paint().region)).latent
    start = initial_noise(0, tuple(latent.shape[1:]))
    expected = model.schedule.add_noise(latent, start, t)
    assert t < 300
    assert relative_error(x[:, :4], expected) < 0.05  # t is rounded for the network only


def test_each_image_draws_its_posterior_and_then_its_start(model, paint):
    """From one seed; without a sample of the posterior the start is the first draw, as ever."""
    seen = []
    handle = model.unet.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    settings = {"num_images": 2, "seed": 5, "steps": 1, "similarity": 1.0}
    drawn = paint(posterior="sample", **settings)
    paint(**settings)
    handle.remove()

    cropped, hole = crop(PHOTO[None], HOLE[None], drawn.region)
    greyed = torch.where(hole[..., None] > 0.5, 0.5, cropped).permute(0, 3, 1, 2) * 2 - 1
    posterior = model.vae.encode(greyed)
    for i in range(2):
        generator = torch.Generator().manual_seed(5 + i)
        first, second = (torch.randn(1, 4, 16, 16, generator=generator) for _ in range(2))
        sampled = posterior.mean + (posterior.logvar / 2).exp() * first
        assert torch.equal(seen[0][i, None, :4], second)
        assert relative_error(seen[0][i, None, 4:8], 0.18215 * sampled) < 1e-5
        assert torch.equal(seen[-1][i, None, :4], first)
        assert relative_error(seen[-1][i, None, 4:8], 0.18215 * posterior.mean) < 1e-5


def test_image_i_with_a_posterior_of_its_own_can_be_drawn_alone(paint):
    batch = paint(num_images=2, seed=5, posterior="sample").images
    alone = paint(seed=6, posterior="sample").images[0]
    torch.testing.assert_close(batch[1], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("region", MODES)
def test_without_pasting_back_the_result_is_the_whole_crop(paint, region):
    result, pasted = (paint(region=region, num_images=2, paste_back=b) for b in (False, True))
    assert result.images.shape == (2, *result.region.size, 3)
    assert torch.equal(result.images, pasted.crops)


# ---- several holes, and masks of their own -------------------------------------------------------

HOLES = torch.zeros(40, 52)
HOLES[4:12, 3:12] = HOLES[26:36, 36:46] = 1


@pytest.fixture(scope="module")
def paint_each(model):
    """An edit of two distant holes."""
    return partial(edit, model, PHOTO, HOLES, EXEMPLAR, steps=2, region="each",
                   crop=CropSettings(context=1.2))  # fmt: skip


def test_one_hole_is_painted_the_same_by_itself(paint):
    for options in ({}, {"num_images": 2, "posterior": "sample", "strength": 0.7}):
        auto, each = (paint(region=region, **options) for region in ("auto", "each"))
        assert torch.equal(auto.images, each.images) and torch.equal(auto.crops, each.crops)


@pytest.mark.parametrize("options", [{}, {"posterior": "sample"}, {"strength": 0.5}], ids=str)
def test_each_hole_is_a_crop_of_its_own(model, paint_each, options):
    """The first is that of an edit of the first hole alone, the second draws the next noise."""
    result = paint_each(num_images=2, seed=5, **options)
    assert result.crops.shape == (4, 32, 32, 3) and result.images.shape == (2, 40, 52, 3)
    assert [region.size for region in result.regions] == [(32, 32)] * 2
    first = torch.where(torch.arange(40)[:, None] < 20, HOLES, 0)
    alone = edit(model, PHOTO, first, EXEMPLAR, steps=2, crop=CropSettings(context=1.2),
                 num_images=2, seed=5, **options)  # fmt: skip
    assert alone.regions[0].box == result.regions[0].box
    assert relative_error(result.crops[::2], alone.crops) < 1e-4
    outside = result.blend_mask == 0
    assert torch.equal(result.images[:, outside], PHOTO[None, outside].expand(2, -1, -1))
    assert (result.images[:, HOLES == 1] != PHOTO[HOLES == 1]).float().mean() > 0.9


def test_image_i_has_seed_plus_i_whatever_the_number_of_holes(paint_each):
    batch = paint_each(num_images=3, seed=5).images
    for i in range(3):
        alone = paint_each(seed=5 + i).images[0]
        torch.testing.assert_close(batch[i], alone, rtol=0, atol=1e-4)


def test_each_hole_gets_an_exemplar_of_its_own(model, paint_each):
    """Hole 1 and 2 as in edits with that exemplar for both; masks give the holes other numbers."""
    exemplars = [EXEMPLAR, 1 - EXEMPLAR]
    options = {"num_images": 2, "steps": 2, "region": "each", "crop": CropSettings(context=1.2)}
    result = edit(model, PHOTO, HOLES, exemplars, **options)
    both = [edit(model, PHOTO, HOLES, one, **options) for one in exemplars]
    assert relative_error(both[0].crops, both[1].crops) > 1e-2
    for hole in range(2):
        assert relative_error(result.crops[hole::2], both[hole].crops[hole::2]) < 1e-4

    upper = torch.where(torch.arange(40)[:, None] < 20, HOLES, 0)
    swapped = edit(model, PHOTO, torch.stack([HOLES - upper, upper]), exemplars[::-1], **options)
    boxes = [region.box for region in swapped.regions]
    assert boxes == [region.box for region in result.regions[::-1]]
    assert edit(
        model, PHOTO, HOLES, exemplars, exemplar_mask=[None, torch.ones(20, 12)], **options
    ).images.equal(result.images)


def test_an_interval_of_everything_changes_no_bit(paint):
    assert torch.equal(paint().images, paint(guidance_interval=(0, 1)).images)
    assert not torch.equal(paint().images, paint(guidance_interval=(0.5, 1)).images)
    assert torch.equal(
        paint(similarity=1.0).images, paint(guidance_interval=(0.9995, 0.9996)).images
    )


def test_noise_of_several_crops_continues_their_seed():
    several = initial_noise(7, (4, 3, 5), num_images=2, num_crops=3)
    assert torch.equal(several[::3], initial_noise(7, (4, 3, 5), num_images=2))
    assert torch.equal(several[3:], initial_noise(8, (4, 3, 5), num_crops=3))
    assert len({row.sum().item() for row in several}) == 6


def test_every_crop_is_matched_to_its_own_part_of_the_photo(paint_each):
    plain, matched = (paint_each(num_images=2, colour_match=on) for on in (False, True))
    for i, painted in enumerate(plain.crops):
        original, hole = crop(PHOTO[None], HOLES[None], plain.regions[i % 2])
        expected = match_colour(painted[None], original, hole)[0]
        torch.testing.assert_close(matched.crops[i], expected)
        assert not torch.allclose(painted, expected, atol=0.01)


def test_without_pasting_back_there_is_a_crop_for_every_hole(paint_each):
    pasted, plain = (paint_each(num_images=2, paste_back=b) for b in (True, False))
    assert torch.equal(plain.images, pasted.crops)


def test_the_crop_is_chosen_as_asked(paint):
    marked = torch.zeros(20, 26)  # half the photo's size
    marked[18:, :2] = 1
    shown = paint(crop=CropSettings(context_mask=marked), steps=1).region.box
    assert shown[0] <= 0 and shown[3] >= 40
    wide, tight = (
        paint(crop=CropSettings(context=context), steps=1).region.box for context in (2.5, 1)
    )
    assert wide[2] - wide[0] > 2 * (tight[2] - tight[0])
    assert paint(crop=CropSettings(resolution=48), steps=1).crops.shape == (1, 48, 48, 3)
    hard = paint(crop=CropSettings(blend=0), steps=1)
    assert torch.equal(hard.blend_mask, HOLE)


def test_the_blend_mask_does_not_change_what_is_painted(paint):
    shares = torch.zeros(40, 52)
    shares[10:24, 16:26] = 0.25
    plain, blended = (
        paint(crop=CropSettings(context=3, blend_mask=mask)) for mask in (HOLE, shares)
    )
    assert torch.equal(plain.crops, blended.crops)
    assert torch.equal(blended.blend_mask, shares)
    assert torch.equal(blended.images[0, shares == 0], PHOTO[shares == 0])
    assert not torch.equal(plain.images, blended.images)


def test_a_cast_of_the_decoder_shows_in_the_hole_unless_colours_are_matched():
    """What it adds to every pixel is a step at the rim, outside of which it is not pasted."""

    def painted(cast: list[float], colour_match: bool) -> Tensor:
        tinted = small_model()
        tinted.vae.decoder.conv_out.weight.mul_(0.1)  # far from 0 and 1, where it is cut off
        tinted.vae.decoder.conv_out.bias.copy_(torch.tensor(cast) * 2)
        result = edit(tinted, PHOTO, HOLE, EXEMPLAR, steps=1, colour_match=colour_match)
        assert torch.equal(result.images[0, result.blend_mask == 0], PHOTO[result.blend_mask == 0])
        return result.images[0, HOLE == 1]

    cast = [0.15, -0.1, 0.05]
    step = painted(cast, colour_match=False) - painted([0, 0, 0], colour_match=False)
    torch.testing.assert_close(step, torch.tensor(cast).expand_as(step), rtol=0, atol=1e-4)
    step = painted(cast, colour_match=True) - painted([0, 0, 0], colour_match=True)
    assert step.abs().max() < 1e-4


def test_truncation_cuts_what_is_painted_to_8_bits_and_leaves_the_photo(paint, tmp_path):
    plain, cut = paint().crops, paint(truncate=True)
    levels = (plain[0] * 255).floor()
    assert torch.equal(cut.crops[0], levels / 255)
    assert 0.3 < ((plain[0] * 255).round() != levels).float().mean() < 0.7
    write_image(tmp_path / "crop.png", cut.crops[0])
    assert torch.equal(read_image(tmp_path / "crop.png"), cut.crops[0])
    outside = cut.region.photo_blend_mask == 0
    assert torch.equal(cut.images[0, outside], PHOTO[outside])


def test_presets_are_arguments_of_edit():
    arguments = signature(edit).parameters
    for name, preset in PRESETS.items():
        assert preset.keys() <= arguments.keys(), name
        # It settles everything but what is painted, where, and how often. Guidance everywhere is
        # what the official script has, and the default.
        rest = arguments.keys() - preset.keys()
        assert rest == {"model", "image", "hole_mask", "exemplar", "seed", "num_images",
                        "exemplar_mask", "crop", "colour_match", "guidance_interval",
                        "callback"}, name  # fmt: skip


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_paints(paint, sampler):
    calls = []
    result = paint(sampler=sampler, steps=4, callback=lambda *state: calls.append(state))
    assert torch.isfinite(result.images).all()
    assert [(i, total) for i, total, _ in calls] == [(i, 4) for i in range(4)]
    assert calls[-1][2].shape == (1, 4, 16, 16)


def test_a_mask_of_another_size_is_resized(model):
    small = torch.zeros(20, 26)
    small[6:11, 9:15] = 1
    result = edit(model, PHOTO, small, EXEMPLAR, steps=1)
    resized = F.interpolate(
        small[None, None], size=(40, 52), mode="bilinear", antialias=True
    )[0, 0]  # fmt: skip
    assert torch.equal(result.images, edit(model, PHOTO, resized, EXEMPLAR, steps=1).images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_paints_about_the_same(paint, dtype):
    half = small_model().to(dtype)
    result = edit(half, PHOTO, HOLE, EXEMPLAR, steps=1)
    assert result.images.dtype == PHOTO.dtype
    assert (result.images - paint(steps=1).images).abs().mean() < 0.02


def test_a_result_that_is_not_finite_is_an_error():
    broken = small_model()
    broken.vae.decoder.conv_out.bias.fill_(math.nan)
    with pytest.raises(ValueError, match=r"not finite .* torch\.float32; lower"):
        edit(broken, PHOTO, HOLE, EXEMPLAR, steps=1)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image": PHOTO[..., 0]}, r"image .*\(40, 52\).*\(H, W, 3\)"),
        ({"image": PHOTO[None]}, r"image .*\(1, 40, 52, 3\)"),
        ({"image": (PHOTO * 255).byte()}, r"image .*uint8"),
        ({"exemplar": torch.zeros(9, 9, 4)}, r"exemplar .*\(9, 9, 4\)"),
        ({"exemplar": torch.zeros(9, 7, 3)}, "7 x 9.*8 x 8"),
        ({"hole_mask": HOLE[None]}, r"hole_mask .*\(1, 40, 52\).*\(H, W\)"),
        ({"hole_mask": HOLE > 0.5}, "hole_mask .*bool"),
        ({"hole_mask": torch.zeros(40, 52)}, "empty"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "magic"}, "'magic'.*dpmpp_2m"),
        ({"region": "left"}, "'left'.*auto"),
        ({"fit": "stretch"}, "'stretch'.*squash"),
        ({"posterior": "mean"}, "'mean'.*mode, sample"),
        ({"num_images": 0}, "num_images is 0"),
        ({"similarity": -1.0}, "similarity is -1"),
        ({"similarity": math.nan}, "similarity is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, f"seed is {2**64}"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"strength": 0.0}, "strength is 0"),
        ({"strength": math.nan}, "strength is nan"),
        ({"strength": "all"}, "strength is all"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": "many"}, "steps is many"),
        ({"steps": 10**9}, "steps is 1000000000.*10,000"),
        ({"num_images": 10**7}, "num_images is 10000000.*1,000"),
        ({"similarity": "much"}, "similarity is much"),
        ({"crop": CropSettings(resolution=33)}, "resolution 33 is not a multiple of 4"),
        ({"crop": CropSettings(blend_mask=torch.zeros(40, 52))}, "blend mask is empty"),
        ({"exemplar_mask": torch.zeros(20, 12)}, "empty"),
        ({"exemplar": []}, "list of exemplars is empty"),
        ({"exemplar": [EXEMPLAR] * 2}, "region mode 'each', not 'auto'"),
        ({"exemplar": [EXEMPLAR] * 2, "region": "each"}, "2 exemplars and 1 holes do not match"),
        (
            {"exemplar": [EXEMPLAR] * 2, "exemplar_mask": [None] * 3, "region": "each"},
            "3 exemplar masks and 2 exemplars do not match",
        ),
        ({"guidance_interval": (0.5, 0.2)}, "interval is 0.5 to 0.2"),
        ({"guidance_interval": (0.0, math.nan)}, "interval is 0.0 to nan"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(model, changed, words):
    arguments = {"image": PHOTO, "hole_mask": HOLE, "exemplar": EXEMPLAR, "steps": 1, **changed}
    with pytest.raises(ValueError, match=words):
        edit(model, **arguments)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_model_of_v_that_has_seen_pure_noise_paints_with_every_sampler(sampler, strength):
    model = small_model(SMALL_V)
    hole = torch.zeros(32, 32)
    hole[8:24, 8:24] = 1
    options = {"steps": 3, "sampler": sampler, "strength": strength}
    image, exemplar = uniform(32, 32, 3), uniform(16, 16, 3, seed=1)
    found = edit(model, image, hole, exemplar, **options)
    assert found.images.isfinite().all()
    # The same weights taken for a model of the noise paint something else.
    other = edit(small_model(), image, hole, exemplar, **options)
    assert (found.crops - other.crops).abs().max() > 0.05
