"""The denoiser against diffusers' UNet2DConditionModel, its shortcuts against the long way."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from pbe_model.checkpoints.diffusers_layout import module_table, renamed
from pbe_model.networks.attention import reference_attention
from pbe_model.networks.layers import (
    CrossAttention,
    match_batch,
    one_token_attention,
    timestep_embedding,
)
from pbe_model.networks.unet import UNet

from ..peers import peer_unet
from ..small import SMALL, noise, randomise, relative_error

CONFIG = SMALL.unet

TABLE = module_table(SMALL)


def diffusers_name(name: str) -> str:
    """Our name of a parameter or module to diffusers'."""
    return renamed(f"model.diffusion_model.{name}", TABLE)[0].removeprefix("unet.")


@pytest.fixture(scope="module")
def unet() -> UNet:
    unet = UNet(CONFIG)
    randomise(unet)
    return unet.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def peer(unet: UNet) -> UNet2DConditionModel:
    peer = peer_unet()
    peer.load_state_dict({diffusers_name(n): t for n, t in unet.state_dict().items()})
    return peer.eval().requires_grad_(False)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("timestep", [0, 1, 981])
def test_agrees_with_diffusers(unet, peer, tokens, timestep):
    x, context = noise(2, 9, 8, 12), noise(2, tokens, CONFIG.context_dim, seed=1)
    t = torch.tensor([timestep, timestep // 2])
    theirs = peer(x, t, encoder_hidden_states=context).sample
    assert relative_error(unet(x, t, context), theirs) < 1e-4


def test_agrees_with_diffusers_on_sides_that_halve_unevenly(unet, peer):
    x, context, t = noise(1, 9, 7, 9), noise(1, 1, CONFIG.context_dim), torch.tensor([500])
    theirs = peer(x, t, encoder_hidden_states=context).sample
    assert relative_error(unet(x, t, context), theirs) < 1e-4


def test_the_comparison_sees_one_weight(unet, peer):
    """It would not pass if a weight had no part in it: a changed bias shows."""
    x, context, t = noise(1, 9, 8, 8), noise(1, 1, CONFIG.context_dim), torch.tensor([500])
    theirs = peer(x, t, encoder_hidden_states=context).sample
    bias = unet.middle_block[1].transformer_blocks[0].attn2.to_out[0].bias
    bias[0] += 0.1
    try:
        assert relative_error(unet(x, t, context), theirs) > 1e-4
    finally:
        bias[0] -= 0.1


def test_epsilons_are_those_of_diffusers(unet, peer):
    """Random weights hardly feel them, so they are compared by themselves."""
    norms = {n: m for n, m in unet.named_modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)}
    modules = dict(peer.named_modules())
    assert len(norms) > 20
    assert {n: m.eps for n, m in norms.items()} == {
        n: modules[diffusers_name(n)].eps for n in norms
    }


def test_timestep_embedding_by_its_formula():
    embedding = timestep_embedding(torch.tensor([0, 7]), 8)
    angles = 7 * 10000.0 ** (-torch.arange(4) / 4)
    torch.testing.assert_close(embedding[0], torch.tensor([1.0] * 4 + [0.0] * 4))
    torch.testing.assert_close(embedding[1], torch.cat([angles.cos(), angles.sin()]))


def test_one_token_shortcut_is_exact():
    layer = CrossAttention(32, 24, 8, reference_attention)
    randomise(layer)
    x, context = noise(2, 9, 32), noise(2, 1, 24, seed=1)
    shortcut = one_token_attention(layer.to_v, layer.to_out, context).expand(-1, 9, -1)
    torch.testing.assert_close(shortcut, layer(x, context), rtol=0, atol=1e-6)


def test_one_token_shortcut_in_the_whole_network(unet):
    """A token repeated attends like itself alone, but goes the general way."""
    x, t, context = noise(2, 9, 8, 8), torch.tensor([7, 900]), noise(2, 1, CONFIG.context_dim)
    full = unet(x, t, context.expand(-1, 2, -1))
    assert relative_error(unet(x, t, context), full) < 1e-5


@pytest.mark.parametrize(("tokens", "calls"), [(1, 1), (2, 2)])
def test_only_one_token_takes_the_shortcut(unet, tokens, calls):
    """Counted in the middle block: self-attention always attends, cross-attention if it must."""
    seen = []

    def counting(q, k, v, heads):
        seen.append(k.shape[1])
        return reference_attention(q, k, v, heads)

    block = unet.middle_block[1].transformer_blocks[0]
    attentions = [block.attn1, block.attn2]
    before = [a.attention for a in attentions]
    for attention in attentions:
        attention.attention = counting
    try:
        block(noise(1, 16, 64), noise(1, tokens, CONFIG.context_dim))
    finally:
        for attention, backend in zip(attentions, before, strict=True):
            attention.attention = backend
    assert seen == [16, tokens][:calls]


@pytest.mark.parametrize("tokens", [1, 3])
def test_shared_prefix_equals_the_repeated_input(unet, tokens):
    x, t = noise(2, 9, 8, 8), torch.tensor([3, 700])
    context = noise(4, tokens, CONFIG.context_dim, seed=1)
    shared = unet(x, t, context)
    assert shared.shape == (4, 4, 8, 8)
    assert relative_error(shared, unet(x.repeat(2, 1, 1, 1), t.repeat(2), context)) < 1e-5


def test_shared_prefix_runs_once(unet):
    """The first convolution, residual block and self-attention see each input row once."""
    rows = []
    block = unet.input_blocks[1]
    watched = [unet.input_blocks[0][0], block[0], block[1].transformer_blocks[0].attn1]
    handles = [m.register_forward_hook(lambda m, i, o: rows.append(len(o))) for m in watched]
    unet(noise(1, 9, 8, 8), torch.tensor([3]), noise(2, 1, CONFIG.context_dim))
    for handle in handles:
        handle.remove()
    assert rows == [1, 1, 1]


def test_match_batch_repeats_whole_batches_in_order():
    x = torch.tensor([[1.0], [2.0]])
    assert match_batch(x, 6).flatten().tolist() == [1, 2, 1, 2, 1, 2]
    with pytest.raises(AssertionError):
        match_batch(x, 3)


def test_inert_parameters_are_those_without_gradient():
    unet = UNet(CONFIG)
    randomise(unet)
    x, t = noise(1, 9, 8, 8), torch.tensor([3])
    unet(x, t, noise(1, 1, CONFIG.context_dim)).square().sum().backward()
    without = {name for name, p in unet.named_parameters() if p.grad is None}
    assert without
    assert {name for name, _ in unet.inert_parameters()} == without

    unet(x, t, noise(1, 2, CONFIG.context_dim)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in unet.parameters())


def test_set_attention_reaches_every_attention(unet):
    calls = []

    def counting(q, k, v, heads):
        calls.append(heads)
        return reference_attention(q, k, v, heads)

    own = UNet(CONFIG)
    own.load_state_dict(unet.state_dict())
    own.set_attention(counting)
    own(noise(1, 9, 8, 8), torch.tensor([3]), noise(1, 2, CONFIG.context_dim))
    blocks = 2 + 1 + 3  # down, middle, up
    assert calls == [CONFIG.num_heads] * 2 * blocks
