"""Losses against their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pbe_model import PaintByExample
from pbe_model.config import ScheduleConfig
from pbe_model.networks.vae import AutoencoderKL
from training.stages.loss import DiffusionLoss, FirstStageLoss

from ..runs import SMALL, randomise

EPSILON = SMALL.schedule
PLAIN_V = ScheduleConfig(prediction="v")
ZERO_SNR = ScheduleConfig(prediction="v", zero_terminal_snr=True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(drop: list[bool], timestep: list[int] | None = None) -> dict[str, Tensor]:
    count, side = len(drop), SMALL.resolution // 2
    size = SMALL.exemplar.image_size
    return {
        "latent": noise(count, 4, side, side, seed=1),
        "masked_latent": noise(count, 4, side, side, seed=2),
        "keep_mask": noise(count, 1, side, side, seed=3).sigmoid(),
        "exemplar": noise(count, 3, size, size, seed=4).sigmoid(),
        "noise": noise(count, 4, side, side, seed=5),
        "timestep": torch.tensor(timestep or [100 + 300 * i for i in range(count)]),
        "drop": torch.tensor(drop),
    }


def diffusion_loss(schedule: ScheduleConfig = EPSILON, **options) -> DiffusionLoss:
    model = PaintByExample(replace(SMALL, schedule=schedule))
    randomise(model)
    return DiffusionLoss(model.unet, model.encoder, model.schedule, **options)


def silenced(module: DiffusionLoss) -> DiffusionLoss:
    """Its denoiser says zero, so its error is what it was asked for."""
    torch.nn.init.zeros_(module.unet.out[-1].weight)
    torch.nn.init.zeros_(module.unet.out[-1].bias)
    return module


def test_a_denoiser_that_says_zero_is_off_by_the_noise() -> None:
    module, given = silenced(diffusion_loss()), batch([False, True])
    expected = given["noise"].square().mean()
    found = module(given)
    for value in (found["loss"], found["eps_mse"], found["per_sample"].mean()):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("v_weight", [False, True])
@pytest.mark.parametrize("min_snr", [0.0, 5.0])
def test_weights_of_timesteps(min_snr: float, v_weight: bool) -> None:
    """`min(snr, gamma) / snr` for eps-prediction (arXiv 2303.09556, section 3.4); `1 / a` for v."""
    module = silenced(diffusion_loss(min_snr=min_snr, v_weight=v_weight))
    given = batch([False] * 3, timestep=[10, 300, 900])
    alpha = module.schedule.alphas_cumprod[given["timestep"]].double()
    snr = alpha / (1 - alpha)
    assert snr[0] > 5 > snr[2]
    weight = torch.ones(3, dtype=torch.double)
    if min_snr:
        weight[snr > 5] = 5 / snr[snr > 5]
    if v_weight:
        weight /= alpha
    error = given["noise"].square().flatten(1).mean(1)
    found = module(given)
    torch.testing.assert_close(found["loss"], (weight * error).mean().float())
    torch.testing.assert_close(found["eps_mse"], error.mean())
    torch.testing.assert_close(found["per_sample"], (weight * error).float())


@pytest.mark.parametrize("schedule", [PLAIN_V, ZERO_SNR], ids=["plain", "zero snr"])
@pytest.mark.parametrize("min_snr", [0.0, 5.0])
def test_of_v_a_denoiser_that_says_zero_is_off_by_v(
    schedule: ScheduleConfig, min_snr: float
) -> None:
    """Weighed by `min(snr, gamma) / (snr + 1)`: the clean latent's error by `min(snr, gamma)`."""
    module = silenced(diffusion_loss(schedule, min_snr=min_snr))
    given = batch([False] * 3, timestep=[10, 300, 999])
    alpha = module.schedule.alphas_cumprod[given["timestep"]][:, None, None, None]
    v = alpha.sqrt() * given["noise"] - (1 - alpha).sqrt() * given["latent"]
    error = v.square().flatten(1).mean(1)
    alpha = alpha.flatten()
    snr = alpha / (1 - alpha)
    assert snr[0] > 5 > snr[2]
    weight = snr.clamp(max=5.0) / (snr + 1) if min_snr else torch.ones_like(snr)
    found = module(given)
    assert found["per_sample"].shape == (3,) and not found["per_sample"].requires_grad
    torch.testing.assert_close(found["per_sample"], (weight * error).float())
    torch.testing.assert_close(found["loss"], (weight * error).mean().float())
    torch.testing.assert_close(found["eps_mse"], (alpha * error).mean().float())


@pytest.mark.parametrize("schedule", [PLAIN_V, ZERO_SNR], ids=["plain", "zero snr"])
def test_the_error_of_the_noise_is_that_of_the_noise_that_v_implies(
    schedule: ScheduleConfig,
) -> None:
    module, given = diffusion_loss(schedule), batch([False] * 2, timestep=[400, 999])
    said: list[Tensor] = []
    module.unet.register_forward_hook(lambda *args: said.append(args[-1]))
    found = module(given)["eps_mse"]
    alpha = module.schedule.alphas_cumprod[given["timestep"]].float()[:, None, None, None]
    noisy = module.schedule.add_noise(given["latent"], given["noise"], given["timestep"])
    implied = alpha.sqrt() * said[0] + (1 - alpha).sqrt() * noisy
    torch.testing.assert_close(found, (implied - given["noise"]).square().mean())


