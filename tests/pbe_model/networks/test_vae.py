"""The first stage against diffusers' AutoencoderKL, and the posterior against torch's own."""

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersAutoencoderKL
from torch import nn
from torch.distributions import Normal, kl_divergence

from pbe_model.checkpoints.diffusers_layout import module_table, renamed
from pbe_model.networks.vae import AutoencoderKL, Posterior

from ..peers import peer_vae
from ..small import SMALL, noise, randomise, relative_error

CONFIG = SMALL.vae

TABLE = module_table(SMALL)


def diffusers_name(name: str) -> str:
    """Our name of a parameter or module to diffusers'."""
    return renamed(f"first_stage_model.{name}", TABLE)[0].removeprefix("vae.")


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    vae = AutoencoderKL(CONFIG)
    randomise(vae)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def peer(vae: AutoencoderKL) -> DiffusersAutoencoderKL:
    peer = peer_vae()
    expected = peer.state_dict()
    named = {diffusers_name(n): t for n, t in vae.state_dict().items()}
    # Their attention has linear layers where ours are 1x1 convolutions.
    peer.load_state_dict({n: t.reshape(expected[n].shape) for n, t in named.items()})
    return peer.eval().requires_grad_(False)


@pytest.mark.parametrize("size", [(16, 16), (10, 14)])
def test_encoder_agrees_with_diffusers(vae, peer, size):
    image = noise(2, 3, *size).clamp(-1, 1)
    ours, theirs = vae.encode(image), peer.encode(image).latent_dist
    assert relative_error(ours.mean, theirs.mean) < 1e-4
    assert relative_error(ours.logvar, theirs.logvar) < 1e-4


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_decoder_agrees_with_diffusers(vae, peer, size):
    latent = noise(2, CONFIG.z_channels, *size)
    assert relative_error(vae.decode(latent), peer.decode(latent).sample) < 1e-4


def test_epsilons_are_those_of_diffusers(vae, peer):
    norms = {n: m for n, m in vae.named_modules() if isinstance(m, nn.GroupNorm)}
    modules = dict(peer.named_modules())
    assert {n: m.eps for n, m in norms.items()} == {
        n: modules[diffusers_name(n)].eps for n in norms
    }


def test_posterior_sample_and_divergence():
    mean, logvar = noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1)
    posterior, normal = Posterior(mean, logvar), Normal(mean, (0.5 * logvar).exp())
    unit = noise(2, 4, 3, 3, seed=2)
    torch.testing.assert_close(posterior.sample(unit), mean + normal.stddev * unit)
    divergence = kl_divergence(normal, Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(posterior.kl(), divergence)


def test_log_variance_is_clamped(vae):
    own = AutoencoderKL(CONFIG)
    own.load_state_dict(vae.state_dict())
    with torch.no_grad():
        own.quant_conv.bias[CONFIG.z_channels :] = torch.tensor([100.0, -100.0, 0.0, 0.0])
    logvar = own.encode(noise(1, 3, 8, 8)).logvar
    assert (logvar[:, 0] == 20).all()
    assert (logvar[:, 1] == -30).all()
