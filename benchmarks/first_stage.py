"""The first stage against the best linear map of patches to as many numbers.

An autoencoder that is worth its parameters keeps more of a picture than the principal components of
its patches do (PCA). Both are measured on the same pictures: held-out composites of the demo set,
and, with `--photos`, the middle squares of photographs of another source.

    python -m benchmarks.first_stage --data data/demo [--model FILE] [--photos FOLDER]

PSNR is that of the mean squared error over all pictures, in dB, as a run's `val_psnr`. Two cores,
about three minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from pbe_model import PaintByExample
from pbe_model.image_io import read_image
from pbe_model.networks.vae import AutoencoderKL
from training.config import load_config
from training.data.augment import resize_square
from training.demo.recipes import endless

FITTED = 2048
"""Composites that the components are fitted to."""

_AT_ONCE = 32


def main() -> None:
    """Measure both maps and print a table."""
    parser = argparse.ArgumentParser(description="First stage against principal components.")
    parser.add_argument("--data", type=Path, required=True, help="of `pbe-train prepare demo`")
    parser.add_argument("--model", type=Path, help="a checkpoint [the bundled model]")
    parser.add_argument("--photos", type=Path, help="folder of photographs of another source")
    args = parser.parse_args()

    model = PaintByExample.from_checkpoint(args.model)
    size, vae = model.config.resolution, model.vae
    linear = Components.of(composites(args.data, size, FITTED), vae)
    sets = {"held-out composites": args.data / "val/photos"}
    if args.photos is not None:
        sets["other photographs"] = args.photos
    print(f"{size} px, patches of {vae.config.downscale} px to {vae.config.z_channels} numbers\n")
    print("| pictures | number | first stage | linear | difference |\n|---|---|---|---|---|")
    for name, folder in sets.items():
        pictures = squares(folder, size)
        ours, theirs = psnr(pictures, lambda x: through(vae, x)), psnr(pictures, linear)
        row = f"{ours:.2f} dB | {theirs:.2f} dB | {ours - theirs:+.2f} dB"
        print(f"| {name} | {len(pictures)} | {row} |")


class Components:
    """The best linear map of patches to a few numbers, and back.

    Args:
        patches: `(N, D)`, pixels of square patches.
        side: Of a patch, in pixels.
        count: Numbers that a patch is mapped to.
    """

    def __init__(self, patches: Tensor, side: int, count: int) -> None:
        self.side = side
        self.mean = patches.mean(dim=0)
        covariance = (patches - self.mean).T.double().cov()
        self.basis = torch.linalg.eigh(covariance).eigenvectors[:, -count:].float()  # (D, count)

    @classmethod
    def of(cls, pictures: Iterator[Tensor], vae: AutoencoderKL) -> Components:
        """Fit to pictures `(B, 3, H, W)`, for the sizes of a first stage."""
        side = vae.config.downscale
        patches = torch.cat([_patches(batch, side).flatten(0, 2) for batch in pictures])
        return cls(patches, side, vae.config.z_channels)

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures `(B, 3, H, W)` after both maps."""
        centred = _patches(pictures, self.side) - self.mean
        mapped = centred @ self.basis @ self.basis.T + self.mean
        sides = {"i": self.side, "j": self.side}
        return rearrange(mapped, "b h w (c i j) -> b c (h i) (w j)", **sides)


def _patches(pictures: Tensor, side: int) -> Tensor:
    return rearrange(pictures, "b c (h i) (w j) -> b h w (c i j)", i=side, j=side)


@torch.inference_mode()
def through(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Pictures `(B, 3, H, W)` after encoder and decoder."""
    return vae.decode(vae.encode(pictures).mean)


def psnr(pictures: Tensor, mapping) -> float:
    """Of what a mapping makes of pictures `(N, 3, H, W)` in [-1, 1], in dB."""
    parts = pictures.split(_AT_ONCE)
    errors = [(mapping(part).clamp(-1, 1) - part).square().flatten(1).mean(1) for part in parts]
    return float(-10 * torch.log10(torch.cat(errors).mean() / 4))


def composites(root: Path, size: int, count: int) -> Iterator[Tensor]:
    """Training pictures `(B, 3, size, size)` in [-1, 1], as the first stage is trained on."""
    config = load_config("bundled-first-stage").data
    recipes, textures = endless(
        root,
        config.composites,
        config.geometry,
        size=size,
        seed=0,
        device=torch.device("cpu"),
        with_photo=True,
    )
    for first in range(0, count, _AT_ONCE):
        layers = [recipes.photo(number)[0] for number in range(first, first + _AT_ONCE)]
        yield textures.draw(torch.stack([torch.from_numpy(x) for x in layers]), size)[0] * 2 - 1


def squares(folder: Path, size: int) -> Tensor:
    """The middle squares of all pictures in a folder, `(N, 3, size, size)` in [-1, 1]."""
    found = []
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        picture = read_image(path)  # (H, W, 3)
        height, width = picture.shape[:2]
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        square = picture[top : top + side, left : left + side].mul(255).round().byte().numpy()
        found.append(torch.from_numpy(resize_square(square, size, antialias=True)))
    return torch.stack(found).permute(0, 3, 1, 2).float() / 127.5 - 1


if __name__ == "__main__":
    main()
