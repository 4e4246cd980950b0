"""The same gradients to the bit from less memory: gradient checkpointing, weights cast twice."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from pbe_model.autocast import recast_weights
from pbe_model.layers import ResBlock
from pbe_model.unet import UNet

from .small import SMALL, noise, randomise

CONFIG = SMALL.unet


@pytest.fixture
def unet() -> UNet:
    unet = UNet(CONFIG)
    randomise(unet)
    return unet.train()


def predicted(unet: UNet, tokens: int = 1, **kw) -> torch.Tensor:
    """For two rows of noise and twice as many contexts, as guidance shares them."""
    context = noise(4, tokens, CONFIG.context_dim, seed=1)
    return unet(noise(2, 9, 8, 6), torch.tensor([7, 900]), context, **kw)


def gradients(unet: UNet, tokens: int = 1, **kw) -> dict[str, torch.Tensor]:
    unet.zero_grad()
    predicted(unet, tokens, **kw).float().square().sum().backward()
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


def test_gradients_with_control_and_frozen_parameters(unet: UNet) -> None:
    """Residuals get theirs too."""
    for _, parameter in unet.inert_parameters():
        parameter.requires_grad_(False)
    residuals = [noise(2, 32, 8, 6, seed=5).requires_grad_() for _ in range(2)]

    def both() -> dict[str, torch.Tensor]:
        for residual in residuals:
            residual.grad = None
        control = {"input": [*[None] * 5, residuals[0]], "output": [residuals[1], *[None] * 5]}
        found = gradients(unet, control=control)
        return found | {f"residual {i}": r.grad for i, r in enumerate(residuals)}  # pyright: ignore

    plain = both()
    unet.enable_gradient_checkpointing()
    assert_equal(plain, both())


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


def test_autocast_is_exact_without_weight_copies(
    unet: UNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for weights in channels-last order, and for those that nobody trains."""
    used = []

    @contextmanager
    def recorded(device_type: str):
        used.append(device_type)
        with recast_weights(device_type):
            yield

    unet.out.requires_grad_(False)
    unet.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        monkeypatch.setattr("pbe_model.unet.recast_weights", recorded)
        lean = gradients(unet)
        monkeypatch.setattr("pbe_model.unet.recast_weights", lambda _: nullcontext())
        plain = gradients(unet)
    assert used == ["cpu"]
    assert_equal(plain, lean)


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
