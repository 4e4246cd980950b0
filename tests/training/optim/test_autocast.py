"""The same gradients to the bit from less memory: weights are cast twice."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from pbe_model.networks.unet import UNet
from training.optim.autocast import lean_autocast, recast_weights

from ..runs import SMALL, randomise


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(unet: UNet) -> dict[str, torch.Tensor]:
    unet.zero_grad()
    context = noise(4, 1, SMALL.unet.context_dim, seed=1)
    predicted = unet(noise(2, 9, 8, 6), torch.tensor([7, 900]), context)
    predicted.float().square().sum().backward()
    return {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}


def test_it_is_exact_without_weight_copies() -> None:
    """Also for weights in channels-last order, and for those that nobody trains."""
    unet = UNet(SMALL.unet)
    randomise(unet)
    unet.out.requires_grad_(False)
    unet.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        with lean_autocast("cpu"):
            lean = gradients(unet)
        plain = gradients(unet)
    assert lean.keys() == plain.keys() and lean
    for name, gradient in plain.items():
        assert gradient.any(), name
        torch.testing.assert_close(gradient, lean[name], rtol=0, atol=0, msg=name)


def test_it_is_for_training_under_autocast() -> None:
    assert isinstance(lean_autocast("cpu"), nullcontext)
    with torch.autocast("cpu", torch.bfloat16):
        assert not isinstance(lean_autocast("cpu"), nullcontext)
        with torch.no_grad():
            assert isinstance(lean_autocast("cpu"), nullcontext)


@pytest.mark.parametrize(
    ("layer", "shape", "name"),
    [
        (nn.Linear(8, 4), (2, 3, 8), "_saved_mat2"),
        (nn.Linear(8, 4), (3, 8), "_saved_mat2"),
        (nn.Conv2d(8, 4, 3), (2, 8, 5, 5), "_saved_weight"),
    ],
    ids=["linear on tokens", "linear", "convolution"],
)
def test_copies_of_weights_are_made_when_needed(
    layer: nn.Module, shape: tuple[int, ...], name: str
) -> None:
    """What autograd kept is the same tensor at each look; what is cast again is not."""

    def is_kept(output: torch.Tensor) -> bool:
        node = output.grad_fn
        while not hasattr(node, name):
            node = node.next_functions[0][0]  # pyright: ignore[reportOptionalMemberAccess]
        first, second = getattr(node, name), getattr(node, name)
        assert first.dtype == torch.bfloat16 and torch.equal(first, second)
        return first.data_ptr() == second.data_ptr()

    x = noise(*shape).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        assert is_kept(layer(x))
        with recast_weights("cpu"):
            assert not is_kept(layer(x))


def test_a_weight_changed_before_the_backward_pass_is_noticed() -> None:
    layer = nn.Linear(8, 4)
    with torch.autocast("cpu", torch.bfloat16), recast_weights("cpu"):
        output = layer(noise(2, 8).requires_grad_())
    with torch.no_grad():
        layer.weight.zero_()
    with pytest.raises(AssertionError, match="changed between"):
        output.float().sum().backward()
