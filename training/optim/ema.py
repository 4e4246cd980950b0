"""Moving averages of the weights: the classic one, and power-function ones of any length.

The classic average forgets at a constant rate. A power-function average (Karras et al., arXiv
2312.02696, section 3) forgets at a rate that falls as the training gets longer, so that its memory
is a fixed share of the run: its relative length `sigma_rel`, from a few to 28 percent. From
snapshots of two such averages, one of any other length can be put together after the training
(`reconstruct`), without another run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training import checkpoints

SNAPSHOTS = "averages"
"""Folder of the snapshots, in that of the run."""


def classic(decay: float) -> Callable[[int], float]:
    """Weight of the old average at update `step` (from 1), with a short memory at first.

    Args:
        decay: The weight that it approaches, in (0, 1).
    """
    return lambda step: min(decay, step / (step + 9))


def power_function(length: float) -> Callable[[int], float]:
    """Weight of the old average at update `step` (from 1): `(1 - 1 / step) ** (gamma + 1)`.

    Args:
        length: The average's relative length, in (0, 0.289).
    """
    gamma = exponent(length)
    return lambda step: (1 - 1 / step) ** (gamma + 1)


def exponent(length: float) -> float:
    """The exponent gamma of the average whose relative length is `length` (2312.02696, eq. 123).

    The average's profile is `t ** gamma` on [0, 1]; its standard deviation is the relative length.
    """
    # length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))
    inverse = length**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class EMA:
    """Average of a module's trainable parameters.

    Args:
        module: Where the average starts; frozen parameters are left out.
        weight: Weight of the old average at each update: `classic` or `power_function`.
    """

    def __init__(self, module: nn.Module, weight: Callable[[int], float]) -> None:
        self.weight = weight
        self.average = {name: p.clone() for name, p in checkpoints.trainable(module).items()}
        parameters = dict(module.named_parameters())  # looking for them anew takes longer than all
        self._parameters: list[Tensor] = [parameters[name] for name in self.average]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the parameters after update number `step` (from 1)."""
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self.average.values()), self._parameters, 1 - self.weight(step)
        )

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange average and parameters; a second call undoes the first."""
        parameters = dict(module.named_parameters())
        for name, average in self.average.items():
            held = average.clone()
            average.copy_(parameters[name])
            parameters[name].copy_(held)

    def load(self, saved: dict[str, Tensor]) -> None:
        """Continue from saved averages, a dictionary like `average`."""
        assert saved.keys() == self.average.keys()
        for name, value in saved.items():
            self.average[name].copy_(value)


def save_snapshot(run: Path, step: int, averages: dict[float, EMA]) -> None:
    """Write the power-function averages of a run, by their lengths, in float16.

    Raises:
        OSError: They cannot be written, for example for lack of space.
    """
    halved = {
        length: {name: value.half() for name, value in ema.average.items()}
        for length, ema in averages.items()
    }
    checkpoints.write(run / SNAPSHOTS / f"step-{step:08d}.pt", halved)


def reconstruct(run: Path, length: float, step: int | None = None) -> dict[str, Tensor]:
    """The weights averaged with another length, from a run's snapshots (2312.02696, algorithm 3).

    Each snapshot is an integral of the weights over a known profile. The combination of snapshots
    is taken whose profile is nearest to the target's, in the least-squares sense.

    Args:
        run: Folder of the run.
        length: The average's relative length, in (0, 0.289).
        step: Where the average ends; by default at the newest snapshot.

    Returns:
        Averaged parameters by name, float32.

    Raises:
        ValueError: No snapshots, none at that step, or a length out of range.
    """
    if not 0 < length < 0.289:
        raise ValueError(f"the average's relative length is {length}; give one from 0.01 to 0.28")
    paths = checkpoints.checkpoints(run / SNAPSHOTS)
    found = {checkpoints.step_of(path): path for path in paths}
    if not found:
        raise ValueError(
            f"{run} has no snapshots of averages; train with two ema.lengths to have them written"
        )
    end = max(found) if step is None else step
    if end not in found:
        raise ValueError(
            f"{run} has no snapshot of averages at step {end}; choose one of {sorted(found)}"
        )
    averages: list[tuple[int, float, dict[str, Tensor]]] = [
        (at, float(known), average)
        for at, path in sorted(found.items())
        if at <= end
        for known, average in checkpoints.load(path, mmap=True).items()
    ]
    weights = _combination([(at, exponent(known)) for at, known, _ in averages], end, length)
    result: dict[str, Tensor] = {}
    for (_, _, average), weight in zip(averages, weights, strict=True):
        for name, value in average.items():
            share = value.double() * weight  # these weights are large, and of both signs
            result[name] = result[name] + share if name in result else share
    return {name: value.float() for name, value in result.items()}


def _combination(points: Sequence[tuple[int, float]], end: int, length: float) -> np.ndarray:
    """Weights of snapshots `(step, gamma)` whose sum is nearest to the average of that length."""
    times, gammas = np.array(points, dtype=np.float64).T
    # Least squares over profiles needs only inner products: of snapshots, and with the target.
    products = _product(times[:, None], gammas[:, None], times[None], gammas[None])
    target = _product(times, gammas, np.array(end), np.array(exponent(length)))
    found = np.linalg.lstsq(products, target, rcond=1e-12)[0]
    return found / found.sum()


def _product(t_a: np.ndarray, g_a: np.ndarray, t_b: np.ndarray, g_b: np.ndarray) -> np.ndarray:
    """Integral of the product of two profiles `(g + 1) t^g / t_end^(g + 1)` (2312.02696, C.3)."""
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    # the profile that ends later enters with its own exponent
    power = np.where(t_a < t_b, g_b, g_a)
    return (g_a + 1) * (g_b + 1) * ratio**power / ((g_a + g_b + 1) * np.maximum(t_a, t_b))
