"""Latents of samples, drawn and banked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pbe_model.networks.vae import AutoencoderKL
from training.data.augment import PhotoRecolour
from training.data.dataset import BoxDataset, collate
from training.stages.latents import LatentBank, LatentEncoder

from ..runs import SMALL, randomise


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.set_num_threads(1)
    made = AutoencoderKL(SMALL.vae)
    randomise(made)
    return made.requires_grad_(False)


def encoder(vae: AutoencoderKL) -> LatentEncoder:
    return LatentEncoder(vae, torch.device("cpu"))


def banked(photos: Path) -> BoxDataset:
    return BoxDataset(photos, resolution=16, exemplar_size=16, geometry_variants=2)


def test_the_photo_is_greyed_and_the_mask_stays_soft(vae: AutoencoderKL) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    hole_mask = torch.rand(2, 1, 16, 16, generator=generator)
    found = encoder(vae).encode(image, hole_mask)
    scale = SMALL.vae.scale_factor
    torch.testing.assert_close(found["latent"], scale * vae.encode(image).mean)
    masked = vae.encode(image * (1 - hole_mask)).mean
    torch.testing.assert_close(found["masked_latent"], scale * masked)
    # Halving with a bilinear resize is the mean of each 2 x 2.
    mean = hole_mask.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    torch.testing.assert_close(found["keep_mask"], 1 - mean)


def test_posteriors_are_sampled_with_the_given_noise(vae: AutoencoderKL) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1
    noise = torch.randn(2, 2, 4, 8, 8, generator=generator)  # (2, B, z, r, r)
    hole_mask = torch.zeros(2, 1, 16, 16)
    found = encoder(vae).encode(image, hole_mask, noise)
    for name, draw in zip(("latent", "masked_latent"), noise, strict=True):
        expected = SMALL.vae.scale_factor * vae.encode(image).sample(draw)
        torch.testing.assert_close(found[name], expected)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        assert torch.equal(found[name], expected[name]), name


def test_a_bank_holds_what_the_encoder_says(
    photos: Path, tmp_path: Path, vae: AutoencoderKL
) -> None:
    data = banked(photos)
    rows = torch.tensor([7, 3, 7])
    found = LatentBank(tmp_path, data, encoder(vae))(rows)
    full = BoxDataset(photos, resolution=16, exemplar_size=16, geometry_variants=2)
    by_row = {full.cache_key(number): full[number] for number in range(full.cache_rows)}
    loaded = collate([by_row[row] for row in rows.tolist()])
    expected = encoder(vae).encode(loaded["image"], loaded["hole_mask"])
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=2e-3, atol=2e-3)


def test_a_bank_is_filled_once_in_any_order_and_lasts(
    photos: Path, tmp_path: Path, vae: AutoencoderKL
) -> None:
    data = banked(photos)
    rows = torch.arange(data.cache_rows)
    calls: list[int] = []
    hook = vae.encoder.register_forward_hook(lambda *_: calls.append(1))
    forward = LatentBank(tmp_path / "a", data, encoder(vae))(rows)
    assert len(calls) == len(rows)
    again = LatentBank(tmp_path / "a", banked(photos), encoder(vae))(rows)
    assert len(calls) == len(rows)
    hook.remove()
    assert_same(again, forward)
    backward = LatentBank(tmp_path / "b", data, encoder(vae))(rows.flip(0))
    assert_same({name: values.flip(0) for name, values in backward.items()}, forward)


def test_another_first_stage_or_other_data_get_another_bank(
    photos: Path, tmp_path: Path, vae: AutoencoderKL
) -> None:
    other = AutoencoderKL(SMALL.vae)
    randomise(other, seed=1)
    LatentBank(tmp_path, banked(photos), encoder(vae))
    LatentBank(tmp_path, banked(photos), encoder(other))
    seeded = BoxDataset(photos, resolution=16, exemplar_size=16, geometry_variants=2, seed=1)
    LatentBank(tmp_path, seeded, encoder(vae))
    coloured = BoxDataset(
        photos,
        resolution=16,
        exemplar_size=16,
        geometry_variants=2,
        recolour=PhotoRecolour(probability=0.5),
    )
    LatentBank(tmp_path, coloured, encoder(vae))
    assert len(list(tmp_path.glob("*.bin"))) == 4
