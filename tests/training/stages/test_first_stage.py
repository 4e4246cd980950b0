"""The first stage: its start, its keyed noise, its validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pbe_model.checkpoints.load import read
from pbe_model.networks.vae import AutoencoderKL
from training.data.dataset import Stream, collate, keyed_rng
from training.stages.first_stage import FirstStage, initialise

from ..runs import SMALL, changed, run_config


def stage(photos: Path, tmp_path: Path) -> FirstStage:
    return FirstStage(run_config(photos, tmp_path / "run"), torch.device("cpu"))


def test_it_starts_as_a_network_that_passes_its_input_on() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(SMALL.vae)
    image = torch.rand(8, 3, 16, 16) * 2 - 1
    deviation = {}
    for name in ("before", "after"):
        posterior = vae.encode(image)
        deviation[name] = posterior.mean.std(dim=0).mean().item()  # between pictures
        if name == "before":
            initialise(vae)
    assert deviation["before"] < 0.25 < deviation["after"] < 1
    torch.testing.assert_close(posterior.logvar, torch.full_like(posterior.logvar, -6.0))


def test_noise_is_keyed_by_sample(photos: Path, tmp_path: Path) -> None:
    first = stage(photos, tmp_path)
    loaded = collate([first.dataset[number] for number in (5, 12)])
    batch = first.batch(loaded)
    alone = first.batch(collate([first.dataset[12]]))
    assert torch.equal(batch["noise"][1], alone["noise"][0])
    expected = keyed_rng(0, 12, Stream.NOISE).standard_normal((4, 8, 8), np.float32)
    assert np.array_equal(alone["noise"][0].numpy(), expected)
    assert torch.equal(batch["image"], loaded["image"])


def test_validation_is_the_error_of_held_out_pictures(photos: Path, tmp_path: Path) -> None:
    first = stage(photos, tmp_path)
    image = collate([first._held_out[number] for number in range(10)])["image"]
    with torch.no_grad():
        latent = first.module.vae.encode(image).mean
        mse = (first.module.vae.decode(latent).clamp(-1, 1) - image).square().flatten(1).mean(1)
    found = first.validate()
    assert found == first.validate()
    np.testing.assert_allclose(found["val_psnr"], 10 * np.log10(4 / mse.mean()), rtol=1e-5)
    np.testing.assert_allclose(
        found["val_psnr_per_image"], (10 * torch.log10(4 / mse)).mean(), rtol=1e-5
    )
    np.testing.assert_allclose(found["latent_std"], latent.std(), rtol=1e-5)


def test_pictures_are_pairs(photos: Path, tmp_path: Path) -> None:
    first = stage(photos, tmp_path)
    found = first.pictures()
    assert found.images.shape == (32, 3, 16, 16) and found.titles == 4 * ("photo", "decoded")
    assert torch.equal(found.images[6], collate([first._held_out[3]])["image"][0])


def test_it_goes_on_from_another_one(photos: Path, tmp_path: Path, first_stage: Path) -> None:
    config = changed(run_config(photos, tmp_path / "run"), init=first_stage)
    going_on = FirstStage(config, torch.device("cpu"))
    held = read(first_stage).tensors
    for name, parameter in going_on.module.vae.named_parameters():
        assert torch.equal(parameter, held[f"first_stage_model.{name}"]), name


def test_what_has_no_first_stage_is_named(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"learnable_vector": torch.zeros(1, 1, 8)}, path)
    config = changed(run_config(photos, tmp_path / "run"), init=path)
    with pytest.raises(ValueError, match=r"other\.safetensors holds no part of a Paint by Example"):
        FirstStage(config, torch.device("cpu"))
