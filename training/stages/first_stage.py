"""Stage one of a demo run: train the autoencoder on the photos (official runs reuse SD 1.4's).

It starts from a network that passes its input on, or goes on from `init`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from pbe_model.checkpoints import load as checkpoint
from pbe_model.config import CONFIGS, PBEConfig
from pbe_model.model import PaintByExample
from pbe_model.networks.vae import AutoencoderKL
from training.config import RunConfig
from training.data.dataset import BoxDataset, Stream, collate, keyed_rng
from training.demo.recipes import endless
from training.demo.textures import Textures
from training.picture_grid import Pictures
from training.stages.latents import latent_shape
from training.stages.loss import FirstStageLoss


class FirstStage:
    """Data, loss, validation and pictures of the first stage; the loop is in `training.loop`."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.run = config
        self.num_timesteps = 0
        self.device = device
        self.model_config: PBEConfig = CONFIGS[config.model]
        size = self.model_config.resolution
        data = config.data
        shared = {
            "resolution": size,
            "exemplar_size": 8,  # unused, and so as small as can be
            "seed": config.seed,
            "geometry": data.geometry,
            "report": config.out / "unreadable.txt",
        }
        self.bank = None
        self.data_digest = ""
        self._textures: Textures | None = None
        samples: Dataset[dict[str, Any]]
        if data.source == "composites":
            samples, self._textures = endless(
                data.root,
                data.composites,
                data.geometry,
                size=size,
                seed=config.seed,
                device=device,
                with_photo=True,
            )
        else:
            photos = BoxDataset(data.root, data.index, sample=data.sample, **shared)
            samples, self.data_digest = photos, photos.index.digest
        self.dataset = Noised(samples, latent_shape(self.model_config), config.seed)
        self._held_out = BoxDataset(data.root, data.val_index, shuffle=False, **shared)
        torch.manual_seed(config.seed)
        self.module = first_stage_loss(config, self.model_config)
        if config.init is None:
            initialise(self.module.vae)  # before the move: devices draw other numbers
        else:
            load(self.module.vae, self.model_config, config.init)
        self.module.to(device)
        if config.compile:
            self.module.vae.encoder.compile()
            self.module.vae.decoder.compile()

    def batch(self, loaded: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the loss takes, from what the loader yields."""
        noise = loaded["noise"].to(self.device, non_blocking=True)
        return {"image": self._images(loaded), "noise": noise}

    def _images(self, loaded: dict[str, Tensor]) -> Tensor:
        if self._textures is None:
            return loaded["image"].to(self.device, non_blocking=True)
        photo, _ = self._textures.draw(loaded["photo_layers"], self.model_config.resolution)
        return photo * 2 - 1

    def _validation(self, count: int, size: int = 32) -> Iterator[Tensor]:
        for first in range(0, count, size):
            samples = [self._held_out[i] for i in range(first, min(first + size, count))]
            yield collate(samples)["image"].to(self.device)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Peak signal-to-noise ratio in dB on held-out pictures, and the latent's deviation."""
        errors, latents = [], []
        for image in self._validation(min(256, len(self._held_out))):
            mean = self.module.vae.encode(image).mean
            decoded = self.module.vae.decode(mean).clamp(-1, 1)
            errors.append((decoded - image).square().flatten(1).mean(dim=1))
            latents.append(mean)
        mse = torch.cat(errors)  # (N,)
        return {
            "val_psnr": float(-10 * torch.log10(mse.mean() / 4)),
            "val_psnr_per_image": float((-10 * torch.log10(mse / 4)).mean()),
            "latent_std": float(torch.cat(latents).std()),
        }

    @torch.no_grad()
    def pictures(self) -> Pictures:
        """Held-out pictures, each beside its reconstruction, four in a row."""
        image = next(self._validation(16, 16))
        vae = self.module.vae
        decoded = vae.decode(vae.encode(image).mean)
        rows = torch.stack([image, decoded], dim=1).flatten(0, 1)
        return Pictures(images=rows, titles=4 * ("photo", "decoded"))


class Noised(Dataset[dict[str, Any]]):
    """Samples with the noise that their latent is sampled with, drawn by the loader's processes.

    Args:
        samples: With their `index`.
        shape: Of a latent, `(z, h, w)`.
        seed: Key of the noise, with the sample's number.
    """

    def __init__(
        self, samples: Dataset[dict[str, Any]], shape: tuple[int, int, int], seed: int
    ) -> None:
        self.samples = samples
        self.shape = shape
        self.seed = seed

    def __getitem__(self, sample_index: int) -> dict[str, Any]:
        """A sample and its `noise`."""
        rng = keyed_rng(self.seed, sample_index, Stream.NOISE)
        noise = rng.standard_normal(self.shape, np.float32)
        return {**self.samples[sample_index], "noise": noise}


def first_stage_loss(config: RunConfig, sizes: PBEConfig) -> FirstStageLoss:
    """The loss of a run over an autoencoder with fresh weights."""
    return FirstStageLoss(AutoencoderKL(sizes.vae), config.loss.kl_weight)


def empty_batch(sizes: PBEConfig, batch: int) -> dict[str, Tensor]:
    """What `FirstStage.batch` gives, with nothing in it."""
    return {
        "image": torch.empty(batch, 3, sizes.resolution, sizes.resolution),
        "noise": torch.empty(batch, *latent_shape(sizes)),
    }


def load(vae: AutoencoderKL, sizes: PBEConfig, path: Path) -> None:
    """Take the weights of a checkpoint's first stage.

    Raises:
        ValueError: It cannot be read, or has no first stage of this size.
    """
    with torch.device("meta"):
        model = PaintByExample(sizes)
    model.vae = vae
    start = checkpoint.PARTS["vae"]
    tensors = checkpoint.read(path).tensors
    checkpoint.load_parts(model, {n: t for n, t in tensors.items() if n.startswith(start)}, path)


@torch.no_grad()
def initialise(vae: AutoencoderKL) -> None:
    """Start from a network that passes its input on, in place.

    torch's default shrinks the signal at every convolution until the biases drown it, and a
    posterior as wide as its prior drowns the latent: from there the first thousand updates only
    learn each picture's mean. Here convolutions keep the variance, residual branches start at
    zero, and the posterior is narrow.
    """
    for name, layer in vae.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
            if name.endswith(("conv2", "proj_out")):
                nn.init.zeros_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
    z = vae.config.z_channels
    vae.quant_conv.weight[z:] = 0
    assert vae.quant_conv.bias is not None
    vae.quant_conv.bias[z:] = -6.0  # log variance
