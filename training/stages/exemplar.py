"""Between the stages, for a small tower that starts from nothing: teach it to see, alone.

The paper takes CLIP's tower, which has seen 400 million pictures. A tower of two layers that starts
from nothing sees many more exemplars an hour with a loss of its own than by way of the denoiser:
its condition is to hold a thumbnail of the exemplar's object and where that object is. The second
stage then starts from the file that this one exports, and leaves the tower as it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from pbe_model.config import PBEConfig
from pbe_model.model import PaintByExample
from pbe_model.networks.exemplar_encoder import ExemplarEncoder, normalise
from training.config import RunConfig
from training.demo.recipes import Recipes, endless
from training.picture_grid import Pictures
from training.stages.diffusion import starting_point
from training.stages.loss import ExemplarLoss

HELD_OUT = "val"
"""The split of cut-outs and backgrounds that is never trained on."""

_VALIDATION = 256  # held-out exemplars that the validation's error is taken over
_PICTURES = 16
_MEASURED = 2048  # exemplars that a tower of one patch takes its first directions from
_LEAST_SHARE = 0.02  # of those directions' deviations: fainter ones are enlarged no further


class Exemplar:
    """Data, loss, validation and pictures of this stage; the loop is in `training.loop`."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.num_timesteps = 0
        self.bank = None
        self.data_digest = ""
        model, found = starting_point(config)
        freeze(model)
        data = config.data
        drawn: dict[str, Any] = {
            "size": model.config.resolution,
            "seed": config.seed,
            "device": device,
        }
        self.side = model.config.exemplar.image_size
        recipes, self._textures = endless(data.root, data.composites, data.geometry, **drawn)
        self.dataset: Dataset[dict[str, Any]] = recipes
        self._held_out, self._held_out_textures = endless(
            data.root,
            replace(data.composites, recolour=0.0),
            data.geometry,
            split=HELD_OUT,
            **drawn,
        )
        torch.manual_seed(config.seed)
        if has_one_patch(model.encoder) and "encoder" not in found:
            start_from_principal_components(model.encoder, self._first_exemplars(recipes))
        self.module = exemplar_loss(model.encoder, config).to(device)

    def batch(self, loaded: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the loss takes, from what the loader yields."""
        exemplar, silhouette = self._textures.draw(loaded["exemplar_layers"], self.side)
        return {"exemplar": exemplar, "silhouette": silhouette}

    def _first_exemplars(self, recipes: Recipes) -> Tensor:
        return torch.cat(
            [
                self._textures.draw(_layers(recipes, range(first, first + 64)), self.side)[0].cpu()
                for first in range(0, _MEASURED, 64)
            ]
        )

    def _validation(self, count: int) -> dict[str, Tensor]:
        layers = _layers(self._held_out, range(count))
        exemplar, silhouette = self._held_out_textures.draw(layers, self.side)
        return {"exemplar": exemplar, "silhouette": silhouette}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Errors on exemplars of objects that are never trained on."""
        values = self.module(self._validation(_VALIDATION))
        return {f"val_{n}": float(values[n]) for n in ("colour_mse", "silhouette_mse")}

    @torch.no_grad()
    def pictures(self) -> Pictures:
        """Exemplar, its thumbnail and silhouette, and both as they are drawn, of two in a row."""
        batch = self._validation(_PICTURES)
        target = self.module.target(batch["exemplar"], batch["silhouette"])
        drawn = self.module.draw(batch["exemplar"])
        columns = [batch["exemplar"] * 2 - 1]
        for flat in (target, drawn):
            colours, silhouette = flat.unflatten(1, (4, *[self.module.side] * 2)).split([3, 1], 1)
            for picture in (colours, silhouette.expand_as(colours) * 2 - 1):
                columns.append(F.interpolate(picture, self.side, mode="nearest"))
        titles = ("exemplar", "thumbnail", "silhouette", "drawn", "drawn")
        return Pictures(images=torch.stack(columns, dim=1).flatten(0, 1), titles=2 * titles)


def _layers(recipes: Recipes, numbers: range) -> Tensor:
    return torch.stack([torch.from_numpy(recipes.exemplar(n, n)) for n in numbers])


def freeze(model: PaintByExample) -> None:
    """Leave trainable what this stage trains: the encoder, but not what says "no exemplar"."""
    model.requires_grad_(False)
    model.encoder.requires_grad_(True)
    model.encoder.learnable_vector.requires_grad_(False)


def exemplar_loss(encoder: ExemplarEncoder, config: RunConfig) -> ExemplarLoss:
    """The loss of a run, over this encoder."""
    return ExemplarLoss(encoder, config.loss.thumbnail_side)


def empty_batch(sizes: PBEConfig, batch: int) -> dict[str, Tensor]:
    """What `Exemplar.batch` gives, with nothing in it."""
    side = sizes.exemplar.image_size
    return {
        "exemplar": torch.empty(batch, 3, side, side),
        "silhouette": torch.empty(batch, 1, side, side),
    }


def has_one_patch(encoder: ExemplarEncoder) -> bool:
    """Whether the tower's only patch is the whole exemplar."""
    return encoder.config.patch_size == encoder.config.image_size


@torch.no_grad()
def start_from_principal_components(encoder: ExemplarEncoder, exemplars: Tensor) -> None:
    """Let the one patch of a tower start as the principal components of exemplars, in place.

    Random directions of a picture of 32 pixels are all but blind to what is large in it. Components
    are scaled by the root of their deviation, so that faint ones are heard without drowning in
    noise, and together to half a unit.

    Args:
        encoder: Its tower has one patch.
        exemplars: `(N, 3, S, S)` in [0, 1], more of them than the tower is wide.
    """
    tower = encoder.cond_stage_model.transformer
    patch = getattr(tower, "vision_model", tower).embeddings.patch_embedding.weight
    pixels = normalise(exemplars).flatten(1)
    pixels = pixels - pixels.mean(dim=0)
    _, singular, directions = torch.svd_lowrank(pixels, q=len(patch), niter=4)
    deviations = singular / len(pixels) ** 0.5
    weight = (directions / deviations.clamp(min=_LEAST_SHARE).sqrt()).T
    weight = weight * (0.5 / (pixels @ weight.T).std())
    patch.copy_(weight.view_as(patch))
