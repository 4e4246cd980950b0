"""Samplers against an exact solution and against diffusers."""

import math
from itertools import pairwise

import numpy
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from pbe_model.config import V1, ScheduleConfig
from pbe_model.sampling.samplers import SAMPLERS, ddim, dpmpp_2m, guidance, plms, sample
from pbe_model.sampling.schedule import NoiseSchedule, SamplingGrid, karras_grid, official_grid

SCHEDULE = NoiseSchedule.linear(V1.schedule)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MEAN, VARIANCE = 0.7, 0.36
PLAIN_V, ZERO_SNR = (
    NoiseSchedule.linear(ScheduleConfig(prediction="v", zero_terminal_snr=zero))
    for zero in (False, True)
)


def gaussian_eps(x, t):
    """Exact noise prediction for latents that are N(MEAN, VARIANCE) per element."""
    log_sigma = numpy.interp(t[0].item(), range(len(SCHEDULE)), SCHEDULE.log_sigmas)
    sigma = math.exp(log_sigma)
    return sigma * (x * math.sqrt(1 + sigma**2) - MEAN) / (VARIANCE + sigma**2)


def gaussian_solution(x, grid):
    """Where the probability flow takes `x` from one end of `grid` to the other."""

    def scale(alpha):
        return math.sqrt(VARIANCE + (1 - alpha) / alpha)

    start, end = grid.alphas[0], grid.alphas[-1]
    centred = (x / math.sqrt(start) - MEAN) * scale(end) / scale(start)
    return math.sqrt(end) * (centred + MEAN)


