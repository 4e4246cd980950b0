"""The second stage: what is drawn for a sample, what is trained, how it starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pbe_model import PaintByExample
from pbe_model.checkpoints import load as checkpoint
from pbe_model.checkpoints import save as saving
from pbe_model.config import ScheduleConfig
from pbe_model.networks.unet import UNet
from training.data.dataset import collate
from training.stages.diffusion import Diffusion, Noised, initialise, starting_model

from ..runs import SMALL, run_config


def stage(photos: Path, out: Path, first_stage: Path, **options) -> Diffusion:
    return Diffusion(run_config(photos, out, first_stage, **options), torch.device("cpu"))


@pytest.mark.parametrize("variants", [None, 2])
def test_draws_depend_on_the_sample_alone(
    photos: Path, tmp_path: Path, first_stage: Path, variants: int | None
) -> None:
    made = stage(photos, tmp_path, first_stage, **{"data.geometry_variants": variants})
    together = made.batch(collate([made.dataset[number] for number in (21, 3, 8)]))
    alone = made.batch(collate([made.dataset[3]]))
    assert together.keys() == alone.keys()
    for name in ("noise", "timestep", "drop", "exemplar", "keep_mask"):
        assert torch.equal(together[name][1], alone[name][0]), name
    for name in ("latent", "masked_latent"):
        torch.testing.assert_close(together[name][1], alone[name][0], rtol=1e-4, atol=1e-5)
    assert not torch.equal(together["noise"][0], together["noise"][1])


def test_one_in_five_conditions_is_dropped_and_timesteps_are_uniform(
    photos: Path, tmp_path: Path, first_stage: Path
) -> None:
    made = stage(photos, tmp_path, first_stage, **{"data.geometry_variants": 1})
    samples: list[dict[str, Any]] = [{} for _ in range(2000)]
    noised = Noised(samples, (1, 1, 1), made.num_timesteps, made.run, posterior=False)  # pyright: ignore[reportArgumentType]
    drawn = collate([noised[number] for number in range(2000)])
    drop, timestep = drawn["drop"].float(), drawn["timestep"].float()
    assert abs(drop.mean() - 0.2) < 4 * (0.2 * 0.8 / 2000) ** 0.5
    assert timestep.min() < 10 and timestep.max() > 989
    assert abs(timestep.mean() - 499.5) < 4 * 1000 / (12 * 2000) ** 0.5
    assert torch.corrcoef(torch.stack([drop, timestep]))[0, 1].abs() < 0.1


@pytest.mark.parametrize("shift", [4.0, 0.25])
def test_shifted_timesteps(photos: Path, tmp_path: Path, first_stage: Path, shift: float) -> None:
    made = stage(
        photos, tmp_path, first_stage, **{"loss.timestep_shift": shift, "data.geometry_variants": 1}
    )
    samples: list[dict[str, Any]] = [{} for _ in range(2000)]
    noised = Noised(samples, (1, 1, 1), made.num_timesteps, made.run, posterior=False)  # pyright: ignore[reportArgumentType]
    timestep = torch.tensor([noised[number]["timestep"] for number in range(2000)]) / 1000
    assert timestep.min() >= 0 and timestep.max() < 1
    # Where u = s u' / (1 + (s - 1) u') is 1/2, the uniform u' is 1 / (1 + s).
    share = (timestep < 0.5).float().mean()
    assert abs(share - 1 / (1 + shift)) < 4 * 0.5 / 2000**0.5


@pytest.mark.parametrize(("tokens", "train_tower"), [("class", False), ("all", True)])
def test_what_is_trained(
    photos: Path, tmp_path: Path, small_checkpoint: Path, tokens: str, train_tower: bool
) -> None:
    made = stage(photos, tmp_path, small_checkpoint, tokens=tokens, train_tower=train_tower)
    trained = {name for name, p in made.module.named_parameters() if p.requires_grad}
    assert not any(p.requires_grad for p in made.model.vae.parameters())
    tower = {name for name in trained if "transformer" in name and name.startswith("encoder.")}
    assert bool(tower) == train_tower
    inert = {f"unet.{name}" for name, _ in made.model.unet.inert_parameters()}
    assert inert and all(("to_q" in n or "to_k" in n or "norm2" in n) for n in inert)
    assert inert.isdisjoint(trained) if tokens == "class" else inert <= trained
    assert "encoder.learnable_vector" in trained
    assert any(name.startswith("encoder.cond_stage_model.mapper") for name in trained)
    # Everything that is trained gets a gradient: data-parallel training would wait for it.
    made.module.unet.requires_grad_(True)
    loaded = collate([made.dataset[number] for number in range(8)])
    with torch.no_grad():
        for parameter in made.module.unet.parameters():
            parameter.add_(0.01)  # off the zeros of the start
    made.module(made.batch(loaded))["loss"].backward()
    without = {n for n, p in made.module.named_parameters() if p.requires_grad and p.grad is None}
    assert without & trained == set()
    assert tokens == "all" or inert <= without


def test_the_denoiser_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    unet = UNet(SMALL.unet)
    x, timesteps = 3 * torch.randn(2, 9, 8, 8) + 1, torch.tensor([1, 2])
    initialise(unet)
    found = unet(x, timesteps, torch.randn(2, 1, 16))
    # Up to the last norm, whose groups of 4 channels hold two of the latent and their negatives.
    groups = x[:, :4].unflatten(1, (2, 2))
    expected = groups / groups.square().mean((2, 3, 4), keepdim=True).sqrt()
    torch.testing.assert_close(found, expected.flatten(1, 2), rtol=0, atol=1e-4)
    assert torch.equal(found, unet(x, timesteps, torch.randn(2, 1, 16)))


def test_a_denoiser_of_v_starts_at_zero() -> None:
    unet = UNet(SMALL.unet)
    initialise(unet, identity=False)
    found = unet(torch.randn(2, 9, 8, 8), torch.tensor([1, 2]), torch.randn(2, 1, 16))
    assert torch.equal(found, torch.zeros_like(found))


def test_weights_start_from_the_file_and_the_seed(
    photos: Path, tmp_path: Path, first_stage: Path
) -> None:
    one, two, other = (
        stage(photos, tmp_path, first_stage, seed=seed).model.state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    differing = {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}
    assert differing == {"unet", "encoder"}


def test_no_first_stage_is_refused(photos: Path, tmp_path: Path) -> None:
    config = run_config(photos, tmp_path, stage="diffusion")
    with pytest.raises(ValueError, match="set init to its exported file"):
        Diffusion(config, torch.device("cpu"))


def test_a_tower_that_stays_random_is_refused(
    photos: Path, tmp_path: Path, first_stage: Path
) -> None:
    with pytest.raises(ValueError, match=r"no image tower.*set init_tower to openai/clip-vit"):
        stage(photos, tmp_path, first_stage, train_tower=False)


def test_what_a_denoiser_has_learned_to_predict_is_not_changed_in_silence(
    photos: Path, tmp_path: Path
) -> None:
    schedule = ScheduleConfig(prediction="v", zero_terminal_snr=True)
    learned = tmp_path / "model.safetensors"
    saving.save_model(learned, PaintByExample(replace(SMALL, schedule=schedule)))
    with pytest.raises(ValueError, match=r"prediction 'v', but loss\.prediction is 'epsilon'; set"):
        starting_model(run_config(photos, tmp_path / "run", learned))
    goes_on = {"loss.prediction": "v", "loss.zero_terminal_snr": True}
    starting_model(run_config(photos, tmp_path / "run", learned, **goes_on))
    only_the_first_stage = {"init_parts": ["vae"], "train_tower": True}
    starting_model(run_config(photos, tmp_path / "run", learned, **only_the_first_stage))


def test_validation_and_pictures_repeat(photos: Path, tmp_path: Path, first_stage: Path) -> None:
    made = stage(photos, tmp_path, first_stage)
    error = made.validate()["val_eps_mse"]
    # An untrained denoiser takes all it sees for noise: right at the noisiest timesteps only.
    assert 0.01 < error < 1
    assert made.validate()["val_eps_mse"] == error
    found = made.pictures()
    assert found.images.shape == (8 * 5, 3, 16, 16)
    row = ("photo", "hole", "exemplar", "similarity 1", "similarity 3")
    assert found.titles == row + row
    assert torch.equal(found.images, made.pictures().images)


def test_a_run_starts_from_stable_diffusion(
    photos: Path, tmp_path: Path, first_stage: Path
) -> None:
    """Its denoiser and first stage; what it does not have starts as in every run."""
    torch.manual_seed(1)
    source = PaintByExample(SMALL)
    tensors = checkpoint.state_dict(source, checkpoint.START)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[first] = tensors[first][:, :4]
    tensors["cond_stage_model.transformer.text_model.final_layer_norm.bias"] = torch.zeros(3)
    path = tmp_path / "sd.ckpt"
    torch.save({"state_dict": tensors}, path)
    saving.convert(path, tmp_path / "start.safetensors", layout="safetensors")
    for init in (path, tmp_path / "start.safetensors"):
        unet = stage(photos, tmp_path, init, train_tower=True).model.unet.state_dict()
        for name, tensor in source.unet.state_dict().items():
            expected = tensor
            if name == "input_blocks.0.0.weight":
                expected = torch.cat([tensor[:, :4], torch.zeros_like(tensor[:, 4:])], dim=1)
            assert torch.equal(unet[name], expected), name
