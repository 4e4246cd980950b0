"""Latents of training samples: encoded as they come, kept in a bank on disk, or in a pool.

Encoding two pictures a sample costs as much as training a small denoiser on them. With a fixed
number of crops and masks an object (`DataConfig.geometry_variants`) each is encoded once. Endless
composites (`training.demo.recipes`) go through a pool of the newest, each seen several times.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pbe_model.config import PBEConfig
from pbe_model.networks.masked_inputs import latent_keep_mask, masked_image
from pbe_model.networks.vae import AutoencoderKL
from training.data.dataset import BoxDataset
from training.data.loader import next_batch, quiet_iterator, start_worker
from training.demo.recipes import Recipes
from training.demo.textures import Textures

log = logging.getLogger(__name__)

_ZEROS = 2**24  # bytes, at a time
AT_ONCE = 4
"""Pictures that the first stage encodes at once. At 512 pixels one takes as much memory as a sample
of the training step, and more at once take hardly less time each."""


def latent_shape(sizes: PBEConfig) -> tuple[int, int, int]:
    """`(z, h, w)` of a picture's latent at the model's resolution."""
    side = sizes.resolution // sizes.vae.downscale
    return sizes.vae.z_channels, side, side


class LatentEncoder:
    """Scaled latents of pictures, and of the same pictures with their holes greyed.

    Args:
        vae: The frozen first stage.
        device: Where it is.
        at_once: Pictures that it encodes at once.
    """

    def __init__(self, vae: AutoencoderKL, device: torch.device, at_once: int = AT_ONCE) -> None:
        self.vae = vae
        self.device = device
        self.at_once = at_once

    @torch.no_grad()
    def encode(
        self, image: Tensor, hole_mask: Tensor, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Encode a batch as the paper's training does, with soft masks.

        Args:
            image: `(B, 3, R, R)` in [-1, 1].
            hole_mask: `(B, 1, R, R)` in [0, 1], 1 = repaint.
            noise: `(2, B, z, r, r)` to sample the two posteriors with; `None` takes their means.

        Returns:
            `latent`, `masked_latent` `(B, z, r, r)` scaled, and `keep_mask` `(B, 1, r, r)`.
        """
        image = image.to(self.device, non_blocking=True)
        hole_mask = hole_mask.to(self.device, non_blocking=True)
        pictures = torch.cat([image, masked_image(image, 1 - hole_mask)])
        posteriors = [self.vae.encode(part) for part in pictures.split(self.at_once)]
        if noise is None:
            latents = [posterior.mean for posterior in posteriors]
        else:
            noises = noise.to(self.device, non_blocking=True).flatten(0, 1).split(self.at_once)
            latents = [p.sample(n) for p, n in zip(posteriors, noises, strict=True)]
        scaled = torch.cat(latents).float() * self.vae.config.scale_factor
        latent, masked_latent = scaled.chunk(2)
        factor = self.vae.config.downscale
        size = (image.shape[-2] // factor, image.shape[-1] // factor)
        keep_mask = latent_keep_mask(hole_mask, size, binarize=False)
        return {"latent": latent, "masked_latent": masked_latent, "keep_mask": keep_mask}


class LatentBank:
    """Latents by row of a dataset's bank, computed once and kept in float16 on disk.

    A row is encoded alone, so that its numbers do not depend on the batch that asked first. Files
    are written and read by plain calls: a full disk is then an error of one row, while a mapped
    file would end the process (SIGBUS).

    Args:
        folder: Where the files go; their name depends on the data and on the first stage.
        dataset: With `geometry_variants`.
        encoder: Of the frozen first stage.

    Raises:
        ValueError: There is no room for the whole bank.
    """

    def __init__(self, folder: Path, dataset: BoxDataset, encoder: LatentEncoder) -> None:
        self.dataset = dataset
        self.encoder = encoder
        config = encoder.vae.config
        z, side = config.z_channels, dataset.resolution // config.downscale
        self._shape = (2 * z + 1, side, side)
        self._row_bytes = int(np.prod(self._shape)) * np.dtype(np.float16).itemsize
        rows, name = dataset.cache_rows, f"latents-{self._key()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._latents = allocated(folder / f"{name}.bin", rows * self._row_bytes)
            self._marks = allocated(folder / f"{name}.filled", rows)
        except OSError as error:
            raise ValueError(
                f"the latents of {rows:,} crops take {rows * self._row_bytes / 1e9:.3g} GB, which "
                f"{folder} has no room for ({error.strerror}); free some space, lower "
                f"data.geometry_variants ({dataset.geometry_variants}), or choose another out"
            ) from error
        self._refused = False
        self._filled = np.zeros(rows, np.uint8)
        self.refresh()

    def refresh(self) -> None:
        """See what other processes have encoded."""
        self._marks.seek(0)
        self._filled = np.frombuffer(self._marks.read(), np.uint8).copy()

    def _key(self) -> str:
        digest = hashlib.sha256()
        for value in self.encoder.vae.state_dict().values():
            digest.update(value.cpu().numpy().tobytes())
        data = self.dataset
        digest.update(repr((self.encoder.vae.config, data.seed, data.resolution)).encode())
        digest.update(repr((data.geometry, data.geometry_variants, data.by_photo)).encode())
        digest.update(repr(data.recolour).encode())
        digest.update(data.index.digest.encode())
        return digest.hexdigest()[:16]

    def missing(self, samples: range) -> list[int]:
        """Rows that these samples need and that are not encoded yet, in ascending order."""
        rows = np.arange(self.dataset.cache_rows)
        if len(samples) < len(rows):  # else they show every row
            rows = np.unique([self.dataset.cache_key(number) for number in samples])
        return rows[self._filled[rows] == 0].tolist()

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        """Latents of these rows, `(B,)`, as `LatentEncoder.encode` gives them."""
        found = torch.from_numpy(np.stack([self.row(row) for row in rows.tolist()])).float()
        found = found.to(self.encoder.device, non_blocking=True)
        z = (found.shape[1] - 1) // 2
        latent, masked_latent, keep_mask = found.split([z, z, 1], dim=1)
        return {"latent": latent, "masked_latent": masked_latent, "keep_mask": keep_mask}

    def row(self, row: int) -> np.ndarray:
        """One row, float16 `(2 z + 1, r, r)`, encoded if it is not there yet.

        Raises:
            ValueError: No photo can be read.
        """
        if self._filled[row]:
            self._latents.seek(row * self._row_bytes)
            return np.frombuffer(self._latents.read(self._row_bytes), np.float16).reshape(
                self._shape
            )
        values = self._encode(row)
        try:
            self._latents.seek(row * self._row_bytes)
            _write(self._latents, values.tobytes())
            self._marks.seek(row)
            _write(self._marks, b"\1")  # after the data: a killed run leaves no half row marked
        except OSError as error:
            if not self._refused:
                log.warning("latents cannot be kept (%s) and are encoded anew", error.strerror)
            self._refused = True
        else:
            self._filled[row] = 1
        return values

    def _encode(self, row: int) -> np.ndarray:
        image, hole_mask = self.dataset.geometry_sample(row)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        hole = torch.from_numpy(hole_mask)[None, None].float() / 255
        with torch.autocast(self.encoder.device.type, enabled=False):  # the same in any precision
            encoded = self.encoder.encode(pixels, hole)
        return torch.cat(list(encoded.values()), dim=1)[0].half().cpu().numpy()


class LatentPool:
    """Latents of the newest composites, in memory on the device.

    Composites are drawn and encoded in groups of consecutive numbers, so that a pool filled anew
    after a restart holds the same numbers as one that went on.

    Args:
        recipes: What to draw.
        textures: To draw it from.
        encoder: Of the frozen first stage.
        batch_size: Samples an update: so many of them may lie between the first and the last use of
            a composite beyond the pool's size.
        workers: Processes that draw the lots; the device would wait for this one.
    """

    GROUP = 32

    def __init__(
        self,
        recipes: Recipes,
        textures: Textures,
        encoder: LatentEncoder,
        batch_size: int,
        workers: int = 0,
    ) -> None:
        self.recipes = recipes
        self.textures = textures
        self.encoder = encoder
        self.workers = workers
        newest = recipes.config.pool + -(-batch_size // recipes.config.reuse)
        self._groups = -(-newest // self.GROUP) + 1
        z, side = encoder.vae.config.z_channels, recipes.size // encoder.vae.config.downscale
        self._rows = torch.empty(
            (self._groups * self.GROUP, 2 * z + 1, side, side),
            dtype=torch.bfloat16,
            device=encoder.device,
        )
        self._next = 0  # group to come
        self._coming: Iterator[tuple[Tensor, Tensor]] | None = None

    def __call__(self, numbers: Tensor) -> dict[str, Tensor]:
        """Latents of these composites, `(B,)`, as `LatentEncoder.encode` gives them."""
        oldest, newest = int(numbers.min()) // self.GROUP, int(numbers.max()) // self.GROUP
        if self._coming is None:
            self._next = max(0, oldest - self._groups + 1)
        while self._next <= newest:
            self._fill()
        assert oldest > newest - self._groups, "composites that the pool has given up"
        rows = numbers % (self._groups * self.GROUP)
        found = self._rows[rows.to(self._rows.device, non_blocking=True)].float()
        z = (found.shape[1] - 1) // 2
        latent, masked_latent, keep_mask = found.split([z, z, 1], dim=1)
        return {"latent": latent, "masked_latent": masked_latent, "keep_mask": keep_mask}

    def _fill(self) -> None:
        """Draw and encode the next group."""
        if self._coming is None:
            self._coming = quiet_iterator(
                DataLoader(
                    _Groups(self.recipes, self.GROUP),
                    batch_size=None,
                    sampler=itertools.count(self._next),
                    num_workers=self.workers,
                    worker_init_fn=start_worker,
                    pin_memory=self.encoder.device.type == "cuda",
                )
            )
        layers, holes = next_batch(self._coming)
        device = self.encoder.device
        photo, _ = self.textures.draw(layers, self.recipes.size)
        # In the bits that the rows have: on a card, photos take more time than the samples do.
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            encoded = self.encoder.encode(photo * 2 - 1, holes.to(device).float() / 255)
        place = self._next % self._groups
        rows = slice(place * self.GROUP, (place + 1) * self.GROUP)
        self._rows[rows] = torch.cat(list(encoded.values()), dim=1).bfloat16()
        self._next += 1


class _Groups(Dataset[tuple[np.ndarray, np.ndarray]]):
    """Layers and holes of consecutive composites: of a group, by its number."""

    def __init__(self, recipes: Recipes, size: int) -> None:
        self.recipes = recipes
        self.size = size

    def __getitem__(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        first = group * self.size
        photos = [self.recipes.photo(number) for number in range(first, first + self.size)]
        layers, holes = (np.stack(parts) for parts in zip(*photos, strict=True))
        return layers, holes[:, None]


def allocated(path: Path, size: int) -> BinaryIO:
    """Open a file of `size` zeros or what is in it, its place on the disk reserved.

    Raises:
        OSError: There is no room; what was there before is as it was.
    """
    with open(path, "ab"):  # makes it, and empties no file of another process
        pass
    file = open(path, "r+b", buffering=0)  # noqa: SIM115
    before = os.fstat(file.fileno()).st_size
    try:
        _reserve(file, before, size)
    except OSError:
        file.truncate(before)
        file.close()
        if not before:
            path.unlink(missing_ok=True)
        raise
    return file


def _reserve(file: BinaryIO, before: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise  # others say that this file system cannot
    file.seek(before)
    for first in range(before, size, _ZEROS):
        _write(file, bytes(min(_ZEROS, size - first)))


def _write(file: BinaryIO, data: bytes) -> None:
    while data:  # a write into the last free bytes is a short one
        data = data[file.write(data) :]