class RandomEps:
    """A random smooth nonlinear function of latent and timestep, with a counter."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.mix = torch.randn(4, 4, generator=generator) / 2
        self.phase = torch.randn(4, 1, 1, generator=generator)
        self.timesteps = []

    def __call__(self, x, t):
        assert t.shape == (len(x),)
        self.timesteps.append(t[0].item())
        mixed = torch.einsum("oc,bchw->bohw", self.mix.to(x.dtype), x)
        wave = torch.sin(t.to(x.dtype).view(-1, 1, 1, 1) / 150 + self.phase.to(x.dtype))
        return torch.tanh(mixed + wave) + 0.3 * x


def standard_normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error_after(solve, grid):
    x = standard_normal(1, 1, 16, 16, dtype=torch.float64)
    return (solve(gaussian_eps, x, grid) - gaussian_solution(x, grid)).abs().max().item()


@pytest.mark.parametrize(("solve", "order"), [(ddim, 1), (plms, 2), (dpmpp_2m, 2)])
def test_converges_to_the_exact_solution_at_its_order(solve, order):
    errors = []
    for steps in (50, 100, 200):
        grid = karras_grid(SCHEDULE, steps)
        # Without the jump to zero noise, whose length does not depend on the number of steps.
        smooth = SamplingGrid(grid.timesteps[:-1], grid.alphas[:-1])
        errors.append(error_after(solve, smooth))
    rates = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert rates == pytest.approx([order, order], abs=0.1)
    assert errors[-1] < {1: 2e-2, 2: 3e-4}[order]


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize(("first", "second"), [("ddim", "plms"), ("euler", "dpmpp_2m")])
def test_second_order_beats_first_on_the_grid_in_use(first, second, steps):
    errors = [
        error_after(SAMPLERS[name].solve, SAMPLERS[name].grid(SCHEDULE, steps))
        for name in (first, second)
    ]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_draws_from_the_data_distribution(name):
    """A standard normal in, N(MEAN, VARIANCE) out: the scaling at both ends.

    Not exactly: the schedule's noisiest level still holds some signal, which the pure noise that
    sampling starts from lacks (Lin et al., arXiv 2305.08891). Here it costs 0.03 of the mean.
    """
    x0 = sample(name, gaussian_eps, standard_normal(1, 4, 64, 64), SCHEDULE, 50)
    assert x0.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert x0.std().item() == pytest.approx(VARIANCE**0.5, abs=0.03)


def run_peer(peer, timesteps, eps, x):
    """The loop of a diffusers pipeline."""
    for t in timesteps:
        x = peer.step(eps(peer.scale_model_input(x, t), t.expand(len(x))), t, x).prev_sample
    return x


def assert_agrees(ours, theirs):
    """To 1e-4 relative, as a whole."""
    assert (ours - theirs).norm() / theirs.norm() < 1e-4


OFFICIAL = {"steps_offset": 1, "set_alpha_to_one": False, **BETAS}


@pytest.mark.parametrize("steps", [5, 50])
def test_ddim_agrees_with_diffusers(steps):
    noise = standard_normal(2, 4, 8, 8)
    peer = DDIMScheduler(clip_sample=False, **OFFICIAL)
    peer.set_timesteps(steps)
    expected = run_peer(peer, peer.timesteps, RandomEps(), noise)
    assert_agrees(sample("ddim", RandomEps(), noise, SCHEDULE, steps), expected)


def test_ddim_agrees_with_diffusers_where_the_official_rule_makes_another_step():
    # diffusers drops the 13th timestep; its step size (1000 // 12) is the official one.
    noise = standard_normal(2, 4, 8, 8)
    peer = DDIMScheduler(clip_sample=False, **OFFICIAL)
    peer.set_timesteps(12)
    timesteps = torch.arange(0, 1000, 1000 // 12).flip(0) + 1
    assert len(timesteps) == 13 and torch.equal(timesteps[1:], peer.timesteps)
    expected = run_peer(peer, timesteps, RandomEps(), noise)
    assert_agrees(sample("ddim", RandomEps(), noise, SCHEDULE, 12), expected)


@pytest.mark.parametrize("steps", [5, 50])
def test_plms_agrees_with_diffusers(steps):
    # diffusers repeats the second timestep: that is the look-ahead of our first step.
    noise, theirs, ours = standard_normal(2, 4, 8, 8), RandomEps(), RandomEps()
    peer = PNDMScheduler(skip_prk_steps=True, **OFFICIAL)
    peer.set_timesteps(steps)
    expected = run_peer(peer, peer.timesteps, theirs, noise)
    assert_agrees(sample("plms", ours, noise, SCHEDULE, steps), expected)
    assert ours.timesteps == theirs.timesteps


@pytest.mark.parametrize("steps", [2, 8, 20])
def test_dpmpp_2m_agrees_with_diffusers(steps):
    # diffusers rounds its Karras timesteps (not their sigmas); it is given ours, unrounded.
    # Its lower_order_final also makes the step to zero noise first order, at any step count.
    noise = standard_normal(2, 4, 8, 8)
    peer = DPMSolverMultistepScheduler(use_karras_sigmas=True, final_sigmas_type="zero", **BETAS)
    peer.set_timesteps(steps)
    timesteps = torch.tensor(karras_grid(SCHEDULE, steps).timesteps)
    assert torch.equal(timesteps.round().long(), peer.timesteps)
    peer.timesteps = timesteps
    expected = run_peer(peer, timesteps, RandomEps(), noise)
    assert_agrees(sample("dpmpp_2m", RandomEps(), noise, SCHEDULE, steps), expected)


@pytest.mark.parametrize("steps", [2, 8, 20])
def test_euler_agrees_with_diffusers(steps):
    noise = standard_normal(2, 4, 8, 8)
    peer = EulerDiscreteScheduler(use_karras_sigmas=True, **BETAS)
    peer.set_timesteps(steps)
    # This one works on x / sqrt(a) and divides again before the model: same latent, same start.
    start = noise * (peer.sigmas[0] ** 2 + 1).sqrt()
    expected = run_peer(peer, peer.timesteps, RandomEps(), start)
    assert_agrees(sample("euler", RandomEps(), noise, SCHEDULE, steps), expected)


@pytest.mark.parametrize(
    ("name", "steps", "evaluations"),
    [("ddim", 50, 50), ("plms", 50, 51), ("plms", 12, 14), ("plms", 1, 2), ("ddim", 12, 13),
     ("dpmpp_2m", 12, 12), ("euler", 12, 12), ("dpmpp_2m", 1, 1), ("euler", 600, 600)],
)  # fmt: skip
def test_evaluations_and_callbacks(name, steps, evaluations):
    eps, seen = RandomEps(), []
    latent = sample(
        name, eps, standard_normal(1, 4, 2, 2), SCHEDULE, steps,
        callback=lambda i, total, x0: seen.append((i, total, x0)),
    )  # fmt: skip
    assert len(eps.timesteps) == evaluations
    total = evaluations - (name == "plms")
    assert [(i, n) for i, n, _ in seen] == [(i, total) for i in range(total)]
    if SAMPLERS[name].grid is karras_grid:  # the last step ends at zero noise: at its own guess
        torch.testing.assert_close(seen[-1][2], latent)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_deterministic_and_each_sample_apart(name):
    noise = standard_normal(3, 4, 4, 4, seed=5)
    batch = sample(name, RandomEps(), noise, SCHEDULE, 7)
    assert torch.equal(batch, sample(name, RandomEps(), noise.clone(), SCHEDULE, 7))
    alone = sample(name, RandomEps(), noise[1:2], SCHEDULE, 7)
    torch.testing.assert_close(batch[1:2], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_kept_and_the_input_untouched(name, dtype):
    noise = standard_normal(1, 4, 4, 4, dtype=torch.float64).to(dtype)
    before = noise.clone()
    latent = sample(name, RandomEps(), noise, SCHEDULE, 4)
    assert latent.dtype == dtype and latent.isfinite().all()
    assert torch.equal(noise, before)


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_strength_runs_the_last_steps_from_the_noised_picture(name):
    picture, noise, eps = torch.full((1, 4, 1, 1), 2.0), standard_normal(2, 4, 4, 4), RandomEps()
    latent = sample(name, eps, noise, SCHEDULE, 20, init_latent=picture, strength=0.3)
    sampler = SAMPLERS[name]
    grid = sampler.grid(SCHEDULE, 20)
    rest = SamplingGrid(grid.timesteps[-6:], grid.alphas[-7:])
    assert eps.timesteps[0] == pytest.approx(rest.timesteps[0])
    start = math.sqrt(rest.alphas[0]) * picture + math.sqrt(1 - rest.alphas[0]) * noise
    torch.testing.assert_close(
        latent, sampler.solve(RandomEps(), start, rest, None), rtol=1e-4, atol=1e-4
    )


def test_full_strength_forgets_the_picture():
    noise = standard_normal(1, 4, 4, 4)
    latent = sample("plms", RandomEps(), noise, SCHEDULE, 5, init_latent=noise + 3, strength=1.0)
    assert torch.equal(latent, sample("plms", RandomEps(), noise, SCHEDULE, 5))


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_low_strength_stays_near_the_picture(name):
    """With the noise predicted exactly, any part of the way back leads to the picture."""
    picture, noise = standard_normal(1, 4, 4, 4, seed=1), standard_normal(1, 4, 4, 4, seed=2)
    latent = sample(
        name, lambda x, t: noise, noise, SCHEDULE, 20, init_latent=picture, strength=0.5
    )
    end = SAMPLERS[name].grid(SCHEDULE, 20).alphas[-1]
    expected = math.sqrt(end) * picture + math.sqrt(1 - end) * noise
    torch.testing.assert_close(latent, expected, rtol=1e-4, atol=1e-4)


def test_guidance():
    uncond, cond = standard_normal(2, 2, 4, 3, 3).unbind()
    torch.testing.assert_close(guidance(uncond, cond, 0.0), uncond)
    torch.testing.assert_close(guidance(uncond, cond, 1.0), cond)
    torch.testing.assert_close(guidance(uncond, cond, 5.0), 5 * cond - 4 * uncond)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "dpm"}, "unknown sampler 'dpm'; choose one of ddim, plms, dpmpp_2m, euler"),
        ({"steps": 0}, "steps is 0; at least 1"),
        ({"name": "euler", "steps": 0}, "steps is 0; at least 1"),
        ({"steps": 501}, "steps is 501; ddim and plms take at most 500"),
        ({"strength": 0.0}, "strength is 0.0; it must be above 0"),
        ({"strength": 1.5}, "strength is 1.5; it must be above 0"),
        ({"strength": 0.5}, "pass init_latent"),
    ],
)
def test_bad_input(arguments, message):
    options = {"name": "plms", "steps": 10} | arguments
    with pytest.raises(ValueError, match=message):
        sample(denoise=RandomEps(), noise=standard_normal(1, 4, 2, 2), schedule=SCHEDULE, **options)


# ---- v and zero terminal SNR -------------------------------------------------------------------


class GaussianV:
    """Exact v for latents that are N(MEAN, VARIANCE) per element: linear, and finite at a = 0."""

    def __init__(self, schedule):
        self.log_sigmas = schedule.log_sigmas

    def __call__(self, x, t):
        log_sigma = numpy.interp(t[0].item(), range(len(self.log_sigmas)), self.log_sigmas)
        a = 1 / (1 + math.exp(2 * log_sigma))
        share = (x - math.sqrt(a) * MEAN) / (a * VARIANCE + 1 - a)
        x0, eps = MEAN + VARIANCE * math.sqrt(a) * share, math.sqrt(1 - a) * share
        return math.sqrt(a) * eps - math.sqrt(1 - a) * x0


def v_solution(noise, grid):
    """Where the probability flow takes pure noise: every level of N(MEAN, VARIANCE) to its own."""
    end = grid.alphas[-1]
    return math.sqrt(end) * MEAN + noise * math.sqrt(end * VARIANCE + 1 - end)


@pytest.mark.parametrize("strength", [1.0, 0.4])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_v_and_the_noise_of_one_model_lead_to_one_latent(name, strength):
    noise = standard_normal(1, 4, 8, 8, dtype=torch.float64)
    options = {"init_latent": noise * 0 + 1, "strength": strength}
    from_v = sample(name, GaussianV(PLAIN_V), noise, PLAIN_V, 20, **options)
    torch.testing.assert_close(
        from_v, sample(name, gaussian_eps, noise, SCHEDULE, 20, **options), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize(
    ("solve", "grid", "bound"),
    [
        (ddim, official_grid, 0.03),
        (ddim, karras_grid, 0.07),
        (plms, official_grid, 0.004),
        (dpmpp_2m, official_grid, 0.025),
        (dpmpp_2m, karras_grid, 0.015),
    ],
)
def test_zero_terminal_snr_leads_noise_to_the_data_itself(solve, grid, bound):
    """Not to a mean that is off because training never saw pure noise, as it is above."""
    noise = standard_normal(1, 4, 16, 16, dtype=torch.float64)
    errors = []
    for steps in (1, 2, 3, 50, 200):
        levels = grid(ZERO_SNR, steps)
        error = solve(GaussianV(ZERO_SNR), noise, levels) - v_solution(noise, levels)
        errors.append(error.square().mean().sqrt().item())
    assert max(errors) < 1.02 * VARIANCE**0.5  # a single step draws the mean
    assert errors[-2] < bound and errors[-1] < errors[-2] / 3.5


def test_plms_looks_ahead_where_there_is_signal():
    seen = RandomEps()
    sample("plms", seen, standard_normal(1, 4, 2, 2), ZERO_SNR, 5)
    assert seen.timesteps == [999, 799, 599, 599, 399, 199]
    seen = RandomEps()
    sample("plms", seen, standard_normal(1, 4, 2, 2), ZERO_SNR, 1)
    assert seen.timesteps == [999]


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("steps", [5, 50])
def test_ddim_of_v_agrees_with_diffusers(zero, steps):
    noise = standard_normal(2, 4, 8, 8)
    peer = DDIMScheduler(
        clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=zero,
        timestep_spacing="trailing" if zero else "leading", **OFFICIAL,
    )  # fmt: skip
    peer.set_timesteps(steps)
    expected = run_peer(peer, peer.timesteps, RandomEps(), noise)
    schedule = ZERO_SNR if zero else PLAIN_V
    assert_agrees(sample("ddim", RandomEps(), noise, schedule, steps), expected)


@pytest.mark.parametrize("steps", [2, 20])
def test_dpmpp_2m_of_v_agrees_with_diffusers(steps):
    noise = standard_normal(2, 4, 8, 8)
    peer = DPMSolverMultistepScheduler(
        use_karras_sigmas=True, final_sigmas_type="zero", prediction_type="v_prediction", **BETAS
    )
    peer.set_timesteps(steps)
    peer.timesteps = torch.tensor(karras_grid(PLAIN_V, steps).timesteps)
    expected = run_peer(peer, peer.timesteps, RandomEps(), noise)
    assert_agrees(sample("dpmpp_2m", RandomEps(), noise, PLAIN_V, steps), expected)


def test_guidance_on_v_is_guidance_on_the_noise():
    """With `eps = sqrt(a) v + sqrt(1 - a) x`, of one x."""
    v, w, x = standard_normal(3, 2, 4, 3, 3).unbind()
    for alpha in (0.3, 0.99):
        eps = [math.sqrt(alpha) * each + math.sqrt(1 - alpha) * x for each in (v, w)]
        guided = math.sqrt(alpha) * guidance(v, w, 5.0) + math.sqrt(1 - alpha) * x
        torch.testing.assert_close(guidance(*eps, 5.0), guided)
