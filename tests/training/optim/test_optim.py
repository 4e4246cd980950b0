"""The optimizer by its import path, and its rate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.config import OptimConfig
from training.optim.optimizer import build_optimizer, learning_rate, restore


def test_learning_rate_warms_up_and_decays() -> None:
    config = OptimConfig(lr=2.0, warmup_steps=4, decay="cosine")
    rates = [learning_rate(config, update, 12) for update in range(12)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(1.0)  # half way down
    assert rates[6] == pytest.approx(1 + math.cos(math.pi / 4))
    assert 0 < rates[11] < 0.1
    constant = OptimConfig(lr=2.0, warmup_steps=0)
    assert [learning_rate(constant, update, 12) for update in (0, 11, 99)] == [2.0] * 3


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(2))


def test_fused_adamw_with_the_configured_arguments_is_the_default() -> None:
    config = OptimConfig(weight_decay=0.3, betas=(0.8, 0.95))
    made = build_optimizer(config, [parameter()])
    assert type(made) is torch.optim.AdamW
    group = made.param_groups[0]
    assert (group["weight_decay"], group["betas"], group["fused"]) == (0.3, (0.8, 0.95), True)


def test_any_class_and_its_own_options() -> None:
    config = OptimConfig(name="torch.optim.SGD", options={"momentum": 0.5, "fused": False})
    made = build_optimizer(config, [parameter()])
    assert type(made) is torch.optim.SGD
    assert (made.param_groups[0]["momentum"], made.param_groups[0]["fused"]) == (0.5, False)
    adafactor = build_optimizer(OptimConfig(name="torch.optim.Adafactor"), [parameter()])
    assert "betas" not in adafactor.param_groups[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("AdamW", "'AdamW' cannot be imported"),
        ("torch.optim.AdamZ", "cannot be imported.*AdamZ"),
        ("no_such_package.Adam", "cannot be imported.*no_such_package.*install its package"),
        ("torch.nn.Linear", "is not an optimizer"),
        ("math.pi", "is not an optimizer"),
    ],
)
def test_what_is_no_optimizer_is_refused(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_optimizer(OptimConfig(name=name), [parameter()])


def test_options_that_the_class_does_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match=r"momentumm.*its arguments are lr, .*momentum"):
        build_optimizer(
            OptimConfig(name="torch.optim.SGD", options={"momentumm": 1.0}), [parameter()]
        )


def test_restored_moments_come_with_the_configured_arguments() -> None:
    made = build_optimizer(OptimConfig(weight_decay=0.1), [parameter()])
    made.param_groups[0]["params"][0].grad = torch.ones(2)
    made.step()
    changed = OptimConfig(weight_decay=0.2, options={"eps": 1e-3})
    other = build_optimizer(changed, [parameter()])
    restore(other, made.state_dict(), changed)
    group = other.param_groups[0]
    assert (group["weight_decay"], group["eps"]) == (0.2, 1e-3)
    assert other.state[group["params"][0]]["step"] == 1
