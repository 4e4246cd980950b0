"""The yardstick of the first stage: principal components of patches."""

from __future__ import annotations

import torch

from benchmarks.first_stage import Components, psnr


def test_as_many_components_as_the_pictures_have_keep_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(3, 3 * 4 * 4, generator=generator)  # of patches of 4 x 4 pixels
    patches = torch.randn(500, 3, generator=generator) @ patterns + 0.2
    pictures = patches[:64].view(4, 4, 4, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(4, 3, 16, 16)
    whole, less = Components(patches, 4, 3), Components(patches, 4, 2)
    torch.testing.assert_close(whole(pictures), pictures, rtol=1e-4, atol=1e-4)
    error = (less(pictures) - pictures).square().mean()
    assert error > 0.01
    # No other map of that size does better: here one that leaves a pattern out.
    basis = torch.linalg.qr(patterns[:2].T).Q
    centred = patches[:64] - patches.mean(0)
    assert error < (centred - centred @ basis @ basis.T).square().mean()


def test_psnr_is_that_of_the_mean_error() -> None:
    pictures = torch.zeros(3, 3, 8, 8)
    offsets = torch.tensor([0.1, 0.2, 0.3])[:, None, None, None]
    mean = offsets.square().mean()
    found = psnr(pictures, lambda part: part + offsets)
    torch.testing.assert_close(torch.tensor(found), 10 * torch.log10(4 / mean))
