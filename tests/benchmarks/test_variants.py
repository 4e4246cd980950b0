"""The comparison of denoisers: what it feeds them, and that it tells one that learns."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.variants import EXEMPLARS, Samples, Variant, Whitening, row
from pbe_model.config import TINY


def samples(count: int) -> Samples:
    """Light and dark photos in turn, whose exemplars say which."""
    sign = torch.tensor([1.0, -1.0]).repeat(count // 2).view(-1, 1, 1, 1)
    token = sign.expand(-1, -1, 1, TINY.unet.context_dim)
    latent = sign.expand(-1, 4, 8, 8)
    return Samples(
        latent=latent.bfloat16(),
        masked=torch.zeros_like(latent).bfloat16(),
        keep=torch.zeros(count, 1, 8, 8, dtype=torch.bfloat16),
        token=token.expand(-1, EXEMPLARS, -1, -1).bfloat16(),
    )


def test_a_batch_takes_photo_and_exemplar_by_number() -> None:
    found = samples(6)
    generator = torch.Generator().manual_seed(0)
    photo, which = torch.tensor([4, 1]), torch.tensor([2, 0])
    batch = found.batch(photo, which, torch.tensor([999, 0]), generator)
    assert torch.equal(batch["latent"], found.latent[[4, 1]])
    assert torch.equal(batch["token"], found.token[[4, 1], [2, 0]])
    assert batch["noise"].shape == batch["latent"].shape


def test_a_split_keeps_the_last_for_the_judgement() -> None:
    found = samples(6)
    first, last = found.split(2)
    assert torch.equal(torch.cat([first.latent, last.latent]), found.latent)
    assert len(last.token) == 2


def test_whitened_tokens_vary_alike_in_all_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    token = torch.randn(4000, 1, 8, generator=generator) * torch.logspace(0, -1, 8) + 3
    white = Whitening(token)(token)[:, 0]
    torch.testing.assert_close(white.T.cov(), 0.25 * torch.eye(8), rtol=0.02, atol=0.005)


def test_a_row_tells_the_right_exemplar_from_a_wrong_one() -> None:
    unet = replace(TINY.unet, model_channels=16, norm_groups=8, num_heads=2)
    training, held = samples(512).split(32)
    cells = row(Variant(unet=unet, lr=5e-3), training, held, seconds=4).split(" | ")
    assert cells[0].endswith(" M") and float(cells[1]) > 1
    right, trained, wrong, _ = map(float, cells[2:])
    assert right < 0.5 * wrong and trained < 0.5 * wrong
