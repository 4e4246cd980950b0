"""The image condition against diffusers' encoder, and its preprocessing against Pillow."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.deprecated.paint_by_example.image_encoder import (
    PaintByExampleImageEncoder,
)
from PIL import Image
from torch import nn
from transformers import CLIPImageProcessor

from pbe_model.checkpoints.diffusers_layout import to_diffusers
from pbe_model.editing.exemplar_image import parse_weights, preprocess, weighted_mean
from pbe_model.networks.exemplar_encoder import ExemplarEncoder, LayerNorm, normalise

from ..peers import peer_encoder
from ..small import SMALL, noise, randomise, relative_error, uniform

CONFIG, CONTEXT = SMALL.exemplar, SMALL.unet.context_dim


@pytest.fixture(scope="module")
def encoder() -> ExemplarEncoder:
    encoder = ExemplarEncoder(CONFIG, CONTEXT)
    randomise(encoder)
    return encoder.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def peer(encoder: ExemplarEncoder) -> PaintByExampleImageEncoder:
    peer = peer_encoder()
    named = to_diffusers(encoder.state_dict(), SMALL)
    peer.load_state_dict({n.removeprefix("image_encoder."): t for n, t in named.items()})
    return peer.eval().requires_grad_(False)


def test_agrees_with_diffusers(encoder, peer):
    pixels = noise(3, 3, CONFIG.image_size, CONFIG.image_size)
    theirs, vector = peer(pixels, return_uncond_vector=True)
    ours = encoder(pixels)
    assert ours.shape == (3, 1, CONTEXT)
    assert relative_error(ours, theirs) < 1e-4
    assert torch.equal(encoder.unconditional(3), vector.repeat(3, 1, 1))


def test_the_comparison_sees_the_order_of_query_key_and_value(encoder, peer):
    """Over one token they would not matter; over all of them they do."""
    tokens = noise(2, 5, CONFIG.hidden_size)
    mapper = encoder.cond_stage_model.mapper
    assert len(peer.mapper.blocks) == CONFIG.mapper_layers == 2
    assert relative_error(mapper(tokens), peer.mapper(tokens)) < 1e-4

    c_qkv = mapper.resblocks[0].attn.c_qkv.weight
    right = c_qkv.clone()
    c_qkv.copy_(torch.cat(right.chunk(3)[::-1]))
    wrong = mapper(tokens)
    c_qkv.copy_(right)
    assert relative_error(wrong, peer.mapper(tokens)) > 1e-2


def test_class_feature_is_pooled_but_not_projected(encoder):
    """It is the first token after the last LayerNorm: the tower holds no projection at all."""
    tower = encoder.cond_stage_model.transformer
    output = tower(pixel_values=noise(1, 3, 16, 16))
    vision = getattr(tower, "vision_model", tower)
    expected = vision.post_layernorm(output.last_hidden_state[:, 0])
    torch.testing.assert_close(output.pooler_output, expected)
    assert not [name for name in tower.state_dict() if "projection" in name]


def test_all_tokens(encoder):
    every = ExemplarEncoder(CONFIG, CONTEXT, "all").eval()
    every.load_state_dict(encoder.state_dict())
    pixels = noise(2, 3, 16, 16)
    tower = encoder.cond_stage_model.transformer
    vision = getattr(tower, "vision_model", tower)
    hidden = vision.post_layernorm(tower(pixel_values=pixels).last_hidden_state)
    stage = encoder.cond_stage_model
    expected = encoder.proj_out(stage.final_ln(stage.mapper(hidden)))
    with torch.no_grad():
        context = every(pixels)
    assert (encoder.num_tokens, every.num_tokens) == (1, 1 + (16 // 8) ** 2)
    assert context.shape == (2, 5, CONTEXT)
    torch.testing.assert_close(context, expected)
    vectors = every.unconditional(2)
    assert torch.equal(vectors, every.learnable_vector.repeat(2, 5, 1))


def test_layer_norm_computes_in_float32():
    ours = LayerNorm(64)
    theirs = nn.LayerNorm(64, eps=1e-5)
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict())
    x = noise(2, 64) * 300  # squares overflow in float16
    torch.testing.assert_close(ours(x), theirs(x))
    half = ours.half()(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), theirs(x), rtol=2e-3, atol=2e-3)


# ---- several exemplars -------------------------------------------------------------------------


def test_a_weighted_mean_by_hand():
    contexts = torch.tensor([[[1.0, 10.0]], [[3.0, 30.0]], [[100.0, 100.0]]])  # (3, 1, 2)
    mean = weighted_mean(contexts, [3, 1, 0])
    assert mean.shape == (1, 1, 2)
    torch.testing.assert_close(mean, torch.tensor([[[1.5, 15.0]]]))
    torch.testing.assert_close(weighted_mean(contexts, [0.3, 0.1, 0]), mean)  # only ratios count
    torch.testing.assert_close(weighted_mean(contexts, [3e300, 1e300, 0]), mean)
    torch.testing.assert_close(weighted_mean(contexts), weighted_mean(contexts, [2, 2, 2]))
    assert torch.equal(weighted_mean(contexts, [0, 0, 7]), contexts[2:])


def test_many_tokens_are_averaged_each_with_its_peer():
    contexts = noise(2, 5, 4)
    expected = (contexts[:1] + 3 * contexts[1:]) / 4
    torch.testing.assert_close(weighted_mean(contexts, [1, 3]), expected)


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1], "weights is 1 and that of exemplars 2; give one weight for each"),
        ([1, 2, 3], "weights is 3 and that of exemplars 2"),
        ([1, -0.5], "-0.5 is not a weight"),
        ([1, float("nan")], "nan is not a weight"),
        ([float("inf"), 1], "inf is not a weight"),
        ([0, 0], "all weights are 0"),
    ],
)
def test_bad_weights_are_refused(weights, words):
    with pytest.raises(ValueError, match=words):
        weighted_mean(noise(2, 1, 4), weights)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("1, 0.5, 2", [1, 0.5, 2]),
        ("1 .5\n2e0;", [1, 0.5, 2]),
        ("-1", [-1]),
        ("", None),
        (" ,\n", None),
    ],
)
def test_weights_are_read_from_text(text, weights):
    assert parse_weights(text) == weights


@pytest.mark.parametrize("text", ["1, half", "50%", "1:2", "0x1"])
def test_text_that_holds_no_weights_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a weight; write one number for each exemplar"):
        parse_weights(text)


# ---- preprocessing -----------------------------------------------------------------------------


def picture(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """8-bit noise, (H, W, 3) in [0, 1]."""
    return (uniform(height, width, 3, seed=seed) * 255).round() / 255


def pillow(image: torch.Tensor, size: int) -> torch.Tensor:
    array = (image * 255).round().numpy().astype(np.uint8)
    resized = Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("shape", [(50, 31), (8, 200), (16, 16), (9, 8)])
def test_squash_is_pillows_bicubic_to_the_bit(shape):
    exemplar = picture(*shape)
    result = preprocess(exemplar, 16)
    assert result.shape == (3, 16, 16)
    assert torch.equal(result, pillow(exemplar, 16))


def test_crop_cuts_the_centre_square():
    exemplar = picture(20, 60)
    assert torch.equal(preprocess(exemplar, 16, fit="crop"), pillow(exemplar[:, 20:40], 16))
    tall = exemplar.transpose(0, 1)
    assert torch.equal(preprocess(tall, 16, fit="crop"), pillow(tall[20:40], 16))


def test_pad_adds_grey_to_a_square():
    exemplar = picture(20, 60)
    square = torch.full((60, 60, 3), 127 / 255)
    square[20:40] = exemplar
    assert torch.equal(preprocess(exemplar, 16, fit="pad"), pillow(square, 16))


def test_the_exemplar_mask_cuts_to_its_box_and_greys_the_rest():
    exemplar, mask = picture(30, 40), torch.zeros(30, 40)
    mask[5:25, 10:30] = 1
    mask[5:10, 10:15] = 0  # a corner of the box that is not the object
    expected = exemplar[5:25, 10:30].clone()
    expected[:5, :5] = 127 / 255
    assert torch.equal(preprocess(exemplar, 16, exemplar_mask=mask), pillow(expected, 16))


def test_a_soft_exemplar_mask_fades_to_grey():
    exemplar, mask = torch.ones(20, 20, 3), torch.ones(20, 20)
    mask[:, :10] = 0.75
    result = preprocess(exemplar, 20, exemplar_mask=mask)
    assert result[:, :, 0].unique().item() == pytest.approx(round(191.25 + 127 / 4) / 255)
    assert (result[:, :, -1] == 1).all()


def test_out_of_range_values_are_clamped_not_wrapped():
    exemplar = picture(16, 16) * 3 - 1
    assert torch.equal(preprocess(exemplar, 16), pillow(exemplar.clamp(0, 1), 16))


def test_normalise_is_clips(encoder):
    exemplar = picture(16, 16)
    array = (exemplar * 255).round().numpy().astype(np.uint8)
    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False)
    theirs = processor(Image.fromarray(array), return_tensors="pt").pixel_values
    torch.testing.assert_close(normalise(preprocess(exemplar, 16)[None]), theirs, atol=1e-5, rtol=0)


def stripe(side: int, rows: int) -> torch.Tensor:
    mask = torch.zeros(side, side)
    mask[3 : 3 + rows] = 1
    return mask


@pytest.mark.parametrize(
    ("shape", "kwargs", "words"),
    [
        ((7, 100), {}, "100 x 7.*8 x 8"),
        ((100, 7), {}, "7 x 100.*8 x 8"),
        ((16, 16), {"fit": "stretch"}, "'stretch'.*squash.*crop.*pad"),
        ((16, 16), {"exemplar_mask": torch.zeros(16, 16)}, "empty"),
        ((16, 16), {"exemplar_mask": torch.full((16, 16), 0.5)}, "empty"),
        ((16, 20), {"exemplar_mask": torch.ones(20, 16)}, "16 x 20.*20 x 16"),
        ((16, 16), {"exemplar_mask": torch.ones(4, 16)}, "16 x 4.*16 x 16"),
        ((16, 16), {"exemplar_mask": stripe(16, 4)}, "inside its mask is 16 x 4.*8 x 8"),
    ],
)
def test_bad_exemplars_are_refused(shape, kwargs, words):
    with pytest.raises(ValueError, match=words):
        preprocess(picture(*shape), 16, **kwargs)
