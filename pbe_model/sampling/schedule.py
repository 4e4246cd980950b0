"""Noise schedule of latent diffusion, and the noise levels that samplers visit.

The forward process is `x_t = sqrt(a_t) * x_0 + sqrt(1 - a_t) * eps` with `a_t` the cumulative
product of `1 - beta_t` (Ho et al., arXiv 2006.11239) and betas linear in their square root
(Rombach et al., arXiv 2112.10752). Dividing by `sqrt(a_t)` gives the same process with noise
simply added, at level `sigma_t = sqrt((1 - a_t) / a_t)` (Karras et al., arXiv 2206.00364).

With zero terminal SNR (Lin et al., arXiv 2305.08891) `a_t` is exactly 0 at the last timestep, and
`sigma_t` would be infinite. Where noise levels are counted in sigma it is `TERMINAL_ALPHA` instead.

Tables are float64 on the CPU: a thousand numbers, of which a sampler needs a few as Python floats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..config import Prediction, ScheduleConfig

TERMINAL_ALPHA = 4.8973451890853435e-08
"""Replaces `a = 0` where its logarithm is taken: ComfyUI's value, a sigma of about 4519."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels of the discrete timesteps `0 .. T - 1`, cleanest first.

    Attributes:
        betas: float64 `(T,)`, the variance that each timestep adds.
        prediction: What the model predicts from a noisy latent: the noise, or v.
    """

    betas: Tensor
    prediction: Prediction = "epsilon"

    @classmethod
    def linear(cls, config: ScheduleConfig) -> NoiseSchedule:
        """The schedule that latent diffusion calls "linear": betas linear in their square root."""
        start, end = math.sqrt(config.linear_start), math.sqrt(config.linear_end)
        roots = torch.linspace(start, end, config.num_timesteps, dtype=torch.float64, device="cpu")
        betas = roots**2
        if config.zero_terminal_snr:
            betas = _without_terminal_signal(betas)
        return cls(betas, config.prediction)

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """float64 `(T,)`: the share of the variance at each timestep that is signal."""
        return torch.cumprod(1 - self.betas, dim=0)

    @cached_property
    def zero_terminal_snr(self) -> bool:
        """Whether the last timestep is pure noise."""
        return self.alphas_cumprod[-1].item() == 0

    @cached_property
    def _positive_alphas(self) -> Tensor:
        """`alphas_cumprod`, with a small number in place of a zero at its end."""
        alphas = self.alphas_cumprod
        if self.zero_terminal_snr:  # below the value before it, in schedules of any length
            least = min(TERMINAL_ALPHA, alphas[-2].item() / 2)
            alphas = torch.cat([alphas[:-1], alphas.new_tensor([least])])
        return alphas

    @cached_property
    def sigmas(self) -> Tensor:
        """float64 `(T,)`: noise level relative to the signal, `sqrt((1 - a) / a)`, increasing.

        Finite: see `TERMINAL_ALPHA`.
        """
        return ((1 - self._positive_alphas) / self._positive_alphas).sqrt()

    @cached_property
    def log_sigmas(self) -> Tensor:
        """float64 `(T,)`; interpolated linearly between timesteps, as in k-diffusion."""
        return self.sigmas.log()

    @cached_property
    def _copies(self) -> dict[tuple[str, torch.device], Tensor]:
        return {}

    def on_device(self, table: str, device: torch.device) -> Tensor:
        """`"alphas_cumprod"` or `"log_sigmas"` in float32, copied to a device once."""
        if (table, device) not in self._copies:
            self._copies[table, device] = getattr(self, table).to(device, torch.float32)
        return self._copies[table, device]

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The forward process: `sqrt(a_t) * x0 + sqrt(1 - a_t) * noise`.

        Args:
            x0: Clean latents, scaled, `(B, C, H, W)`.
            noise: Standard normal, shape, dtype and device of `x0`.
            t: `(B,)` timesteps in `[0, T - 1]`, integer or fractional.
        """
        signal, noise_level = self._levels(x0, t)
        return signal * x0 + noise_level * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model should predict from `add_noise(x0, noise, t)`: the noise, or v.

        Arguments are those of `add_noise`.
        """
        if self.prediction == "epsilon":
            return noise
        signal, noise_level = self._levels(x0, t)
        return signal * noise - noise_level * x0

    def _levels(self, x0: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """`sqrt(a_t)` and `sqrt(1 - a_t)`, `(B, 1, 1, 1)`, with the type and device of `x0`."""
        low = t.long()
        high = (low + 1).clamp(max=len(self) - 1)
        log_sigmas = self.on_device("log_sigmas", t.device)
        log_snr = -2 * torch.lerp(log_sigmas[low], log_sigmas[high], (t - low).float())
        if self.zero_terminal_snr:
            log_snr = log_snr.masked_fill(t >= len(self) - 1, -math.inf)
        log_snr = log_snr.view(-1, *(1 for _ in x0.shape[1:])).to(x0.device)  # (B, 1, 1, 1)
        signal, noise_level = log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()
        return signal.to(x0.dtype), noise_level.to(x0.dtype)

    def timestep_of(self, sigma: float) -> float:
        """Fractional timestep at noise level `sigma`, clamped to `[0, T - 1]`."""
        level = torch.tensor(math.log(sigma), dtype=torch.float64)
        high = int(torch.searchsorted(self.log_sigmas, level).clamp(1, len(self) - 1))
        below, above = self.log_sigmas[high - 1].item(), self.log_sigmas[high].item()
        fraction = (level.item() - below) / (above - below)
        return high - 1 + min(max(fraction, 0.0), 1.0)

    def buffers(self) -> dict[str, Tensor]:
        """The schedule tensors of an official checkpoint, float32 `(T,)`, by their names there.

        The posterior is that of `q(x_{t-1} | x_t, x_0)`: its variance is 0 at `t = 0`, where the
        logarithm is clipped. Reciprocals are finite: see `TERMINAL_ALPHA`.
        """
        betas, alphas, cumprod = self.betas, 1 - self.betas, self.alphas_cumprod
        positive = self._positive_alphas
        previous = torch.cat([cumprod.new_ones(1), cumprod[:-1]])
        posterior_variance = betas * (1 - previous) / (1 - cumprod)
        tables = {
            "betas": betas,
            "alphas_cumprod": cumprod,
            "alphas_cumprod_prev": previous,
            "sqrt_alphas_cumprod": cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - cumprod).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - cumprod).log(),
            "sqrt_recip_alphas_cumprod": positive.rsqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / positive - 1).sqrt(),
            "posterior_variance": posterior_variance,
            "posterior_log_variance_clipped": posterior_variance.clamp(min=1e-20).log(),
            "posterior_mean_coef1": betas * previous.sqrt() / (1 - cumprod),
            "posterior_mean_coef2": (1 - previous) * alphas.sqrt() / (1 - cumprod),
        }
        return {name: table.float() for name, table in tables.items()}


@dataclass(frozen=True)
class SamplingGrid:
    """The noise levels that a sampler visits, noisiest first.

    Attributes:
        timesteps: Where the model is evaluated, one entry a step; may be fractional.
        alphas: `a_t` at those timesteps, and one more: where the last step ends. Only the first
            may be 0.
        prediction: What the model predicts there: the noise, or v.
    """

    timesteps: tuple[float, ...]
    alphas: tuple[float, ...]
    prediction: Prediction = "epsilon"

    def __post_init__(self) -> None:
        assert len(self.alphas) == len(self.timesteps) + 1, (len(self.alphas), len(self.timesteps))

    def __len__(self) -> int:
        return len(self.timesteps)

    def tail(self, strength: float) -> SamplingGrid:
        """The last `strength` of the steps, at least one.

        Raises:
            ValueError: `strength` outside `(0, 1]`.
        """
        if not 0 < strength <= 1:
            raise ValueError(
                f"strength is {strength}; it must be above 0 (keep the picture) and at most 1 "
                "(start from pure noise)"
            )
        first = len(self) - max(1, round(strength * len(self)))
        return replace(self, timesteps=self.timesteps[first:], alphas=self.alphas[first:])


def official_timesteps(steps: int, num_timesteps: int = 1000) -> list[int]:
    """Timesteps of the official DDIM and PLMS samplers, cleanest first.

    The rule is `range(0, T, T // steps) + 1`, with two consequences that are kept: steps that do
    not divide T make more of them (12 make 13), and few steps start far below full noise (2 start
    at t = 501). Where the rule reaches t = T, which does not exist (3, 9, 27, 37, ... steps; the
    official code crashes there), that timestep is left out.

    Raises:
        ValueError: `steps` below 1, or above `T / 2`, where the rule takes every timestep.
    """
    _check_stride(steps, num_timesteps)
    stride = num_timesteps // steps
    return [t + 1 for t in range(0, num_timesteps - 1, stride)]


def trailing_timesteps(steps: int, num_timesteps: int = 1000) -> list[int]:
    """Timesteps spread evenly down from the last, cleanest first (arXiv 2305.08891, table 2).

    Sampling starts from pure noise, which is what the last timestep is with zero terminal SNR.

    Raises:
        ValueError: As `official_timesteps`.
    """
    _check_stride(steps, num_timesteps)
    return [round(num_timesteps * i / steps) - 1 for i in range(1, steps + 1)]


def official_grid(schedule: NoiseSchedule, steps: int) -> SamplingGrid:
    """Grid of the official samplers; its last step ends at timestep 0, not at zero noise.

    With zero terminal SNR the timesteps are the trailing ones.
    """
    spacing = trailing_timesteps if schedule.zero_terminal_snr else official_timesteps
    timesteps = spacing(steps, len(schedule))[::-1]
    alphas = schedule.alphas_cumprod[[*timesteps, 0]].tolist()
    return SamplingGrid(tuple(map(float, timesteps)), tuple(alphas), schedule.prediction)


def karras_grid(schedule: NoiseSchedule, steps: int, rho: float = 7.0) -> SamplingGrid:
    """Noise levels uniform in `sigma^(1 / rho)` from the noisiest to the cleanest, then zero.

    Karras et al., arXiv 2206.00364, equation 5: steps shrink towards the clean end, where the
    solution bends most. With `dpmpp_2m` on data whose scores are known, its error is below that
    of steps uniform in t from 12 steps on, and less than a third of it from 30. With zero terminal
    SNR the first level is that of `TERMINAL_ALPHA`, as in ComfyUI.

    Raises:
        ValueError: `steps` below 1.
    """
    _check_steps(steps)
    last, first = schedule.sigmas[[0, -1]].pow(1 / rho).tolist()
    ramp = [first + i / max(steps - 1, 1) * (last - first) for i in range(steps)]
    sigmas = [root**rho for root in ramp]
    alphas = [1 / (1 + sigma**2) for sigma in sigmas]
    timesteps = tuple(map(schedule.timestep_of, sigmas))
    return SamplingGrid(timesteps, (*alphas, 1.0), schedule.prediction)


def _without_terminal_signal(betas: Tensor) -> Tensor:
    """Betas whose `sqrt(a_t)` is shifted to 0 at the end, and scaled to keep its first value.

    Lin et al., arXiv 2305.08891, algorithm 1.
    """
    roots = torch.cumprod(1 - betas, dim=0).sqrt()
    roots = (roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))
    alphas = roots**2
    return 1 - torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])


def _check_stride(steps: int, num_timesteps: int) -> None:
    _check_steps(steps)
    if steps > num_timesteps // 2:
        raise ValueError(
            f"steps is {steps}; ddim and plms take at most {num_timesteps // 2} steps "
            "(50 are usual, and dpmpp_2m needs about 20)"
        )


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least 1 is needed (20 to 50 are usual)")
