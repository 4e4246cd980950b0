"""Samplers: from noise to a latent, as plain functions, in the manner of k-diffusion.

All of them solve the same ordinary differential equation, the probability flow
`d(x / sqrt(a)) = eps(x, t) d sigma` with `sigma = sqrt((1 - a) / a)` (Song et al., arXiv
2010.02502, equation 14). A sampler takes the model, the starting latent and a `SamplingGrid`; it
knows neither guidance nor masks nor devices. Latents are scaled and in the model's own
parametrisation `x = sqrt(a) * x_0 + sqrt(1 - a) * eps`; they keep their dtype, coefficients are
Python floats.

Only `_predict` knows whether the model predicts the noise or v; it turns either into noise and
clean latent. From v both follow without a division, so sampling may start where there is no signal,
at `a = 0`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from .schedule import NoiseSchedule, SamplingGrid, karras_grid, official_grid

Denoise: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`denoise(x, t)`: noisy latents `(B, C, H, W)` and float32 timesteps `(B,)` to the noise in the
latents, or v, by the grid's `prediction`; in the shape of `x`."""

Callback: TypeAlias = Callable[[int, int, Tensor], None]
"""`callback(step, total, x0)` after each step, from 0, with the current guess of the latent."""

# Weights of the current and the previous slopes, newest first, by the number of previous ones.
_ADAMS_BASHFORTH = {
    1: (3 / 2, -1 / 2),
    2: (23 / 12, -16 / 12, 5 / 12),
    3: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def guidance(eps_uncond: Tensor, eps_cond: Tensor, similarity: float) -> Tensor:
    """Classifier-free guidance, `eps(v) + s * (eps(c) - eps(v))` (arXiv 2211.13227, section 3.4).

    The velocity and the clean latent are linear in the noise, and the weights sum to 1: guidance on
    any of them is guidance on all, even without any signal, where the noise alone tells nothing.

    Args:
        eps_uncond: Prediction for the learnable vector v.
        eps_cond: Prediction for the exemplar c, same shape.
        similarity: The scale s: 0 ignores the exemplar, 1 is the plain conditional model.
    """
    return eps_uncond + similarity * (eps_cond - eps_uncond)


def ddim(
    denoise: Denoise, x: Tensor, grid: SamplingGrid, callback: Callback | None = None
) -> Tensor:
    """DDIM without noise (Song et al., arXiv 2010.02502): Euler steps in sigma. First order."""
    for i in range(len(grid)):
        eps, x0 = _predict(denoise, x, grid, i)
        x = _noisy(x0, eps, grid.alphas[i + 1])
        if callback is not None:
            callback(i, len(grid), x0)
    return x


def plms(
    denoise: Denoise, x: Tensor, grid: SamplingGrid, callback: Callback | None = None
) -> Tensor:
    """Pseudo linear multistep (Liu et al., arXiv 2202.09778), the paper's default.

    DDIM steps along a slope extrapolated from up to three previous ones. The first step has none
    and looks ahead instead (improved Euler), so n steps make n + 1 evaluations. Second order.

    A step from no signal at all is infinitely long in sigma, so it has no slope: it is a DDIM step,
    and the history starts at the next one.
    """
    history: list[Tensor] = []  # newest first
    for i in range(len(grid)):
        alpha, alpha_next = grid.alphas[i], grid.alphas[i + 1]
        eps, x0 = _predict(denoise, x, grid, i)
        if alpha > 0:
            if history:
                weights = _ADAMS_BASHFORTH[len(history)]
                slope = weights[0] * eps
                for weight, previous in zip(weights[1:], history, strict=True):
                    slope = slope + weight * previous
            else:
                ahead = _noisy(x0, eps, alpha_next)
                # A single step has no next timestep; the official sampler stays at the same one.
                slope = (eps + _predict(denoise, ahead, grid, min(i + 1, len(grid) - 1))[0]) / 2
            history = [eps, *history[:2]]
            eps, x0 = slope, _clean(x, slope, alpha)
        x = _noisy(x0, eps, alpha_next)
        if callback is not None:
            callback(i, len(grid), x0)
    return x


def dpmpp_2m(
    denoise: Denoise, x: Tensor, grid: SamplingGrid, callback: Callback | None = None
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2). Second order.

    Linear in the log signal-to-noise ratio between two guesses of the clean latent. The first
    step has no previous guess; the last, to zero noise, is infinitely long in that variable.
    Both are first order, and so is the step after one from no signal, which is infinitely long too.
    """
    x0_previous, log_step_previous = None, 0.0
    for i in range(len(grid)):
        alpha, alpha_next = grid.alphas[i], grid.alphas[i + 1]
        _, x0 = _predict(denoise, x, grid, i)
        log_step = math.inf if alpha_next == 1 else _log_snr(alpha_next) - _log_snr(alpha)
        target = x0
        if x0_previous is not None and log_step < math.inf:
            target = x0 + (x0 - x0_previous) * (log_step / (2 * log_step_previous))
        shrink = math.sqrt((1 - alpha_next) / (1 - alpha))
        x = shrink * x + (math.sqrt(alpha_next) - math.sqrt(alpha) * shrink) * target
        x0_previous, log_step_previous = x0, log_step
        if callback is not None:
            callback(i, len(grid), x0)
    return x


@dataclass(frozen=True)
class Sampler:
    """A solver and the noise levels that go with it.

    Attributes:
        solve: `solve(denoise, x, grid, callback) -> latent`, one of the functions above.
        grid: `grid(schedule, steps)`, one of the grids of `schedule`.
    """

    solve: Callable[[Denoise, Tensor, SamplingGrid, Callback | None], Tensor]
    grid: Callable[[NoiseSchedule, int], SamplingGrid]


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(ddim, official_grid),
    "plms": Sampler(plms, official_grid),
    "dpmpp_2m": Sampler(dpmpp_2m, karras_grid),
    # Euler in sigma is DDIM (arXiv 2010.02502, section 4.3): k-diffusion's differs in its grid.
    "euler": Sampler(ddim, karras_grid),
}


@torch.no_grad()
def sample(
    name: str,
    denoise: Denoise,
    noise: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    init_latent: Tensor | None = None,
    strength: float = 1.0,
    callback: Callback | None = None,
) -> Tensor:
    """Draw a latent.

    Args:
        name: One of `SAMPLERS`.
        denoise: The model, conditioned and guided; predicts what `schedule.prediction` names.
        noise: Standard normal `(B, C, H, W)`; its dtype and device are kept throughout.
        schedule: The schedule that the model was trained with.
        steps: Number of steps; `ddim` and `plms` may make a few more (`official_timesteps`).
        init_latent: Scaled latent to start from, broadcastable to `noise`; unused at strength 1.
        strength: Share of the steps that are run, in `(0, 1]`. Below 1 sampling starts from
            `init_latent`, noised to the level of the first remaining step; at 1 from `noise` alone.
        callback: Called after each step with its index, their number, and the current guess of x0.

    Returns:
        Scaled latent, `(B, C, H, W)`.

    Raises:
        ValueError: Unknown sampler, steps or strength out of range, or strength below 1 without
            a latent to start from.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    grid = sampler.grid(schedule, steps).tail(strength)
    x = noise
    if strength < 1:
        if init_latent is None:
            raise ValueError(
                f"strength is {strength}, which starts from a picture; pass init_latent, or use 1"
            )
        t = torch.full((len(noise),), grid.timesteps[0], device=noise.device)
        x = schedule.add_noise(init_latent.to(noise).expand_as(noise), noise, t)
    return sampler.solve(denoise, x, grid, callback)


def _predict(denoise: Denoise, x: Tensor, grid: SamplingGrid, i: int) -> tuple[Tensor, Tensor]:
    """Noise and clean latent that the model predicts from `x` at the grid's `i`-th noise level."""
    t = torch.full((len(x),), grid.timesteps[i], dtype=torch.float32, device=x.device)
    model_output, alpha = denoise(x, t).to(x.dtype), grid.alphas[i]
    if grid.prediction == "epsilon":
        return model_output, _clean(x, model_output, alpha)
    signal, noise_level = math.sqrt(alpha), math.sqrt(1 - alpha)
    return signal * model_output + noise_level * x, signal * x - noise_level * model_output


def _clean(x: Tensor, eps: Tensor, alpha: float) -> Tensor:
    """The clean latent, given the noise `eps` in `x`."""
    return (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)


def _noisy(x0: Tensor, eps: Tensor, alpha: float) -> Tensor:
    """The forward process: a clean latent with noise at level `alpha`."""
    return math.sqrt(alpha) * x0 + math.sqrt(1 - alpha) * eps


def _log_snr(alpha: float) -> float:
    """Half the log signal-to-noise ratio, the variable that DPM-Solver calls lambda."""
    return 0.5 * math.log(alpha / (1 - alpha)) if alpha > 0 else -math.inf
