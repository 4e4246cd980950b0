"""Muon: orthogonal updates of matrices, AdamW's of everything else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from training.config import OptimConfig
from training.optim.muon import Muon, is_matrix, orthogonal
from training.optim.optimizer import build_optimizer, restore

NAME = "training.optim.muon.Muon"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "pixels": nn.Conv2d(3, 32, 3),
            "inner": nn.Conv2d(32, 16, 3),
            "narrow": nn.Linear(64, 24),
            "wide": nn.Linear(24, 64),
            "square": nn.Linear(32, 32),
            "norm": nn.LayerNorm(64),
        }
    )


def give_gradients(module: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def singular_values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.flatten(1).double())


@pytest.mark.parametrize("shape", [(16, 16), (24, 64), (16, 288)])
def test_orthogonal_levels_the_singular_values_and_keeps_their_vectors(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    sizes = torch.logspace(0, -1.5, shape[0])
    found = orthogonal(u * sizes @ vh)
    assert all(0.65 < s < 1.3 for one in found for s in singular_values(one))
    aligned = (u.mT @ found @ vh.mT).double()  # diagonal where the vectors are the same
    diagonal = torch.diagonal(aligned, dim1=1, dim2=2)
    assert (aligned - torch.diag_embed(diagonal)).abs().max() < 0.1


def test_which_weights_are_matrices() -> None:
    named = dict(network().named_parameters())
    assert {name for name, parameter in named.items() if is_matrix(parameter)} == {
        "inner.weight",
        "narrow.weight",
        "wide.weight",
        "square.weight",
    }


def test_the_rest_moves_as_with_adamw() -> None:
    module = network()
    other = copy.deepcopy(module)
    arguments = {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}
    optimizers = (
        Muon(module.parameters(), **arguments),
        torch.optim.AdamW(other.parameters(), **arguments),
    )
    for seed in range(3):
        for one, optimizer in zip((module, other), optimizers, strict=True):
            give_gradients(one, seed)
            optimizer.step()
    for (name, mine), theirs in zip(module.named_parameters(), other.parameters(), strict=True):
        same = torch.allclose(mine, theirs, rtol=0, atol=1e-6)
        assert same != is_matrix(mine), name


def test_a_matrix_moves_by_an_orthogonal_one_of_adamws_size() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    optimizer = Muon(module.parameters(), lr=0.01, weight_decay=0.0)
    give_gradients(module)
    optimizer.step()
    for name in ("inner.weight", "narrow.weight", "wide.weight"):
        moved = module.get_parameter(name).detach() - before[name]
        values = singular_values(moved)
        longer = max(moved.flatten(1).shape)
        assert values.min() > 0.65 * 0.01 * 0.2 * longer**0.5, name
        assert values.max() < 1.3 * 0.01 * 0.2 * longer**0.5, name
        gradient = module.get_parameter(name).grad
        assert gradient is not None and (moved * gradient).sum() < 0, name  # downhill


@pytest.mark.parametrize("name", ["inner", "narrow", "wide", "square"])
def test_a_matrix_moves_as_far_downhill_as_an_orthogonal_move_goes(name: str) -> None:
    module = network()
    weight = module.get_parameter(f"{name}.weight")
    before = weight.detach().clone()
    give_gradients(module)
    Muon(module.parameters(), lr=0.01, weight_decay=0.0).step()
    assert weight.grad is not None
    fallen = -((weight.detach() - before) * weight.grad).sum().double()
    size = 0.01 * 0.2 * max(weight.flatten(1).shape) ** 0.5
    assert 0.7 < fallen / (size * singular_values(weight.grad).sum()) < 1.2


def test_weight_decay_shrinks_matrices() -> None:
    moved = []
    for decay in (0.0, 0.5):
        module = network()
        optimizer = Muon(module.parameters(), lr=0.01, weight_decay=decay)
        give_gradients(module)
        optimizer.step()
        moved.append(module.get_parameter("inner.weight").detach())
    start = network().get_parameter("inner.weight").detach()
    torch.testing.assert_close(moved[1], moved[0] - 0.01 * 0.5 * start, rtol=0, atol=1e-6)


def test_weights_laid_out_channels_last_move_alike() -> None:
    plain, other = network(), network().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for module in (plain, other):
        optimizer = Muon(module.parameters(), lr=0.01)
        give_gradients(module)
        optimizer.step()
    for mine, theirs in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)


def test_it_goes_on_from_its_state() -> None:
    config = OptimConfig(name=NAME, lr=0.01, options={"momentum": 0.9})
    module = network()
    optimizer = build_optimizer(config, module.parameters())
    give_gradients(module)
    optimizer.step()
    other = copy.deepcopy(module)
    resumed = build_optimizer(config, other.parameters())
    restore(resumed, copy.deepcopy(optimizer.state_dict()), config)
    for one, made in ((module, optimizer), (other, resumed)):
        give_gradients(one, seed=2)
        made.step()
    for mine, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_parameters_without_a_gradient_stay() -> None:
    module = network()
    before = copy.deepcopy(module.state_dict())
    Muon(module.parameters(), lr=0.01).step()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
