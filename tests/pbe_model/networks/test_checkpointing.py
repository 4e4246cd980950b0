"""The same gradients to the bit from less memory: gradient checkpointing."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from pbe_model.networks.layers import ResBlock
from pbe_model.networks.unet import UNet

from ..small import SMALL, noise, randomise

CONFIG = SMALL.unet


@pytest.fixture
def unet() -> UNet:
    unet = UNet(CONFIG)
    randomise(unet)
    return unet.train()


def predicted(unet: UNet, tokens: int = 1) -> torch.Tensor:
    """For two rows of noise and twice as many contexts, as guidance shares them."""
    context = noise(4, tokens, CONFIG.context_dim, seed=1)
    return unet(noise(2, 9, 8, 6), torch.tensor([7, 900]), context)


def gradients(unet: UNet, tokens: int = 1) -> dict[str, torch.Tensor]:
    unet.zero_grad()
    predicted(unet, tokens).float().square().sum().backward()
    return {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys() and a
    for name, gradient in a.items():
        assert gradient.any(), name
        torch.testing.assert_close(gradient, b[name], rtol=0, atol=0, msg=name)


def kept(unet: UNet) -> int:
    """Bytes that the backward pass finds kept, without the parameters'."""
    held = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = predicted(unet)
    own = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    assert output.requires_grad
    return sum(size for pointer, size in held.items() if pointer not in own)


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_gradients_are_equal_to_the_bit(unet: UNet, tokens: int, autocast: bool) -> None:
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        plain = gradients(unet, tokens)
        unet.enable_gradient_checkpointing()
        assert_equal(plain, gradients(unet, tokens))


def test_gradients_with_frozen_parameters(unet: UNet) -> None:
    for _, parameter in unet.inert_parameters():
        parameter.requires_grad_(False)
    plain = gradients(unet)
    unet.enable_gradient_checkpointing()
    assert_equal(plain, gradients(unet))


def test_less_is_kept(unet: UNet) -> None:
    plain = kept(unet)
    unet.enable_gradient_checkpointing()
    assert kept(unet) < 0.3 * plain


@pytest.mark.parametrize("case", ["training", "evaluating", "without gradients"])
def test_only_training_computes_twice(unet: UNet, case: str) -> None:
    unet.enable_gradient_checkpointing()
    runs = []
    for module in unet.modules():
        if isinstance(module, ResBlock):
            module.register_forward_pre_hook(lambda m, i: runs.append(m))
    unet.train(case != "evaluating")
    with torch.set_grad_enabled(case != "without gradients"):
        output = predicted(unet)
    once = len(runs)
    if case == "without gradients":
        assert not output.requires_grad
        return
    output.sum().backward()
    assert len(runs) == (2 * once if case == "training" else once)


def test_it_can_be_turned_off_and_is_no_part_of_the_state(unet: UNet) -> None:
    names = unet.state_dict().keys()
    plain = kept(unet)
    unet.enable_gradient_checkpointing()
    assert unet.state_dict().keys() == names
    unet.enable_gradient_checkpointing(False)
    assert kept(unet) == plain


def test_gradients_under_data_parallel_training(unet: UNet) -> None:
    """The wrapper waits for each trained parameter exactly once, also when blocks run twice."""
    for _, parameter in unet.inert_parameters():
        parameter.requires_grad_(False)
    context = noise(2, 1, CONFIG.context_dim)

    def found(module: nn.Module) -> dict[str, torch.Tensor]:
        unet.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = module(noise(2, 9, 8, 6), torch.tensor([7, 900]), context)
        output.float().square().sum().backward()
        return {n: p.grad.clone() for n, p in unet.named_parameters() if p.grad is not None}

    plain = found(unet)
    unet.enable_gradient_checkpointing()
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(unet)
        for _ in range(2):  # from the second step on it uses what it learnt of the order
            assert_equal(plain, found(wrapped))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_compiled() -> None:
    """One graph, no breaks; to rounding, since the traced backward pass adds in another order."""
    unet = UNet(replace(CONFIG, num_res_blocks=1, channel_mult=(1,)))
    randomise(unet)
    plain = gradients(unet.train())
    unet.enable_gradient_checkpointing()
    unet.compile(backend="aot_eager", fullgraph=True)
    for name, gradient in gradients(unet).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-3, atol=1e-5, msg=name)
