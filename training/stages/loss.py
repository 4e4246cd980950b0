"""Training losses as modules: a batch in, the loss and its parts out; no I/O.

Being modules lets data-parallel wrappers see one `forward`. All randomness comes in with the
batch (`training.data.keyed_rng`), so a loss is a function of its arguments.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pbe_model.networks.exemplar_encoder import ExemplarEncoder, normalise
from pbe_model.networks.masked_inputs import unet_input
from pbe_model.networks.unet import UNet
from pbe_model.networks.vae import AutoencoderKL
from pbe_model.sampling.schedule import NoiseSchedule
from training.optim.autocast import lean_autocast


class FirstStageLoss(nn.Module):
    """Squared error of the reconstruction, plus a small divergence from the standard normal."""

    def __init__(self, vae: AutoencoderKL, kl_weight: float) -> None:
        super().__init__()
        self.vae = vae
        self.kl_weight = kl_weight

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`image` `(B, 3, H, W)` in [-1, 1] and `noise` of the latent's shape."""
        image = batch["image"]
        posterior = self.vae.encode(image)
        reconstruction = self.vae.decode(posterior.sample(batch["noise"]))
        error = F.mse_loss(reconstruction, image)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = -10 * torch.log10(error.detach() / 4)  # the range [-1, 1] is 2 wide
        return {"loss": error + self.kl_weight * kl, "kl": kl.detach(), "psnr": psnr}


