"""The schedule against its recurrences, the official rules, and the official checkpoint's names."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from pbe_model.config import V1, ScheduleConfig
from pbe_model.sampling.schedule import (
    NoiseSchedule,
    SamplingGrid,
    karras_grid,
    official_grid,
    official_timesteps,
    trailing_timesteps,
)

SCHEDULE = NoiseSchedule.linear(V1.schedule)
PLAIN_V = NoiseSchedule.linear(ScheduleConfig(prediction="v"))
ZERO_SNR = NoiseSchedule.linear(ScheduleConfig(prediction="v", zero_terminal_snr=True))
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def test_levels_agree_with_diffusers():
    peer = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    torch.testing.assert_close(SCHEDULE.betas.float(), peer.betas, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        SCHEDULE.alphas_cumprod.float(), peer.alphas_cumprod, rtol=1e-4, atol=0
    )


def test_published_end_points():
    # Stable Diffusion's noise levels, as every k-diffusion front end prints them.
    assert SCHEDULE.sigmas[0].item() == pytest.approx(0.0292, abs=5e-5)
    assert SCHEDULE.sigmas[-1].item() == pytest.approx(14.6146, abs=5e-5)
    assert (SCHEDULE.sigmas.diff() > 0).all()


def test_buffers_have_the_official_names_and_shapes():
    assert {name: tuple(table.shape) for name, table in SCHEDULE.buffers().items()} == {
        name: (1000,)
        for name in (
            "betas",
            "alphas_cumprod",
            "alphas_cumprod_prev",
            "sqrt_alphas_cumprod",
            "sqrt_one_minus_alphas_cumprod",
            "log_one_minus_alphas_cumprod",
            "sqrt_recip_alphas_cumprod",
            "sqrt_recipm1_alphas_cumprod",
            "posterior_variance",
            "posterior_log_variance_clipped",
            "posterior_mean_coef1",
            "posterior_mean_coef2",
        )
    }
    assert all(table.dtype == torch.float32 for table in SCHEDULE.buffers().values())


def test_posterior_buffers_are_bayes_rule():
    """q(x_{t-1} | x_t, x_0) by multiplying two Gaussians, one timestep at a time."""
    buffers, t = SCHEDULE.buffers(), 417
    beta, before = SCHEDULE.betas[t].item(), SCHEDULE.alphas_cumprod[t - 1].item()
    # x_t | x_{t-1} has mean sqrt(1 - beta) x_{t-1}; x_{t-1} | x_0 has mean sqrt(before) x_0.
    precision = (1 - beta) / beta + 1 / (1 - before)
    expected = {
        "alphas_cumprod_prev": before,
        "posterior_variance": 1 / precision,
        "posterior_log_variance_clipped": -math.log(precision),
        "posterior_mean_coef1": math.sqrt(before) / (1 - before) / precision,
        "posterior_mean_coef2": math.sqrt(1 - beta) / beta / precision,
    }
    for name, value in expected.items():
        assert buffers[name][t].item() == pytest.approx(value, rel=1e-5), name
    assert buffers["alphas_cumprod_prev"][0] == 1
    assert buffers["posterior_variance"][0] == 0
    assert buffers["posterior_log_variance_clipped"][0].item() == pytest.approx(math.log(1e-20))


def test_derived_buffers_follow_from_alphas_cumprod():
    buffers, a = SCHEDULE.buffers(), SCHEDULE.alphas_cumprod
    close = {"rtol": 1e-6, "atol": 0}
    torch.testing.assert_close(buffers["sqrt_alphas_cumprod"] ** 2, a.float(), **close)
    noise = buffers["sqrt_one_minus_alphas_cumprod"]
    torch.testing.assert_close(noise**2, (1 - a).float(), **close)
    torch.testing.assert_close(
        buffers["log_one_minus_alphas_cumprod"].double().exp(), 1 - a, rtol=1e-5, atol=0
    )
    recip = buffers["sqrt_recip_alphas_cumprod"]
    torch.testing.assert_close(recip * buffers["sqrt_alphas_cumprod"], torch.ones(1000))
    torch.testing.assert_close(buffers["sqrt_recipm1_alphas_cumprod"], noise * recip)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_add_noise_at_each_sample_s_own_timestep(dtype):
    x0, noise = torch.randn(2, 4, 2, 3, 3, dtype=dtype).unbind()
    t = torch.tensor([0, 7, 500, 999])
    a = SCHEDULE.alphas_cumprod[t].view(-1, 1, 1, 1)
    expected = a.sqrt() * x0 + (1 - a).sqrt() * noise
    noisy = SCHEDULE.add_noise(x0, noise, t)
    assert noisy.dtype == dtype
    torch.testing.assert_close(noisy.double(), expected.double(), rtol=0, atol=2e-6)
    torch.testing.assert_close(SCHEDULE.add_noise(x0, noise, t.float()), noisy, rtol=0, atol=0)


def test_add_noise_between_timesteps_lies_between():
    one, none = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    levels = [SCHEDULE.add_noise(none, one, torch.tensor([t])).item() for t in (30.0, 30.25, 31.0)]
    assert levels == sorted(levels) and levels[0] < levels[1] < levels[2]
    between = SCHEDULE.add_noise(one, none, torch.tensor([30.25])).item()
    sigma = levels[1] / between
    assert SCHEDULE.timestep_of(sigma) == pytest.approx(30.25, abs=1e-3)


def test_timestep_of_inverts_sigmas_and_clamps():
    sigmas = SCHEDULE.sigmas.tolist()
    for t in (0, 1, 2, 313, 998, 999):
        assert SCHEDULE.timestep_of(sigmas[t]) == pytest.approx(t, abs=1e-9)
    assert SCHEDULE.timestep_of(1e-3) == 0
    assert SCHEDULE.timestep_of(1e3) == 999


@pytest.mark.parametrize(
    ("steps", "count", "noisiest"),
    [(1, 1, 1), (2, 2, 501), (12, 13, 997), (20, 20, 951), (50, 50, 981), (500, 500, 999)],
)
def test_official_timesteps(steps, count, noisiest):
    timesteps = official_timesteps(steps)
    assert timesteps == [t + 1 for t in range(0, 1000, 1000 // steps)]
    assert (len(timesteps), timesteps[0], timesteps[-1]) == (count, 1, noisiest)


@pytest.mark.parametrize("steps", [3, 9, 27, 37, 111, 333])
def test_official_timesteps_leave_out_the_one_that_does_not_exist(steps):
    rule = [t + 1 for t in range(0, 1000, 1000 // steps)]
    assert rule[-1] == 1000
    assert official_timesteps(steps) == rule[:-1]


@pytest.mark.parametrize("num_timesteps", [100, 1000])
def test_official_timesteps_exist_for_every_allowed_number_of_steps(num_timesteps):
    for steps in range(1, num_timesteps // 2 + 1):
        timesteps = official_timesteps(steps, num_timesteps)
        assert len(timesteps) >= steps and timesteps[0] == 1 and timesteps[-1] < num_timesteps


def test_official_timesteps_bad_input():
    with pytest.raises(ValueError, match=r"steps is 501; .* at most 500"):
        official_timesteps(501)
    with pytest.raises(ValueError, match="steps is 0; at least 1"):
        official_timesteps(0)


def test_official_grid_ends_at_timestep_zero_not_at_zero_noise():
    grid = official_grid(SCHEDULE, 50)
    assert grid.timesteps[0] == 981 and grid.timesteps[-2:] == (21, 1)
    expected = SCHEDULE.alphas_cumprod[[981, 961, 21, 1, 0]].tolist()
    assert [grid.alphas[i] for i in (0, 1, -3, -2, -1)] == expected
    assert grid.alphas[-1] < 1


@pytest.mark.parametrize("steps", [1, 2, 20, 1000])
def test_karras_grid(steps):
    grid = karras_grid(SCHEDULE, steps)
    assert len(grid) == steps and grid.alphas[-1] == 1
    assert list(grid.alphas) == sorted(grid.alphas)
    assert grid.timesteps[0] == pytest.approx(999)
    if steps > 1:
        assert grid.timesteps[-1] == pytest.approx(0, abs=1e-9)
        roots = torch.tensor([((1 - a) / a) ** (1 / 14) for a in grid.alphas[:-1]])
        torch.testing.assert_close(roots.diff(), torch.full((steps - 1,), roots.diff()[0].item()))


def test_karras_timesteps_are_where_the_model_knows_the_noise_level():
    grid = karras_grid(SCHEDULE, 10)
    one, none = torch.ones(10, 1), torch.zeros(10, 1)
    levels = SCHEDULE.add_noise(none, one, torch.tensor(grid.timesteps)).flatten() ** 2
    torch.testing.assert_close(levels, 1 - torch.tensor(grid.alphas[:-1]), rtol=1e-4, atol=0)


def test_karras_grid_bad_input():
    with pytest.raises(ValueError, match="steps is -1; at least 1"):
        karras_grid(SCHEDULE, -1)


def test_tail_keeps_the_last_steps_and_at_least_one():
    grid = SamplingGrid((9.0, 6.0, 3.0, 1.0), (0.1, 0.3, 0.5, 0.8, 0.9))
    assert grid.tail(1.0) == grid
    assert grid.tail(0.5) == SamplingGrid((3.0, 1.0), (0.5, 0.8, 0.9))
    assert grid.tail(1e-9) == SamplingGrid((1.0,), (0.8, 0.9))
    assert len(official_grid(SCHEDULE, 100).tail(0.29)) == 29  # 0.29 * 100 is just below 29


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, math.nan])
def test_tail_bad_input(strength):
    with pytest.raises(ValueError, match=f"strength is {strength}; it must be above 0"):
        official_grid(SCHEDULE, 10).tail(strength)


def test_other_lengths():
    schedule = NoiseSchedule.linear(ScheduleConfig(num_timesteps=100, linear_end=0.1))
    assert len(schedule) == 100
    assert schedule.buffers()["betas"].shape == (100,)
    assert official_grid(schedule, 10).timesteps[0] == 91


# ---- v and zero terminal SNR -------------------------------------------------------------------


def test_the_prediction_changes_no_level():
    assert torch.equal(PLAIN_V.betas, SCHEDULE.betas)
    assert (PLAIN_V.prediction, SCHEDULE.prediction) == ("v", "epsilon")
    assert (ZERO_SNR.zero_terminal_snr, PLAIN_V.zero_terminal_snr) == (True, False)


def test_zero_terminal_snr_agrees_with_diffusers():
    peer = DDIMScheduler(rescale_betas_zero_snr=True, **BETAS)
    torch.testing.assert_close(ZERO_SNR.betas.float(), peer.betas, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        ZERO_SNR.alphas_cumprod.float(), peer.alphas_cumprod, rtol=1e-4, atol=1e-8
    )
    assert ZERO_SNR.alphas_cumprod[-1] == 0
    assert ZERO_SNR.alphas_cumprod[0].item() == pytest.approx(SCHEDULE.alphas_cumprod[0].item())


def test_levels_counted_in_sigma_are_finite_and_end_where_comfyui_s_do():
    assert ZERO_SNR.sigmas[-1].item() == pytest.approx(4518.76, abs=0.01)
    for schedule in (ZERO_SNR, *(
        NoiseSchedule.linear(
            ScheduleConfig(prediction="v", zero_terminal_snr=True, num_timesteps=count)
        )
        for count in (2, 10, 4000)
    )):  # fmt: skip
        assert schedule.log_sigmas.isfinite().all() and (schedule.sigmas.diff() > 0).all()
        assert all(table.isfinite().all() for table in schedule.buffers().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_last_timestep_is_exactly_the_noise_and_v_there_minus_the_picture(dtype):
    x0, noise = torch.randn(2, 3, 4, 3, 3).to(dtype).unbind()
    for t in (torch.tensor([999, 998, 999]), torch.tensor([999.0, 998.0, 999.0])):
        noisy, v = ZERO_SNR.add_noise(x0, noise, t), ZERO_SNR.target(x0, noise, t)
        assert torch.equal(noisy[::2], noise[::2]) and torch.equal(v[::2], -x0[::2])
        assert not torch.equal(v[1], -x0[1]) or dtype == torch.bfloat16


@pytest.mark.parametrize("schedule", [PLAIN_V, ZERO_SNR], ids=["plain", "zero snr"])
def test_v_and_the_noisy_latent_are_a_rotation_of_latent_and_noise(schedule):
    x0, noise = torch.randn(2, 5, 4, 3, 3).unbind()
    t = torch.tensor([0, 7, 500, 998, 999])
    a = schedule.alphas_cumprod[t].view(-1, 1, 1, 1).float()
    x, v = schedule.add_noise(x0, noise, t), schedule.target(x0, noise, t)
    close = {"rtol": 0, "atol": 3e-6}
    torch.testing.assert_close(a.sqrt() * x - (1 - a).sqrt() * v, x0, **close)
    torch.testing.assert_close((1 - a).sqrt() * x + a.sqrt() * v, noise, **close)


def test_of_a_model_that_predicts_noise_the_target_is_the_noise():
    x0, noise = torch.randn(2, 2, 4, 3, 3).unbind()
    assert SCHEDULE.target(x0, noise, torch.tensor([3, 999])) is noise


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 12, 50, 333, 500])
def test_trailing_timesteps_agree_with_diffusers(steps):
    peer = DDIMScheduler(timestep_spacing="trailing", **BETAS)
    peer.set_timesteps(steps)
    assert trailing_timesteps(steps) == peer.timesteps.flip(0).tolist()


def test_trailing_timesteps_bad_input():
    with pytest.raises(ValueError, match=r"steps is 501; .* at most 500"):
        trailing_timesteps(501)


def test_grids_of_zero_terminal_snr_start_from_noise_alone():
    grid = official_grid(ZERO_SNR, 50)
    assert grid.timesteps[:2] == (999, 979) and grid.alphas[0] == 0 and grid.prediction == "v"
    assert grid.alphas[-1] == ZERO_SNR.alphas_cumprod[0]
    assert official_grid(PLAIN_V, 50).timesteps == official_grid(SCHEDULE, 50).timesteps
    grid = karras_grid(ZERO_SNR, 50)
    assert grid.timesteps[0] == pytest.approx(999) and 0 < grid.alphas[0] < 5e-8
    assert grid.tail(0.5).prediction == "v"
