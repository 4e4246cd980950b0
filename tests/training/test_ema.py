"""The weight average against its recursion."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.ema import EMA


def module(values: list[float]) -> nn.Module:
    made = nn.Module()
    made.register_parameter("weight", nn.Parameter(torch.tensor(values)))
    made.register_parameter("frozen", nn.Parameter(torch.zeros(1), requires_grad=False))
    return made


def set_to(target: nn.Module, values: list[float]) -> None:
    with torch.no_grad():
        target.get_parameter("weight").copy_(torch.tensor(values))


def test_average_follows_its_recursion() -> None:
    trained = module([1.0, -1.0])
    ema = EMA(trained, 0.5)
    expected = torch.tensor([1.0, -1.0])
    for step in range(1, 20):
        set_to(trained, [step, step**2])
        ema.update(trained, step)
        decay = min(0.5, step / (step + 9))
        expected = decay * expected + (1 - decay) * torch.tensor([step, step**2])
    torch.testing.assert_close(ema.average["weight"], expected)


def test_swap_exchanges_and_takes_back() -> None:
    trained = module([1.0, 2.0])
    ema = EMA(trained, 0.9)
    set_to(trained, [3.0, 4.0])
    ema.swap(trained)
    assert trained.get_parameter("weight").tolist() == [1, 2]
    ema.swap(trained)
    assert trained.get_parameter("weight").tolist() == [3, 4]
    assert ema.average["weight"].tolist() == [1, 2]


def test_state_is_of_trainable_parameters_and_comes_back() -> None:
    trained = module([1.0, 2.0])
    ema = EMA(trained, 0.9)
    assert list(ema.state_dict()) == ["weight"]
    ema.load_state_dict({"weight": torch.tensor([5.0, 6.0])})
    ema.swap(trained)
    assert trained.get_parameter("weight").tolist() == [5, 6]
    with pytest.raises(AssertionError):
        ema.load_state_dict({"other": torch.zeros(2)})
