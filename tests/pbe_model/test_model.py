"""The parts together: channel order, scale factor, and the official checkpoint's names."""

import gzip
from pathlib import Path

import pytest
import torch

from pbe_model import TINY, V1, PaintByExample
from pbe_model.checkpoints.load import state_dict

from .small import SMALL, noise, relative_error, small_model

OFFICIAL_KEYS = Path(__file__).parents[1] / "data" / "official_keys.tsv.gz"


@pytest.fixture(scope="module")
def model() -> PaintByExample:
    return small_model()


def test_v1_has_exactly_the_official_names_and_shapes():
    with gzip.open(OFFICIAL_KEYS, "rt") as file:
        rows = (line.rstrip("\n").split("\t") for line in file)
        official = {name: tuple(map(int, shape.split(","))) for name, shape in rows}
    assert len(official) == 1403
    with torch.device("meta"):
        model = PaintByExample(V1)
    ours = {name: tuple(tensor.shape) for name, tensor in state_dict(model).items()}
    ours |= {name: tuple(tensor.shape) for name, tensor in model.schedule.buffers().items()}
    # The one buffer that follows from the configuration; `save_official` writes it.
    ours["cond_stage_model.transformer.vision_model.embeddings.position_ids"] = (1, 257)
    assert ours == official


def test_tiny_fits_the_bundle():
    """At most 32 MB as float16."""
    with torch.device("meta"):
        model = PaintByExample(TINY)
    assert sum(t.numel() for t in state_dict(model).values()) * 2 < 32e6


def test_channel_order_is_noisy_then_masked_photo_then_mask(model):
    """Seen at the first convolution: noisy latent, photo, and the mask last, not second."""
    noisy, masked = torch.full((1, 4, 8, 8), 1.0), torch.full((1, 4, 8, 8), 2.0)
    keep = torch.full((1, 1, 8, 8), 3.0)
    seen = []
    handle = model.unet.input_blocks[0][0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0])
    )
    eps = model.predict_noise(noisy, torch.tensor([5]), masked, keep, noise(2, 1, 24))
    handle.remove()
    assert [channel.unique().item() for channel in seen[0][0]] == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    assert eps.shape == (2, 4, 8, 8)


def test_encode_scales_what_the_first_stage_gives_and_decode_unscales(model):
    image, unit = noise(2, 3, 16, 16).clamp(-1, 1), noise(2, 4, 8, 8, seed=1)
    posterior = model.vae.encode(image)
    assert SMALL.vae.scale_factor == 0.18215
    torch.testing.assert_close(model.encode(image), 0.18215 * posterior.mean)
    torch.testing.assert_close(model.encode(image, unit), 0.18215 * posterior.sample(unit))
    decoded = model.decode(model.encode(image))
    assert relative_error(decoded, model.vae.decode(posterior.mean).clamp(-1, 1)) < 1e-4


def test_decode_is_clamped(model):
    latent = noise(1, 4, 8, 8) * 10
    assert model.vae.decode(latent / 0.18215).abs().max() > 1
    assert model.decode(latent).abs().max() == 1


def test_device_and_type_are_those_of_the_weights(model):
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    assert small_model().half().dtype == torch.float16