class ExemplarLoss(nn.Module):
    """Squared error of a thumbnail and a silhouette that a linear layer draws from the condition.

    Args:
        encoder: Image tower, mapper and projection.
        side: Of thumbnail and silhouette, in pixels.
    """

    def __init__(self, encoder: ExemplarEncoder, side: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.side = side
        self.thumbnail = nn.Linear(encoder.proj_out.out_features, 4 * side**2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """`exemplar` `(B, 3, S, S)` and `silhouette` `(B, 1, S, S)` in [0, 1], 1 = the object.

        Returns:
            `loss`, and without a gradient its parts `colour_mse` (the range is 2 wide) and
            `silhouette_mse` (1 wide).
        """
        exemplar = batch["exemplar"]
        error = (self.draw(exemplar) - self.target(exemplar, batch["silhouette"])).square()
        colours, silhouettes = error.detach().split([3 * self.side**2, self.side**2], dim=1)
        return {
            "loss": error.mean(),
            "colour_mse": colours.mean(),
            "silhouette_mse": silhouettes.mean(),
        }

    def draw(self, exemplar: Tensor) -> Tensor:
        """What is drawn of exemplars `(B, 3, S, S)` in [0, 1]: like `target`."""
        return self.thumbnail(self.encoder(normalise(exemplar)).mean(dim=1)).float()

    def target(self, exemplar: Tensor, silhouette: Tensor) -> Tensor:
        """What is to be drawn, `(B, 4 * side ** 2)`: colours in [-1, 1], then the silhouette."""
        colours = thumbnail(exemplar, silhouette, self.side)
        small = F.adaptive_avg_pool2d(silhouette, self.side)
        return torch.cat([colours, small.flatten(1)], dim=1)


class DiffusionLoss(nn.Module):
    """`E || eps_theta(y_t, keep_mask * x, c, t) - eps ||^2` (arXiv 2211.13227, equation 4).

    Of a model that predicts v (arXiv 2202.00512), which the schedule says, v takes the noise's
    place.

    Args:
        unet: Denoiser.
        encoder: Image tower, mapper, projection and learnable vector.
        schedule: Noise schedule, and what the denoiser predicts.
        min_snr: Clip g of the min-SNR weighting (arXiv 2303.09556), which counts the error of the
            clean latent by `min(snr, g)`: by that over `snr` the error of the noise, over `snr + 1`
            that of v. The last timestep of a schedule of zero terminal SNR does not count then.
            0 for none.
        v_weight: Weigh each timestep as a loss on v would (arXiv 2202.00512), by `1 / a_t`. The
            paper's plain mean hardly counts the noisiest timesteps, at which the exemplar decides
            the colours; a short training needs them. For models that predict the noise.
        thumbnail_weight: Weight of drawing a thumbnail of the exemplar from its condition, by a
            linear layer that lives for the training alone. A tower that starts from nothing says
            nothing of its picture, so the denoiser learns to overlook it before it can speak;
            CLIP's needs no such help. 0 for none.
        thumbnail_side: In pixels.
        keep_weight: Weight of the error where the photo is kept, over that in the hole.
        compiled: Whether the denoiser is compiled.

    Raises:
        ValueError: `v_weight` of a model that predicts v.
    """

    def __init__(
        self,
        unet: UNet,
        encoder: ExemplarEncoder,
        schedule: NoiseSchedule,
        min_snr: float = 0.0,
        v_weight: bool = False,
        thumbnail_weight: float = 0.0,
        thumbnail_side: int = 8,
        keep_weight: float = 1.0,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        if v_weight and schedule.prediction == "v":
            raise ValueError(
                "v_weight makes a loss on the noise one on v, which this model predicts already; "
                "leave it out"
            )
        self.unet = unet
        self.encoder = encoder
        self.schedule = schedule
        self.min_snr = min_snr
        self.v_weight = v_weight
        self.thumbnail_weight = thumbnail_weight
        self.thumbnail_side = thumbnail_side
        self.keep_weight = keep_weight
        self.compiled = compiled
        if thumbnail_weight:
            width = encoder.proj_out.out_features
            self.thumbnail = nn.Linear(width, 3 * thumbnail_side**2)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one batch.

        Args:
            batch: `latent`, `masked_latent` `(B, 4, h, w)` scaled; `keep_mask` `(B, 1, h, w)` in
                [0, 1]; `exemplar` `(B, 3, S, S)` in [0, 1]; `noise` like `latent`; `timestep`
                `(B,)`; `drop` `(B,)` bool, where the learnable vector takes the exemplar's place;
                `silhouette` `(B, 1, S, S)` in [0, 1], where the exemplar's object is, if that is
                known: the thumbnail then shows it before grey.

        Returns:
            `loss`, a scalar with a gradient. Without: `eps_mse`, a scalar, the plain error of the
            noise, whatever is predicted; `per_sample` `(B,)`, weighted, whose mean is the loss;
            `thumbnail_mse`, a scalar that counts in the loss besides, if asked for.
        """
        latent, noise, timestep = batch["latent"], batch["noise"], batch["timestep"]
        encoded = self.encoder(normalise(batch["exemplar"]))
        context = torch.where(
            batch["drop"][:, None, None], self.encoder.unconditional(len(latent)), encoded
        )
        noisy = self.schedule.add_noise(latent, noise, timestep)
        x = unet_input(noisy, batch["masked_latent"], batch["keep_mask"])
        # What is compiled decides itself what to keep, and takes no hooks.
        with nullcontext() if self.compiled else lean_autocast(x.device.type):
            predicted = self.unet(x, timestep, context)
        target = self.schedule.target(latent, noise, timestep)
        error = (predicted.float() - target).square()
        error = hole_mean(error, batch["keep_mask"], self.keep_weight)  # (B,)
        alpha = self.schedule.on_device("alphas_cumprod", timestep.device)[timestep]
        predicts_v = self.schedule.prediction == "v"
        weight = torch.ones_like(error)
        if self.min_snr:
            snr = alpha / (1 - alpha)
            weight = weight * snr.clamp(max=self.min_snr) / (snr + 1 if predicts_v else snr)
        if self.v_weight:
            weight = weight / alpha
        per_sample = weight * error
        # The noise that v implies in a noisy latent is sqrt(a) * v + sqrt(1 - a) * x.
        eps_error = alpha * error if predicts_v else error
        values = {
            "loss": per_sample.mean(),
            "eps_mse": eps_error.detach().mean(),
            "per_sample": per_sample.detach(),
        }
        if self.thumbnail_weight:
            small = thumbnail(batch["exemplar"], batch.get("silhouette"), self.thumbnail_side)
            drawn = F.mse_loss(self.thumbnail(encoded.mean(dim=1)).float(), small)
            values["loss"] = values["loss"] + self.thumbnail_weight * drawn
            values["thumbnail_mse"] = drawn.detach()
        return values


def thumbnail(exemplar: Tensor, silhouette: Tensor | None, side: int) -> Tensor:
    """Exemplars shrunk, before grey where a silhouette says that they are not the object.

    Args:
        exemplar: `(B, 3, S, S)` in [0, 1].
        silhouette: `(B, 1, S, S)` in [0, 1], 1 = the object.
        side: Of the result, in pixels.

    Returns:
        `(B, 3 * side ** 2)` in [-1, 1].
    """
    seen = exemplar * 2 - 1
    if silhouette is not None:
        seen = seen * silhouette
    return F.adaptive_avg_pool2d(seen, side).flatten(1)


def hole_mean(error: Tensor, keep_mask: Tensor, keep_weight: float) -> Tensor:
    """Mean over channels and places, with a weight where the photo is kept and 1 in the hole.

    Args:
        error: `(B, z, h, w)`.
        keep_mask: `(B, 1, h, w)` in [0, 1], 1 = keep.
        keep_weight: 0 takes the hole alone.

    Returns:
        `(B,)`.
    """
    if keep_weight == 1:
        return error.flatten(1).mean(dim=1)
    weight = 1 - keep_mask * (1 - keep_weight)
    error = (weight * error.mean(dim=1, keepdim=True)).flatten(1).sum(dim=1)
    return error / weight.flatten(1).sum(dim=1)