def test_at_zero_terminal_snr_the_denoiser_sees_noise_and_is_asked_for_the_picture() -> None:
    module, given = diffusion_loss(ZERO_SNR), batch([False], timestep=[999])
    seen: list[Tensor] = []
    module.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(given)["loss"].backward()
    assert torch.equal(seen[0][:, :4], given["noise"])
    gradients = [p.grad for p in module.unet.out.parameters()]
    assert all(g is not None and g.isfinite().all() and g.any() for g in gradients)


def test_a_loss_on_v_is_not_made_one_again() -> None:
    with pytest.raises(ValueError, match="predicts already; leave it out"):
        diffusion_loss(PLAIN_V, v_weight=True)


def test_weighted_error_of_the_noise_is_the_error_of_v() -> None:
    """With `v = sqrt(a) eps - sqrt(1 - a) x_0`, both taken from the same noisy latent."""
    module, given = diffusion_loss(v_weight=True), batch([False] * 2)
    said: list[Tensor] = []
    module.unet.register_forward_hook(lambda *args: said.append(args[-1]))
    loss = module(given)["loss"]
    alpha = module.schedule.alphas_cumprod[given["timestep"]].float()[:, None, None, None]
    noisy = module.schedule.add_noise(given["latent"], given["noise"], given["timestep"])
    guess = (noisy - (1 - alpha).sqrt() * said[0]) / alpha.sqrt()
    v = alpha.sqrt() * given["noise"] - (1 - alpha).sqrt() * given["latent"]
    said_v = alpha.sqrt() * said[0] - (1 - alpha).sqrt() * guess
    torch.testing.assert_close(loss, (said_v - v).square().mean())


def test_the_denoiser_sees_noisy_latent_then_photo_then_keep_mask() -> None:
    module, given = diffusion_loss(), batch([False])
    seen: list[Tensor] = []
    module.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(given)
    alpha = module.schedule.alphas_cumprod[given["timestep"]].float()[:, None, None, None]
    noisy = alpha.sqrt() * given["latent"] + (1 - alpha).sqrt() * given["noise"]
    torch.testing.assert_close(seen[0][:, :4], noisy)
    assert torch.equal(seen[0][:, 4:8], given["masked_latent"])
    assert torch.equal(seen[0][:, 8:], given["keep_mask"])


def test_conditions_are_dropped_sample_by_sample() -> None:
    module, given = diffusion_loss(), batch([True, False])
    before = module(given)["loss"]
    for row, matters in ((0, False), (1, True)):
        changed = {**given, "exemplar": given["exemplar"].clone()}
        changed["exemplar"][row] = 1 - changed["exemplar"][row]
        assert (module(changed)["loss"] != before) == matters


@pytest.mark.parametrize("dropped", [False, True])
def test_the_learnable_vector_learns_from_dropped_samples(dropped: bool) -> None:
    module = diffusion_loss()
    module(batch([False, dropped]))["loss"].backward()
    gradient = module.encoder.learnable_vector.grad
    assert gradient is not None and gradient.any() == dropped


def test_a_thumbnail_of_each_exemplar_is_asked_for_dropped_or_not() -> None:
    module, given = diffusion_loss(thumbnail_weight=0.5), batch([False, True])
    torch.nn.init.zeros_(module.thumbnail.weight)
    torch.nn.init.constant_(module.thumbnail.bias, 0.25)  # the same grey everywhere
    found = module(given)
    cells = given["exemplar"].unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))  # 16 pixels to 8
    expected = (cells * 2 - 1 - 0.25).square().mean()
    torch.testing.assert_close(found["thumbnail_mse"], expected)
    plain = diffusion_loss()
    plain.load_state_dict(module.state_dict(), strict=False)
    torch.testing.assert_close(found["loss"], plain(given)["loss"] + 0.5 * expected)


def test_the_thumbnail_teaches_the_tower_also_where_the_denoiser_is_deaf() -> None:
    module, given = silenced(diffusion_loss(thumbnail_weight=1.0)), batch([True, True])
    module(given)["loss"].backward()
    tower = module.encoder.cond_stage_model.transformer
    assert all(p.grad is not None and p.grad.any() for p in tower.parameters() if p.dim() == 4)


def test_first_stage_loss() -> None:
    vae = AutoencoderKL(SMALL.vae)
    randomise(vae)
    image, z = noise(2, 3, 16, 16).tanh(), noise(2, 4, 8, 8, seed=1)
    found = FirstStageLoss(vae, kl_weight=0.125)({"image": image, "noise": z})
    mean, log_variance = vae.quant_conv(vae.encoder(image)).chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    error = (vae.decode(mean + (log_variance / 2).exp() * z) - image).square().mean()
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    torch.testing.assert_close(found["kl"], kl)
    torch.testing.assert_close(found["loss"], error + 0.125 * kl)
    torch.testing.assert_close(found["psnr"], 20 * torch.log10(2 / error.sqrt()))
