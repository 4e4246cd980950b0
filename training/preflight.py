"""What a start would refuse, found out without one: nothing is written, no model takes memory."""

from __future__ import annotations

import importlib.util
import shutil

import torch
from torch import nn

from pbe_model.config import CONFIGS
from training import checkpoints
from training.config import RunConfig
from training.data.dataset import BoxDataset
from training.demo.recipes import read_pictures
from training.lock import check_free
from training.resuming import check_saved
from training.stages import diffusion, exemplar, first_stage
from training.stages.latents import latent_shape


def check_start(config: RunConfig) -> list[str]:
    """Look at all that a run takes from the disk and will put there.

    Returns:
        What a start would say: where it goes on from, and which settings have changed.

    Raises:
        ValueError: What a start would refuse: weights, photos or a checkpoint that are missing or
            do not fit, a folder that is in use, cannot be written to or has no room.
    """
    check_free(config.out)
    for name in config.log.trackers:
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"log.trackers lists {name}, which is not installed; run pip install {name}, or "
                "remove it from the list"
            )
    digest = _check_data(config)
    module = _module(config)
    folder = checkpoints.folder_of(config.out)
    saved = checkpoints.load_newest(folder)
    if saved is None:
        return []
    notices = check_saved(saved, config, digest)
    checkpoints.load_trainable(module, saved["module"], folder)
    return notices


def _check_data(config: RunConfig) -> str:
    """See that a sample of each set can be made; returns the hash of the training set."""
    data = config.data
    held_out = BoxDataset(data.root, data.val_index, resolution=8, exemplar_size=8, shuffle=False)
    held_out.sample(0)
    if data.source == "composites":
        splits = ("train", exemplar.HELD_OUT) if config.stage == "exemplar" else ("train",)
        for split in splits:
            read_pictures(data.root, split)
        return ""
    photos = BoxDataset(
        data.root,
        data.index,
        resolution=8,
        exemplar_size=8,
        sample=data.sample,
        geometry_variants=data.geometry_variants,
    )
    photos.sample(0)
    if config.stage == "diffusion" and data.geometry_variants is not None:
        _check_room(config, photos.cache_rows)
    return photos.index.digest


def _check_room(config: RunConfig, rows: int) -> None:
    """For the bank of latents, unless there is one already."""
    z, height, width = latent_shape(CONFIGS[config.model])
    size = rows * (2 * z + 1) * height * width * 2
    folder = config.out / "latents"
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not list(folder.glob("*.bin")) and size > shutil.disk_usage(place).free:
        raise ValueError(
            f"the latents of {rows:,} crops take {size / 1e9:.3g} GB, which {folder} has no room "
            f"for; free some space, lower data.geometry_variants ({config.data.geometry_variants})"
            ", or choose another out"
        )


def _module(config: RunConfig) -> nn.Module:
    """What a run trains, from what it starts from: names and shapes without memory."""
    with torch.device("meta"):
        if config.stage == "first_stage":
            sizes = CONFIGS[config.model]
            loss = first_stage.first_stage_loss(config, sizes)
            if config.init is not None:
                first_stage.load(loss.vae, sizes, config.init)
            return loss
        model = diffusion.starting_model(config)
        if config.stage == "exemplar":
            exemplar.freeze(model)
            return exemplar.exemplar_loss(model.encoder, config)
        diffusion.freeze(model, config)
        return diffusion.diffusion_loss(model, model.schedule, config)
