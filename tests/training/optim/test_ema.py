"""The averages of the weights against their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from training.optim.ema import EMA, classic, exponent, power_function, reconstruct, save_snapshot


def module(values: list[float]) -> nn.Module:
    made = nn.Module()
    made.register_parameter("weight", nn.Parameter(torch.tensor(values)))
    made.register_parameter("frozen", nn.Parameter(torch.zeros(1), requires_grad=False))
    return made


def set_to(target: nn.Module, values: list[float]) -> None:
    with torch.no_grad():
        target.get_parameter("weight").copy_(torch.tensor(values))


def test_classic_average_follows_its_recursion() -> None:
    trained = module([1.0, -1.0])
    ema = EMA(trained, classic(0.5))
    expected = torch.tensor([1.0, -1.0])
    for step in range(1, 20):
        set_to(trained, [step, step**2])
        ema.update(step)
        decay = min(0.5, step / (step + 9))
        expected = decay * expected + (1 - decay) * torch.tensor([step, step**2])
    torch.testing.assert_close(ema.average["weight"], expected)


@pytest.mark.parametrize("length", [0.03, 0.1, 0.25])
def test_exponent_belongs_to_the_relative_length(length: float) -> None:
    """The profile t^gamma on [0, 1] has that standard deviation."""
    t = np.linspace(0, 1, 200_001)
    density = t ** exponent(length)
    density /= density.sum()
    assert np.sqrt(density @ t**2 - (density @ t) ** 2) == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("length", [0.05, 0.2])
def test_power_function_average_weighs_steps_by_their_power(length: float) -> None:
    trained, gamma, steps = module([0.0]), exponent(length), 400
    ema = EMA(trained, power_function(length))
    values = np.sin(np.arange(1, steps + 1) / 20)
    for step, value in enumerate(values, start=1):
        set_to(trained, [float(value)])
        ema.update(step)
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)
    assert ema.average["weight"].item() == pytest.approx(values @ np.diff(edges), abs=1e-4)


def walk(tmp_path: Path, lengths: list[float], steps: int = 600) -> dict[float, EMA]:
    """Averages of a walk of two weights, of which those of 0.05 and 0.1 leave snapshots."""
    trained = module([0.0, 0.0])
    averages = {length: EMA(trained, power_function(length)) for length in lengths}
    generator = torch.Generator().manual_seed(0)
    place = torch.zeros(2)
    for step in range(1, steps + 1):
        place = place + 0.05 * torch.randn(2, generator=generator)
        set_to(trained, place.tolist())
        for ema in averages.values():
            ema.update(step)
        if step % 25 == 0:
            save_snapshot(tmp_path, step, {length: averages[length] for length in (0.05, 0.1)})
    return averages


@pytest.mark.parametrize("length", [0.05, 0.07, 0.1, 0.15])
def test_reconstructed_average_equals_the_tracked_one(tmp_path: Path, length: float) -> None:
    tracked = walk(tmp_path, sorted({0.05, 0.1, length}))[length].average["weight"]
    found = reconstruct(tmp_path, length)["weight"]
    distance = (tracked - reconstruct(tmp_path, 0.28)["weight"]).abs().max()
    assert distance > 0.1  # lengths matter on this walk
    torch.testing.assert_close(found, tracked, rtol=0, atol=0.01)


def test_reconstruction_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no snapshots of averages"):
        reconstruct(tmp_path, 0.1)
    walk(tmp_path, [0.05, 0.1], steps=50)
    with pytest.raises(ValueError, match=r"no snapshot .* at step 30; choose one of \[25, 50\]"):
        reconstruct(tmp_path, 0.1, step=30)
    with pytest.raises(ValueError, match=r"relative length is 0\.5"):
        reconstruct(tmp_path, 0.5)


def test_swap_exchanges_and_takes_back() -> None:
    trained = module([1.0, 2.0])
    ema = EMA(trained, classic(0.9))
    set_to(trained, [3.0, 4.0])
    ema.swap(trained)
    assert trained.get_parameter("weight").tolist() == [1, 2]
    ema.swap(trained)
    assert trained.get_parameter("weight").tolist() == [3, 4]
    assert ema.average["weight"].tolist() == [1, 2]


def test_saved_averages_come_back() -> None:
    trained = module([1.0, 2.0])
    ema = EMA(trained, classic(0.9))
    assert list(ema.average) == ["weight"]
    ema.load({"weight": torch.tensor([5.0, 6.0])})
    ema.swap(trained)
    assert trained.get_parameter("weight").tolist() == [5, 6]
